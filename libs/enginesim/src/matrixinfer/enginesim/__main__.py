"""`matrixinfer-enginesim serve MODEL [vllm flags] [--sim-… flags]`, also `python -m matrixinfer.enginesim serve …`.

SIGTERM and SIGINT finish the streams that run (at most `--shutdown-timeout` seconds) and end the process.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

from matrixinfer.enginesim.config import SimConfig, UsageError, config_from
from matrixinfer.enginesim.server import Simulator

__all__ = ["main"]


async def _serve(config: SimConfig) -> None:
    """Load (a pause, in which connections are refused, as with a real engine), serve until a signal, drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(f"loading {config.model}", flush=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), config.startup_seconds)
        return
    async with Simulator(config) as simulator:
        print(f"serving {', '.join(config.names)} on {simulator.url}", flush=True)
        await stop.wait()
        clean = await simulator.stop()
    print("stopped" if clean else f"stopped after {config.shutdown_seconds} s with streams cut off", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one engine; exit status 2 for a command line that cannot be understood."""
    try:
        config = config_from(sys.argv[1:] if argv is None else argv)
    except UsageError as exc:
        print(f"vllm (simulated): {exc}", file=sys.stderr)
        sys.exit(2)
    asyncio.run(_serve(config))


if __name__ == "__main__":
    main()
