"""What engines say of their load: asked here for all workers, and written where they read it without asking.

Owns the connections to engines' /metrics and the engine cells of the board, whose one writer is this process. Each
engine has a task of its own, so a hung one delays nobody; those that failed last time share a small gate of their own,
so that many hung ones do not hold the places of the healthy. Refuses any decision: a number that could not be read
stays as it was and grows old, a pod that is gone is gone by the snapshot's word only.

The trap: a slot may pass to another pod, and must not pass that pod's numbers on. `follow` is called before a snapshot
is published, and makes unknown what is new.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Final

import msgspec

from matrixinfer.engines.catalog import engine_named
from matrixinfer.engines.engine import Engine
from matrixinfer.engines.errors import UnsupportedBackend
from matrixinfer.engines.exposition import ExpositionTooLarge
from matrixinfer.engines.state import EngineState, StateReader
from matrixinfer.engines.vllm import VLLM
from matrixinfer.gateway import metrics
from matrixinfer.gateway.board import EngineCells
from matrixinfer.gateway.core.load import EngineReport
from matrixinfer.gateway.core.scrape import Pace, adapters_by_server, pause_seconds, report_of
from matrixinfer.gateway.core.types import Endpoint, Server, Slot, Snapshot
from matrixinfer.gateway.feeds.beat import Beat
from matrixinfer.gateway.wire.fetch import Fetcher, FetchFailed, Reason
from matrixinfer.gateway.wire.pool import Peer, UpstreamPool
from matrixinfer.service.logging import get_logger

__all__ = ["EngineFeed"]

log = get_logger("engines")

_FIRST_LOOKS_SECONDS: Final = 0.25
_AT_ONCE: Final = 64
_FAILING_AT_ONCE: Final = 16
_PAGE_BYTES: Final = 8 << 20
_METRICS_TEXT: Final = "text/plain;version=0.0.4"
_DEADLINE: Final = "deadline"
_SILENT: Final = "silent"
"""The engine answers, and says nothing of requests. Not counted against it."""


@dataclass(slots=True)
class _Watched:
    """One engine, and what is known of it."""

    endpoint: Endpoint
    engine: Engine
    adapters_wanted: frozenset[str] = frozenset()
    reader: StateReader = field(default_factory=lambda: StateReader(limit_bytes=_PAGE_BYTES))
    state: EngineState | None = None
    report: EngineReport = field(default_factory=EngineReport)
    read_at: float = -inf
    failures: int = 0
    problem: str = ""
    adapters: tuple[str, ...] = ()
    task: asyncio.Task[None] | None = None

    @property
    def peer(self) -> Peer:
        """Where its metrics are."""
        endpoint = self.endpoint
        if endpoint.metrics_port is None:
            return Peer.of(endpoint)
        return Peer(endpoint.address, endpoint.metrics_port)

    @property
    def works(self) -> bool:
        """Whether it had work when it was last read."""
        return self.state is not None and (self.state.running or 0) + (self.state.waiting or 0) > 0


class EngineFeed:
    """Reads all engines of the newest snapshot, for ever."""

    def __init__(
        self,
        *,
        cells: EngineCells,
        is_idle: Callable[[Slot], bool],
        pool: UpstreamPool,
        pace: Pace,
        deadline_seconds: float,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        """`is_idle` tells whether we have requests on a slot; `clock` is the one that ages are reckoned by."""
        self._cells = cells
        self._is_idle = is_idle
        self._pool = pool
        self._fetcher = Fetcher(pool, limit_bytes=_PAGE_BYTES)
        self._pace = pace
        self._beat = Beat(pace.beat_seconds)
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._draw = draw
        self._watched: dict[str, _Watched] = {}
        self._owners: dict[Slot, str] = {}
        self._changed = asyncio.Event()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._failing_gate = asyncio.Semaphore(_FAILING_AT_ONCE)
        self._tell: Callable[[], None] = lambda: None

    def on_adapters(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever `adapters_of` has changed for some pod."""
        self._tell = tell

    def adapters_of(self, uid: str) -> tuple[str, ...]:
        """Adapters that routes name and that the pod has loaded, sorted."""
        watched = self._watched.get(uid)
        return watched.adapters if watched is not None else ()

    def follow(self, snapshot: Snapshot) -> None:
        """Read the engines of `snapshot` from now on. Call it before the snapshot is published."""
        wanted: dict[str, frozenset[str]] = {}
        for server, adapters in zip(snapshot.servers, adapters_by_server(snapshot), strict=True):
            for endpoint in server.endpoints:
                # A pod that several servers select is one engine, read as the first of them says.
                if endpoint.uid not in wanted:
                    self._watch(server, endpoint)
                wanted[endpoint.uid] = wanted.get(endpoint.uid, frozenset()) | adapters
        for uid in self._watched.keys() - wanted.keys():
            self._forget(uid)
        for uid, adapters in wanted.items():
            self._watched[uid].adapters_wanted = adapters
        self._changed.set()

    def ages(self) -> list[float]:
        """Seconds since each engine was read; infinite where it never was."""
        now = self._clock()
        return [now - watched.read_at for watched in self._watched.values()]

    async def run(self) -> None:
        """Keep a task for each engine. Ends when cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                for watched in self._watched.values():
                    if watched.task is None:
                        watched.task = tasks.create_task(self._attend(watched), name=f"engine-{watched.endpoint.pod}")
                self._pool.sweep(asyncio.get_running_loop().time(), {w.peer for w in self._watched.values()})
                await self._changed.wait()

    def describe(self) -> object:
        """What the debug page shows."""
        now = self._clock()
        return [
            {
                "pod": watched.endpoint.pod,
                "uid": uid,
                "slot": watched.endpoint.slot,
                "address": f"{watched.peer.address}:{watched.peer.port}{watched.engine.metrics_path}",
                "age_seconds": round(now - watched.read_at, 3) if watched.read_at > -inf else None,
                "failures": watched.failures,
                "problem": watched.problem,
                "report": msgspec.to_builtins(watched.state) if watched.state is not None else None,
                "prefix_hit_ratio": watched.report.prefix_hit_ratio,
                "adapters": watched.adapters,
            }
            for uid, watched in self._watched.items()
        ]

    # -- which engines --------------------------------------------------------------------------------------------

    def _watch(self, server: Server, endpoint: Endpoint) -> None:
        if self._owners.get(endpoint.slot) != endpoint.uid:
            self._owners[endpoint.slot] = endpoint.uid
            self._cells.forget(endpoint.slot)
        before = self._watched.get(endpoint.uid)
        if before is None:
            self._watched[endpoint.uid] = _Watched(endpoint, _engine(server))
            return
        # Whatever has changed about the pod, its numbers stay.
        before.endpoint, before.engine = endpoint, _engine(server)

    def _forget(self, uid: str) -> None:
        watched = self._watched.pop(uid)
        if watched.task is not None:
            watched.task.cancel()

    # -- one engine -----------------------------------------------------------------------------------------------

    async def _attend(self, watched: _Watched) -> None:
        await asyncio.sleep(self._draw() * _FIRST_LOOKS_SECONDS)
        while True:
            async with self._failing_gate if watched.failures else self._gate:
                try:
                    await self._look(watched)
                # The edge of one engine: whatever its bytes do to us must cost this engine only, and must be seen.
                except Exception:
                    log.exception("engine_look_failed", pod=watched.endpoint.pod)
                    self._fail(watched, Reason.BROKEN, "a fault of the gateway's own; the log has it")
            busy = watched.works or not self._is_idle(watched.endpoint.slot)
            await self._beat.sleep(
                pause_seconds(
                    self._pace, busy=busy, failures=watched.failures, engines=len(self._watched), draw=self._draw()
                )
            )

    async def _look(self, watched: _Watched) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                page = await self._fetcher.get(watched.peer, watched.engine.metrics_path, _METRICS_TEXT)
            state = watched.reader.read(page)
        except TimeoutError:
            self._fail(watched, _DEADLINE, f"no answer within {self._deadline_seconds:g} s")
        except ExpositionTooLarge as exc:
            self._fail(watched, Reason.SIZE, str(exc))
        except FetchFailed as exc:
            self._fail(watched, exc.reason, str(exc))
        else:
            self._note(watched, state)
            metrics.SCRAPE_SECONDS.observe(watched.read_at - began)
            await self._look_for_adapters(watched)

    def _note(self, watched: _Watched, state: EngineState) -> None:
        watched.read_at, watched.failures, watched.problem = self._clock(), 0, ""
        watched.report, watched.state = report_of(state, watched.state, watched.report), state
        self._cells.report(watched.endpoint.slot, watched.report, watched.read_at)
        if not state.says_load:
            watched.problem = "the page says nothing of requests"
            metrics.SCRAPE_FAILURES.labels(_SILENT).inc()

    def _fail(self, watched: _Watched, reason: str, problem: str) -> None:
        watched.failures += 1
        watched.problem = problem
        self._cells.fail(watched.endpoint.slot)
        metrics.SCRAPE_FAILURES.labels(reason).inc()

    async def _look_for_adapters(self, watched: _Watched) -> None:
        """Note which of the wanted adapters are loaded. An engine that does not tell keeps those it had."""
        lora, wanted = watched.engine.lora, watched.adapters_wanted
        if lora is None or not (wanted or watched.adapters):
            return
        in_use = (watched.state.adapters if watched.state is not None else None) or frozenset()
        loaded = frozenset(watched.adapters)
        with suppress(TimeoutError, FetchFailed, msgspec.DecodeError, RecursionError):
            async with asyncio.timeout(self._deadline_seconds):
                listing = await self._fetcher.get(watched.peer, lora.models_path, "application/json")
            loaded = lora.loaded(msgspec.json.decode(listing))
        adapters = tuple(sorted((loaded | in_use) & wanted))
        if adapters != watched.adapters:
            watched.adapters = adapters
            self._tell()


def _engine(server: Server) -> Engine:
    try:
        return engine_named(server.engine)
    except UnsupportedBackend:
        # Whatever it is, it most likely speaks as vLLM does; if not, its looks fail and say so.
        return VLLM
