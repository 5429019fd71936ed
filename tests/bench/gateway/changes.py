"""How soon a change of an object is in effect in every worker, and whether it costs anybody a request.

Routes, servers and pods are changed again and again while two workers are under load. The clock starts before the
change is made on the API server and stops when every one of several connections, spread over both workers, was
answered by the new state. So the answer of the request itself is in the figure, and half of what a connection waits
between two requests.
"""

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

from tests.bench.gateway.cluster import Cluster
from tests.bench.gateway.measure import CORES, Load, engines, load, until
from tests.bench.gateway.report import Report
from tests.bench.gateway.scenarios import Plan
from tests.bench.gateway.subjects import gateway

__all__ = ["changes"]

_GOAL_MS: Final = 200.0
_WORKERS: Final = 2
_EACH: Final = 2
"""Connections to every worker, at least."""
_PAUSE_SECONDS: Final = 0.005
_PATIENCE_SECONDS: Final = 10.0
_RATE: Final = 100.0
_CALM_SECONDS: Final = (0.02, 0.12)
"""Between two changes: never in step with whatever gathers them."""
_HEAD: Final = "POST /v1/completions HTTP/1.1\r\nhost: gw\r\nx-matrixinfer-explain: 1\r\nx-request-id: {}\r\n"
_BODY: Final = b'{"model":"m","prompt":"x","max_tokens":1}'


@dataclass(frozen=True, slots=True)
class _Change:
    """Something that is changed, and the pod that answers from then on."""

    kind: str
    make: Callable[[], None]
    pod: str


class _Probe:
    """One connection, which stays with one worker, and asks again and again."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self.failed: list[str] = []
        self._reader = reader
        self._writer = writer

    async def ask(self) -> str:
        """Return the pod that answered, which is none where the request failed."""
        head = _HEAD.format(self.name) + f"content-length: {len(_BODY)}\r\n\r\n"
        self._writer.write(head.encode() + _BODY)
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        await self._reader.readexactly(int(headers["content-length"]))
        if " 200 " not in first:
            self.failed.append(first)
        told = dict(part.strip().split("=", 1) for part in headers.get("x-matrixinfer-decision", "pod=").split(";"))
        return told["pod"]

    async def until_answered_by(self, pod: str) -> float:
        """Return when that was. Raises TimeoutError."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while await self.ask() != pod:
                await asyncio.sleep(_PAUSE_SECONDS)
        return time.monotonic()

    def close(self) -> None:
        self._writer.close()


async def changes(plan: Plan, report: Report) -> None:
    """Change a route's weights, a pod's readiness and a server's selector under load, with two workers."""
    seconds, calm = 20.0 if plan.quick else 120.0, random.Random(1)
    async with engines(2, 20, plan.logs) as addresses:
        cluster = _cluster(addresses)
        async with gateway(cluster, plan.logs, _WORKERS, (*CORES.gateway, *CORES.rest)) as there:
            probes = await _probes(there.target, plan.logs / "gateway.log")
            delays: defaultdict[str, list[float]] = defaultdict(list)
            async with asyncio.TaskGroup() as tasks:
                loading = tasks.create_task(load(Load(seconds, rate=_RATE), there.target, there.process))
                for change in _changes(cluster):
                    if loading.done():
                        break
                    delays[change.kind].append(await _delay_ms(change, probes))
                    await asyncio.sleep(calm.uniform(*_CALM_SECONDS))
            for probe in probes:
                probe.close()
    run = loading.result()
    failed = run.errors + sum(len(probe.failed) for probe in probes)
    every = [delay for of_kind in delays.values() for delay in of_kind]
    report.table(
        f"{len(every)} changes under load, {_WORKERS} workers: ms until every worker acts on one",
        ("what changes", "changes", "p50", "p99", "max"),
        [
            (kind, str(len(values)), *(f"{_quantile(values, share):.0f}" for share in (0.5, 0.99, 1.0)))
            for kind, values in [*delays.items(), ("all", every)]
        ],
    )
    report.goal("ms until a change is in effect, max", max(every), _GOAL_MS, at_least=False)
    report.goal("requests that changes failed", failed, 0, at_least=False)


async def _delay_ms(change: _Change, probes: list[_Probe]) -> float:
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(probe.until_answered_by(change.pod)) for probe in probes]
        # A turn of the loop, so that all of them are asking by now.
        await asyncio.sleep(0)
        change.make()
    return 1000 * (max(task.result() for task in waiting) - began)


def _cluster(addresses: list[str]) -> Cluster:
    """Two servers with a pod each; the route leads to the first."""
    cluster = Cluster()
    for name, engine in zip("ab", addresses, strict=True):
        cluster.pod(name, name, engine)
        cluster.server(name, name, int(engine.rpartition(":")[2]))
    cluster.route("route", "m", _targets(a=100, b=0), [{"modelServerName": "b"}])
    return cluster


def _targets(**weights: int) -> list[Mapping[str, object]]:
    return [{"modelServerName": name, "weight": weight} for name, weight in weights.items()]


def _changes(cluster: Cluster) -> Iterator[_Change]:
    """Changes without an end; each can be told by the pod that answers."""

    def weigh(**weights: int) -> None:
        rule = {"name": "all", "targetModels": _targets(**weights), "fallbacks": [{"modelServerName": "b"}]}
        cluster.change("ModelRoute", "route", rules=[rule])

    def select(app: str) -> None:
        cluster.change("ModelServer", "a", workloadSelector={"matchLabels": {"app": app}})

    return cycle(
        (
            _Change("weights of a route", partial(weigh, a=0, b=100), "b"),
            _Change("weights of a route", partial(weigh, a=100, b=0), "a"),
            _Change("a pod is not ready", partial(cluster.set_ready, "a", ready=False), "b"),
            _Change("a pod is ready", partial(cluster.set_ready, "a", ready=True), "a"),
            _Change("selector of a server", partial(select, "b"), "b"),
            _Change("selector of a server", partial(select, "a"), "a"),
        )
    )


async def _probes(target: str, log: Path) -> list[_Probe]:
    """Open connections until every worker has enough of them; the access log says whose they are."""
    host, _, port = target.rpartition(":")
    opened: list[_Probe] = []
    while True:
        opened.append(_Probe(f"probe-{len(opened)}", *await asyncio.open_connection(host, int(port))))
        await opened[-1].ask()
        await until("the access log", partial(_is_logged, log, opened[-1].name))
        workers = _workers(log)
        of_worker = [[probe for probe in opened if workers[probe.name] == number] for number in set(workers.values())]
        if len(of_worker) == _WORKERS and min(map(len, of_worker)) >= _EACH:
            return [probe for probes in of_worker for probe in probes]


def _is_logged(log: Path, name: str) -> bool:
    return name in _workers(log)


def _workers(log: Path) -> dict[str, int]:
    """Return by the name of each probe which worker it asks."""
    records = [json.loads(line) for line in log.read_text().splitlines() if '"probe-' in line]
    return {record["request_id"]: record["worker"] for record in records}


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
