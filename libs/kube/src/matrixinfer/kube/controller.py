"""The loop around one reconciler: key → observe → plan → apply → outcome.

Owns workers, the queue and expectations of one kind. Knows nothing of what is reconciled: a reconciler is two
functions without `await`. The trap it exists for: whatever one key does (raise, fail, hang up to its deadlines), the
others go on.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar, assert_never

import structlog

from matrixinfer.kube import metrics
from matrixinfer.kube.apply import Executor, Failure
from matrixinfer.kube.errors import LeaseLost
from matrixinfer.kube.events import EventRecorder, ObjectReference
from matrixinfer.kube.expectations import Expectations
from matrixinfer.kube.plan import Plan, WriteStatus
from matrixinfer.kube.queue import Backoff, WorkQueue
from matrixinfer.kube.reconcile import Again, Done, Outcome, Retry, Terminal, notes_after, outcome
from matrixinfer.kube.resource import Key, Resource
from matrixinfer.kube.sources import Source
from matrixinfer.kube.store import Change, Store

__all__ = ["Controller", "Reconciler"]

Seen = TypeVar("Seen")
log = structlog.get_logger(__name__)


class Reconciler(Protocol[Seen]):
    """What a controller supplies."""

    def observe(self, key: Key) -> Seen | None:
        """Gather from stores what the plan needs; None when the object is gone. Synchronous, no I/O."""
        ...

    def plan(self, seen: Seen, now: datetime) -> Plan:
        """Decide. Pure: same arguments, same plan; `seen` is not changed."""
        ...


class Controller(Generic[Seen]):
    """One reconciler with its queue and workers. Hand it to a `Manager`, which runs it.

    `primary` is the store of the reconciled kind; every change in it wakes its own key. `sources` say which keys
    other changes wake. `explain` is a pure function that says failures in the status; without it the plan's status is
    written.
    """

    def __init__(
        self,
        name: str,
        primary: Store[Any],
        reconciler: Reconciler[Seen],
        *,
        sources: Iterable[Source[Any]] = (),
        field_manager: str,
        workers: int = 32,
        backoff: Backoff | None = None,
        explain: Callable[[Seen, Plan, Sequence[Failure], datetime], Sequence[WriteStatus]] | None = None,
        expectation_seconds: float = 30.0,
        deadline_seconds: float = 10.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.primary = primary
        self.field_manager = field_manager
        self.deadline_seconds = deadline_seconds
        self._reconciler = reconciler
        self._sources = [Source(primary, self._own_key), *sources]
        self._workers = workers
        self._explain = explain
        self._expectation_seconds = expectation_seconds
        self._now = now
        self._monotonic = monotonic
        self._queue = WorkQueue(name, backoff=backoff, draw=draw)
        self._running = False
        metrics.MAX_WORKERS.labels(name).set(workers)
        for result in ("success", "requeue_after", "error", "terminal_error"):
            metrics.RECONCILES.labels(name, result)
        self._active = metrics.ACTIVE_WORKERS.labels(name)
        self._errors = metrics.RECONCILE_ERRORS.labels(name)
        self._seconds = metrics.RECONCILE_SECONDS.labels(name)

    @property
    def idle(self) -> bool:
        """True when no key waits, is being worked on or is due later."""
        return self._queue.idle

    def enqueue(self, key: Key) -> None:
        """Look at this key soon. For feeds that are no watch; ignored while the controller does not run."""
        if self._running:
            self._queue.add(key)

    async def run(
        self, executor: Executor, recorder: EventRecorder, stores_of: Callable[[Resource], Sequence[Store[Any]]]
    ) -> None:
        """Reconcile until `stop`; then return once the passes under way are done. The stores must be synced."""
        expectations = Expectations(stores_of, timeout_seconds=self._expectation_seconds, monotonic=self._monotonic)
        self._running = True
        subscriptions = [source.store.subscribe(self._waker(source)) for source in self._sources]
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._workers):
                    group.create_task(self._work(executor, recorder, expectations), name=f"{self.name}-{index}")
        finally:
            # The stores may go on without us, where only a term of office ended and not the process.
            for unsubscribe in subscriptions:
                unsubscribe()

    def stop(self) -> None:
        """Take no new key."""
        self._running = False
        self._queue.shut_down()

    def _own_key(self, value: Any) -> Iterable[Key]:
        return (self.primary.projection.identify(value).key,)

    def _waker(self, source: Source[Any]) -> Callable[[Change[Any]], None]:
        def wake(change: Change[Any]) -> None:
            for key in source.woken_by(change):
                self.enqueue(key)

        return wake

    async def _work(self, executor: Executor, recorder: EventRecorder, expectations: Expectations) -> None:
        while (key := await self._queue.get()) is not None:
            self._active.inc()
            began = self._monotonic()
            try:
                await self._look_at(key, executor, recorder, expectations)
            finally:
                self._queue.done(key)
                self._seconds.observe(self._monotonic() - began)
                self._active.dec()

    async def _look_at(self, key: Key, executor: Executor, recorder: EventRecorder, expectations: Expectations) -> None:
        if (seconds := expectations.wait_seconds(key)) > 0:
            # The change that makes the writes visible usually wakes the key sooner.
            self._queue.add_after(key, seconds)
            return
        if expectations.gave_up(key):
            metrics.EXPECTATION_TIMEOUTS.labels(self.name).inc()
            log.warning("own_writes_not_seen", controller=self.name, key=str(key))
        try:
            result = await self._pass(key, executor, recorder, expectations)
        except LeaseLost:
            raise
        # A planner's bug concerns one key; the others must go on.
        except Exception as exc:
            metrics.RECONCILE_PANICS.labels(self.name).inc()
            log.exception("reconcile_raised", controller=self.name, key=str(key))
            result = Retry(f"{type(exc).__name__}: {exc}")
        self._settle(key, result)

    async def _pass(self, key: Key, executor: Executor, recorder: EventRecorder, expectations: Expectations) -> Outcome:
        seen = self._reconciler.observe(key)
        if seen is None:
            expectations.forget(key)
            return Done()
        identity = self.primary.identity(key)
        now = self._now()
        plan = self._reconciler.plan(seen, now)
        explain = self._explain
        report = await executor.carry_out(
            plan, None if explain is None else lambda failures: explain(seen, plan, failures, now)
        )
        expectations.expect(key, report.written)
        if plan.why and report.written:
            log.info("reconciled", controller=self.name, key=str(key), why=plan.why, writes=len(report.written))
        if identity is not None:
            reference = ObjectReference(self.primary.resource, key, identity.uid, identity.resource_version)
            for note in notes_after(plan, report):
                recorder.record(reference, note)
        return outcome(plan, report)

    def _settle(self, key: Key, result: Outcome) -> None:
        match result:
            case Done():
                self._queue.forget(key)
                self._count("success")
            case Again(after):
                self._queue.forget(key)
                self._queue.add_after(key, after.total_seconds())
                self._count("requeue_after")
            case Terminal(error):
                self._queue.forget(key)
                self._count("terminal_error")
                metrics.TERMINAL_ERRORS.labels(self.name).inc()
                log.warning("reconcile_terminal", controller=self.name, key=str(key), error=error)
            case Retry(error, after):
                seconds = self._queue.retry(key, at_least=after.total_seconds())
                self._count("error")
                self._errors.inc()
                log.warning(
                    "reconcile_failed",
                    controller=self.name,
                    key=str(key),
                    error=error,
                    again_in_seconds=round(seconds, 2),
                )
            case _:
                assert_never(result)

    def _count(self, result: str) -> None:
        metrics.RECONCILES.labels(self.name, result).inc()
