"""What it costs to read the load of hundreds of engines: CPU seconds of the reader per second of wall time.

`python -m tests.bench.gateway.scrape [--engines 500] [--seconds 20]` starts one process that answers /metrics for as
many loopback addresses with a page as long as vLLM's (about 70 KB), and one that runs the gateway's feed on uvloop as
the supervisor does, first with all engines idle, then with all of them at work. Only the reader's CPU is counted. The
goal is at most 0.05 of a core while everything is idle.
"""

import argparse
import asyncio
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import uvloop
from tests.bench.gateway.report import Report, say
from tests.bench.gateway.scenarios import Plan

from matrixinfer.enginesim.metrics import EngineMetrics, Gauges
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.scrape import Pace
from matrixinfer.gateway.core.types import Endpoint, Server, Snapshot
from matrixinfer.gateway.feeds.metrics import EngineFeed
from matrixinfer.gateway.wire.pool import PoolLimits, UpstreamPool, upstream_tls

_IDLE_GOAL = 0.05
_PAGE_BYTES = 70_000
_SETTLE_SECONDS = 4.0


def page(running: int) -> bytes:
    """A page with the gauges of a busy or idle vLLM in the midst of other families."""
    engine = EngineMetrics("org/A-Model-With-A-Long-Name", block_size=16, num_blocks=10_000)
    engine.observe_with(lambda: Gauges(running, 0, running / 100, 1000, 500, 0))
    own = engine.render()
    filler = own.replace(b"vllm:", b"vllm:further_")
    copies = max(1, (_PAGE_BYTES - len(own)) // len(filler))
    return filler + own + filler * (copies - 1)


class _Metrics(asyncio.Protocol):
    """Answers every request with the same page."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer * data.count(b"\r\n\r\n"))  # type: ignore[attr-defined]


async def serve(running: int) -> None:
    """Answer for every loopback address; print the port; end with stdin."""
    body = page(running)
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    loop = asyncio.get_running_loop()
    # Bound to all addresses so that each of 127.0.0.0/8 is one engine; nothing beyond loopback is ever asked for it.
    server = await loop.create_server(lambda: _Metrics(answer), "0.0.0.0", 0, backlog=1024)
    say(str(server.sockets[0].getsockname()[1]))
    await loop.run_in_executor(None, sys.stdin.read)


async def read(port: int, engines: int, seconds: float) -> None:
    """Run the feed; print the share of a core that it takes once every engine was read."""
    fd = LoadBoard.create(4, 16384)
    board = LoadBoard(fd, 4, 16384)
    feed = EngineFeed(
        cells=board.engine_cells(),
        is_idle=board.is_idle,
        pool=UpstreamPool(PoolLimits(2.0, 4.0, 1), upstream_tls(None)),
        pace=Pace(),
        deadline_seconds=2.0,
        clock=time.monotonic,
        draw=random.random,
    )
    endpoints = tuple(
        Endpoint(i, f"pod-{i}", f"uid-{i}", f"127.20.{i // 250}.{i % 250 + 1}", port) for i in range(engines)
    )
    feed.follow(Snapshot(1, (Server("ns", "s", None, "vLLM", endpoints),)))
    reader = board.reader(range(engines))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(feed.run())
        await asyncio.sleep(_SETTLE_SECONDS)
        before, began = time.process_time(), time.monotonic()
        context = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(seconds)
        share = (time.process_time() - before) / (time.monotonic() - began)
        after = resource.getrusage(resource.RUSAGE_SELF)
        loads = reader.engines(time.monotonic())
        running.cancel()
    kernel = (after.ru_stime - context.ru_stime) / seconds
    say(f"{share:.4f} {kernel:.4f} {max(loads.ages):.2f} {sum(loads.failures):.0f} {loads.running[0]:.0f}")
    os.close(fd)


def measure(running: int, engines: int, seconds: float) -> list[float]:
    """Run both processes; returns CPU share, its kernel part, oldest age, failures and what the first engine said."""
    here = [sys.executable, "-m", "tests.bench.gateway.scrape"]
    server = subprocess.Popen(
        [*here, "--serve", str(running)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        size = ["--engines", str(engines), "--seconds", str(seconds)]
        done = subprocess.run([*here, "--read", port, *size], stdout=subprocess.PIPE, text=True, check=True)
    finally:
        server.communicate()
    return [float(number) for number in done.stdout.split()]


def main(argv: Sequence[str]) -> int:
    """Measure both, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--serve", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        uvloop.run(serve(options.serve))
        return 0
    if options.read is not None:
        uvloop.run(read(options.read, options.engines, options.seconds))
        return 0
    report = Report()
    asyncio.run(compare(options.engines, options.seconds, report))
    return len(report.missed)


async def compare(engines: int, seconds: float, report: Report) -> None:
    """Measure with all engines idle and with all at work, and judge the former."""
    say(f"\n### Reading {engines} engines, pages of {len(page(0))} bytes, pauses as by default\n")
    shares: dict[str, float] = {}
    for name, running in (("idle", 0), ("at work", 7)):
        share, kernel, oldest, failures, said = await asyncio.to_thread(measure, running, engines, seconds)
        assert said == running
        assert not failures
        shares[name] = share
        say(f"  {name:8} {share:.4f} of a core ({kernel:.4f} in the kernel), oldest report {oldest:.2f} s")
    report.goal(f"share of a core to read {engines} idle engines", shares["idle"], _IDLE_GOAL, at_least=False)


async def scrape(plan: Plan, report: Report) -> None:
    """The supervisor's share: reading the load of 500 engines."""
    # Engines that began together are asked together at first: whole idle pauses, so that none counts half.
    await compare(500, Pace().idle_seconds * (3 if plan.quick else 6), report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
