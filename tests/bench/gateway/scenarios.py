"""What is asked of the gateway, and which numbers come of it.

Comparisons are by requests (or chunks) per second of the subject's own CPU: on a core that is full it is the same as
requests per second, and it does not depend on what else the machine does. The wall-clock figures are shown beside it.
"""

import asyncio
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from tests.bench.gateway.measure import CORES, Load, Process, Run, engines, get, load
from tests.bench.gateway.report import Report, median, say
from tests.bench.gateway.subjects import (
    ENVOY,
    ENVOY_LEAST,
    LITELLM,
    OURS,
    RELAY,
    SMG,
    VLLM_ROUTER,
    VLLM_ROUTER_CACHE,
    Subject,
    Unavailable,
    ours,
)

__all__ = [
    "Plan",
    "another_bench",
    "chat",
    "crowd",
    "long_prompts",
    "many_endpoints",
    "memory",
    "streams",
    "two_workers",
]

_ENDPOINTS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How thorough a run is."""

    logs: Path
    rounds: int = 3
    quick: bool = False

    @property
    def seconds(self) -> float:
        """Length of one measurement."""
        return 4.0 if self.quick else 10.0


class _Counts(msgspec.Struct):
    asked: int
    altered: int


@dataclass(slots=True)
class _Found:
    """All rounds of one subject."""

    runs: list[Run]
    intact: bool = True

    def of(self, number: Callable[[Run], float]) -> float:
        return median(map(number, self.runs))


async def _compare(
    plan: Plan, report: Report, subjects: Sequence[Subject], wanted: Load, pace_ms: float = 20
) -> dict[str, _Found]:
    """Measure each subject alone, in turn, round after round."""
    found: dict[str, _Found] = defaultdict(lambda: _Found([]))
    unavailable: set[str] = set()
    async with engines(_ENDPOINTS, pace_ms, plan.logs) as addresses:
        for _ in range(plan.rounds):
            for subject in subjects:
                if subject.name in unavailable:
                    continue
                try:
                    await _measure(plan, subject, addresses, wanted, found[subject.name])
                except Unavailable as exc:
                    unavailable.add(subject.name)
                    found.pop(subject.name, None)
                    report.not_measured(subject.name, str(exc))
    return found


async def _measure(plan: Plan, subject: Subject, addresses: Sequence[str], wanted: Load, found: _Found) -> None:
    async with subject.start(addresses, plan.logs) as there:
        warm = replace(wanted, seconds=1.0, rate=0.0)
        await load(warm, there.target, there.process, headers=there.headers, loose=there.loose)
        get(addresses[0], "/counts")
        run = await load(wanted, there.target, there.process, headers=there.headers, loose=there.loose)
        counts = msgspec.json.decode(get(addresses[0], "/counts") or b"", type=_Counts)
    if run.errors:
        say(f"  {subject.name}: {run.errors} of {run.requests} answers were wrong: {run.first_error}")
    found.intact &= not counts.altered
    found.runs.append(run)


def _settings(subjects: Sequence[Subject], found: dict[str, _Found]) -> None:
    for subject in subjects:
        if subject.name in found:
            say(f"  {subject.name}: {subject.setting}")


def _whether(holds: bool) -> str:
    return "yes" if holds else "no"


# -- one answer each --------------------------------------------------------------------------------------------------


async def chat(plan: Plan, report: Report) -> None:
    """1.8 kB chat requests to 8 endpoints, over 32 connections, each asking again at once."""
    peers = (
        [ENVOY, SMG, VLLM_ROUTER] if plan.quick else [ENVOY, ENVOY_LEAST, SMG, VLLM_ROUTER, VLLM_ROUTER_CACHE, LITELLM]
    )
    subjects = [RELAY, OURS, *peers]
    found = await _compare(plan, report, subjects, Load(plan.seconds))
    _unary_table(report, "Chat, 1.8 kB, 8 endpoints, 32 connections", found)
    _settings(subjects, found)
    us, relay = _rate(found, OURS), _rate(found, RELAY)
    report.goal("chat/relay", us / relay, 0.55)
    if ENVOY.name in found:
        report.goal("chat/envoy", us / max(_rate(found, ENVOY), _rate(found, ENVOY_LEAST)), 1.0)
    if SMG.name in found:
        report.goal("chat/smg", us / _rate(found, SMG), 2.0)
    rivals = [found[peer.name].of(lambda run: run.latency_us["p99"]) for peer in peers if peer.name in found]
    if rivals:
        report.goal(
            "chat p99/best peer's",
            found[OURS.name].of(lambda run: run.latency_us["p99"]) / min(rivals),
            1.0,
            at_least=False,
        )


async def long_prompts(plan: Plan, report: Report) -> None:
    """100 kB prompts to 8 endpoints."""
    peers = [ENVOY] if plan.quick else [ENVOY, SMG, VLLM_ROUTER]
    subjects = [RELAY, OURS, *peers]
    found = await _compare(plan, report, subjects, Load(plan.seconds, size=100_000, distinct=128))
    _unary_table(report, "Chat, 100 kB, 8 endpoints, 32 connections", found)
    report.goal("long/relay", _rate(found, OURS) / _rate(found, RELAY), 0.6)


def _rate(found: dict[str, _Found], subject: Subject) -> float:
    return found[subject.name].of(lambda run: run.requests_per_core_second) if subject.name in found else 0.0


def _unary_table(report: Report, title: str, found: dict[str, _Found]) -> None:
    relay = _rate(found, RELAY) or 1.0
    report.table(
        title,
        ("subject", "requests/s", "per core-second", "÷ relay", "CPU s/1000", "p50 ms", "p99 ms", "MiB", "body intact"),
        [
            (
                name,
                f"{f.of(lambda run: run.requests_per_second):,.0f}",
                f"{f.of(lambda run: run.requests_per_core_second):,.0f}",
                f"{f.of(lambda run: run.requests_per_core_second) / relay:.3f}",
                f"{f.of(lambda run: run.cpu_seconds_per_thousand):.4f}",
                f"{f.of(lambda run: run.latency_us['p50']) / 1000:.2f}",
                f"{f.of(lambda run: run.latency_us['p99']) / 1000:.2f}",
                f"{f.of(lambda run: run.rss_bytes) / 2**20:.0f}",
                _whether(f.intact),
            )
            for name, f in found.items()
        ],
    )


# -- streams ----------------------------------------------------------------------------------------------------------


async def streams(plan: Plan, report: Report) -> None:
    """256 streams: what a chunk costs near capacity, and how much later it comes at the pace of a real engine.

    The price is taken near capacity because at a leisurely pace every chunk wakes a sleeping process, and the CPU time
    measures wake-ups: whoever is faster then pays for more of them.
    """
    subjects = [RELAY, OURS, ENVOY] if plan.quick else [RELAY, OURS, ENVOY, SMG, VLLM_ROUTER]
    busy = Load(plan.seconds, connections=256, stream=True, tokens=400)
    found = await _compare(plan, report, subjects, busy, pace_ms=6)
    relay = found[RELAY.name].of(lambda run: run.chunks_per_core_second)
    report.table(
        "256 streams, a chunk each 6 ms",
        ("subject", "chunks/s", "per core-second", "÷ relay", "µs CPU/chunk", "p50 ms", "p99 ms"),
        [
            (
                name,
                f"{f.of(lambda run: run.chunks / run.seconds):,.0f}",
                f"{f.of(lambda run: run.chunks_per_core_second):,.0f}",
                f"{f.of(lambda run: run.chunks_per_core_second) / relay:.3f}",
                f"{f.of(lambda run: 1e6 * run.cpu_seconds / run.chunks):.1f}",
                f"{f.of(lambda run: _chunk_ms(run, 'p50')):.2f}",
                f"{f.of(lambda run: _chunk_ms(run, 'p99')):.2f}",
            )
            for name, f in found.items()
        ],
    )
    report.goal("chunks/relay", found[OURS.name].of(lambda run: run.chunks_per_core_second) / relay, 0.6)
    paced = Load(plan.seconds, connections=256, stream=True, tokens=120)
    ours_paced = await _compare(plan, report, [OURS], paced, pace_ms=25)
    async with engines(1, 25, plan.logs) as (engine,):
        direct = await load(paced, engine, None)
    p99 = ours_paced[OURS.name].of(lambda run: _chunk_ms(run, "p99"))
    say(f"  a chunk each 25 ms: p99 {p99:.2f} ms through the gateway, {_chunk_ms(direct, 'p99'):.2f} ms without it")
    report.goal("added ms per chunk p99", p99 - _chunk_ms(direct, "p99"), 1.0, at_least=False)


def _chunk_ms(run: Run, quantile: str) -> float:
    return run.chunk_us.get(quantile, 0.0) / 1000


# -- many -------------------------------------------------------------------------------------------------------------


async def many_endpoints(plan: Plan, report: Report) -> None:
    """500 endpoints: what a request costs more than with 8, and what the gateway does while nobody asks."""
    runs: dict[int, Run] = {}
    idle_seconds = 5.0 if plan.quick else 20.0
    idle = 0.0
    for count in (_ENDPOINTS, 500):
        async with engines(count, 20, plan.logs) as addresses, OURS.start(addresses, plan.logs) as there:
            await load(Load(2.0), there.target, there.process)
            runs[count] = await load(Load(plan.seconds), there.target, there.process)
            # What the load left behind (kept connections, series to report) is not idling yet.
            await asyncio.sleep(5.0)
            before = there.process.cpu_seconds()
            await asyncio.sleep(idle_seconds)
            idle = (there.process.cpu_seconds() - before) / idle_seconds
    few, many = (1e6 / runs[count].requests_per_core_second for count in (_ENDPOINTS, 500))
    say(
        f"\n### 500 endpoints\n\n  {few:.0f} µs CPU per request with 8 endpoints, {many:.0f} with 500; "
        f"idle {idle:.2%} of a core\n"
    )
    report.goal("µs more per request with 500 endpoints", many - few, 100.0, at_least=False)
    report.goal("share of a core idle with 500 endpoints", idle, 0.05, at_least=False)


async def two_workers(plan: Plan, report: Report) -> None:
    """Two workers on two cores against one on one."""
    if CORES.total < 4:
        report.not_measured("2 workers against 1", f"needs 2 cores for workers and 2 for load, there are {CORES.total}")
        return
    pair = (CORES.gateway[0], CORES.rest[0])
    rates = []
    async with engines(_ENDPOINTS, 20, plan.logs) as addresses:
        for subject in (ours(1), ours(2, pair)):
            async with subject.start(addresses, plan.logs) as there:
                await load(Load(1.0), there.target, there.process)
                rates.append(
                    (await load(Load(plan.seconds, connections=64), there.target, there.process)).requests_per_second
                )
    report.goal("2 workers/1 worker", rates[1] / rates[0], 1.8)


# -- memory -----------------------------------------------------------------------------------------------------------


async def memory(plan: Plan, report: Report) -> None:
    """A million requests: the worker's memory after the first tenth against that at the end."""
    total = 100_000 if plan.quick else 1_000_000
    async with engines(_ENDPOINTS, 20, plan.logs) as addresses, OURS.start(addresses, plan.logs) as there:
        sizes: list[int] = []
        for _ in range(10):
            await load(Load(3600, requests=total // 10), there.target, there.process)
            sizes.append(there.process.rss_bytes())
    tenths = ", ".join(f"{size / 2**20:.1f}" for size in sizes)
    say(f"\n### Memory over {total:,} requests\n\n  MiB after each tenth: {tenths}\n")
    # The middle of the run against its end: what is filled at the start (caches, pools) is no leak.
    report.goal(f"memory growth over {total:.0e} requests", abs(sizes[-1] / sizes[1] - 1), 0.02, at_least=False)


async def crowd(plan: Plan, report: Report) -> None:
    """10,000 streams at a time (or as many as descriptors allow) through one worker, each complete and exact."""
    # Two descriptors each, and some for the rest: fewer where the machine does not allow a process that many.
    count = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)
    if count < 10_000:
        report.not_measured("10,000 streams", f"a process may have too few descriptors here; {count:,} are measured")
    wanted = Load(1.0, connections=count, stream=True, tokens=6, requests=count, distinct=64)
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(engines(_ENDPOINTS, 3000, plan.logs))
        there = await stack.enter_async_context(OURS.start(addresses, plan.logs))
        before = there.process.rss_bytes()
        measured, peak = await asyncio.gather(load(wanted, there.target, there.process), _peak(there.process, 15))
    say(
        f"\n### {count:,} streams on one worker\n\n  {measured.requests:,} streams, "
        f"{measured.peak_in_flight:,} at a time, {measured.chunks:,} chunks, {measured.errors} wrong; "
        f"{(peak - before) / count / 1024:.1f} KiB a stream\n"
    )
    report.goal("streams at a time", measured.peak_in_flight if not measured.errors else 0, count)


async def _peak(process: Process, seconds: int) -> int:
    most = 0
    for _ in range(seconds * 4):
        most = max(most, process.rss_bytes())
        await asyncio.sleep(0.25)
    return most


# -- benches of their own ---------------------------------------------------------------------------------------------


async def another_bench(name: str, plan: Plan, report: Report, *, quick: Sequence[str]) -> None:
    """Run a bench that stands beside this one, show what it says, and note whether it kept its own budgets."""
    say(f"\n### {name}\n")
    argv = (sys.executable, "-m", f"tests.bench.gateway.{name}", *(quick if plan.quick else ()))
    process = await asyncio.create_subprocess_exec(*argv)
    report.goal(f"{name}: budgets kept", 1.0 if await process.wait() == 0 else 0.0, 1.0)
