"""How fast and how sparing the gateway is, against a bare relay and the peers, in one run on one machine.

`python -m tests.bench.gateway [--quick] [--only SCENARIO …] [--rounds N]` gives one core to whoever is measured and the
others to engines and load. Every subject answers before its clock starts, runs alone, and takes its turn in each of
three rounds; tables show medians. Seconds depend on the machine, ratios hardly do: the last line has them all.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import uvloop
from tests.bench.gateway import scenarios
from tests.bench.gateway.changes import changes
from tests.bench.gateway.measure import CORES
from tests.bench.gateway.report import Report, say
from tests.bench.gateway.scrape import scrape

SCENARIOS: Final[dict[str, Callable[[scenarios.Plan, Report], Awaitable[None]]]] = {
    "chat": scenarios.chat,
    "streams": scenarios.streams,
    "long": scenarios.long_prompts,
    "endpoints": scenarios.many_endpoints,
    "scrape": scrape,
    "changes": changes,
    "workers": scenarios.two_workers,
    "memory": scenarios.memory,
    "crowd": scenarios.crowd,
    "decision": partial(scenarios.another_bench, "decision", quick=("--rounds", "5")),
    "quality": partial(scenarios.another_bench, "quality", quick=("--seeds", "1")),
}


async def _run(names: list[str], plan_of: Callable[[Path], scenarios.Plan]) -> int:
    report = Report()
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        plan = plan_of(Path(folder))
        for name in names:
            await SCENARIOS[name](plan, report)
    report.summary()
    return 1 if report.missed else 0


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="bench-gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, fewer peers: minutes, not an hour")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each comparison")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds = arguments.rounds or (1 if quick else 3)
    say(
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}; core {CORES.gateway[0]} for the subject, "
        f"{', '.join(map(str, CORES.rest))} for engines and load; {rounds} round{'s' * (rounds > 1)}"
    )
    if CORES.rest == CORES.gateway:
        say("Only one core: load and subject share it, so requests per second mean nothing; CPU seconds still do.")
    missed = uvloop.run(_run(arguments.only, lambda logs: scenarios.Plan(logs, rounds=rounds, quick=quick)))
    sys.exit(missed if arguments.strict else 0)


if __name__ == "__main__":
    main()
