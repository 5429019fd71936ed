"""Starts and stops the parts of a controller process in order.

Start: watches → all caches synced → lease → workers. Followers stop after the second step and keep their caches warm,
so taking over costs a lease period and no list. Stop: no new keys → passes under way finish (bounded) → events sent →
lease released → watches closed. A crash of any part, or a lost lease, cancels all the others and is raised; the
process is expected to exit and be restarted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from matrixinfer.kube.apply import WRITES_IN_FLIGHT, Executor
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings, Elector
from matrixinfer.kube.events import EventRecorder

__all__ = ["Manager"]

log = structlog.get_logger(__name__)
Task = Callable[[], Awaitable[None]]


class Manager:
    """One process's controllers. `run` is the whole life of it.

    `leader_tasks` run only under the lease, next to the workers, and are cancelled with them; `background` runs from
    the start on every replica. Either may run for ever; one that raises ends the process.
    """

    def __init__(
        self,
        client: Client,
        cache: Cache,
        controllers: Sequence[Controller[Any]],
        *,
        component: str,
        election: ElectionSettings | None = None,
        leader_tasks: Sequence[Task] = (),
        background: Sequence[Task] = (),
        recorder: EventRecorder | None = None,
        drain_seconds: float = 10.0,
        writes_in_flight: int = WRITES_IN_FLIGHT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recorder = recorder or EventRecorder(
            client, component, instance=election.identity if election else component
        )
        self._client = client
        self._cache = cache
        self._controllers = controllers
        self._elector = Elector(client, election, monotonic=monotonic) if election else None
        self._leader_tasks = leader_tasks
        self._background = background
        self._drain_seconds = drain_seconds
        self._writes_in_flight = writes_in_flight
        self._leading = False

    @property
    def ready(self) -> bool:
        """True once all caches are synced; followers are ready too."""
        return self._cache.synced

    @property
    def leading(self) -> bool:
        """True while the workers run."""
        return self._leading

    async def run(self, stopping: asyncio.Event | None = None) -> None:
        """Run until `stopping` is set, then stop in order and return; raises what made it stop otherwise."""
        stopping = stopping or asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._cache.run(), name="cache")]
                helpers.append(group.create_task(self.recorder.run(), name="events"))
                helpers.extend(group.create_task(_awaited(task), name="background") for task in self._background)
                await self._until_stopped(stopping)
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as exc:
            raise _first_cause(exc) from exc

    async def _until_stopped(self, stopping: asyncio.Event) -> None:
        if not await _unless(stopping, self._cache.wait_synced()):
            return
        log.info("caches_synced")
        if self._elector is None:
            await self._lead(stopping)
            return
        await self._elect(self._elector, stopping)

    async def _elect(self, elector: Elector, stopping: asyncio.Event) -> None:
        """Wait for the lease and lead. Stopping ends the waiting at once; leading ends itself, after its drain."""

        async def lead() -> None:
            await self._lead(stopping)

        async with asyncio.TaskGroup() as group:
            candidate = group.create_task(elector.run(lead), name="election")
            signal = group.create_task(_awaited(stopping.wait), name="stopping")
            await asyncio.wait({candidate, signal}, return_when=asyncio.FIRST_COMPLETED)
            signal.cancel()
            if not self._leading:
                candidate.cancel()

    async def _lead(self, stopping: asyncio.Event) -> None:
        self._leading = True
        may_write = self._elector.holds if self._elector else _always
        in_flight = asyncio.Semaphore(self._writes_in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_awaited(task), name="leader-task") for task in self._leader_tasks]
                workers = [
                    group.create_task(
                        controller.run(
                            self._executor(controller, in_flight, may_write), self.recorder, self._cache.stores_of
                        ),
                        name=controller.name,
                    )
                    for controller in self._controllers
                ]
                await stopping.wait()
                await self._drain(workers)
                for task in tasks:
                    task.cancel()
        finally:
            self._leading = False

    def _executor(
        self, controller: Controller[Any], in_flight: asyncio.Semaphore, may_write: Callable[[], bool]
    ) -> Executor:
        return Executor(
            self._client,
            self._cache.stores_of,
            field_manager=controller.field_manager,
            in_flight=in_flight,
            deadline_seconds=controller.deadline_seconds,
            may_write=may_write,
        )

    async def _drain(self, workers: Sequence[asyncio.Task[None]]) -> None:
        for controller in self._controllers:
            controller.stop()
        _, late = await asyncio.wait(workers, timeout=self._drain_seconds) if workers else (set(), set())
        for worker in late:
            log.warning("worker_cut_off", controller=worker.get_name(), after_seconds=self._drain_seconds)
            worker.cancel()
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self.recorder.flush()
        except TimeoutError:
            log.warning("events_cut_off", after_seconds=self._drain_seconds)


async def _awaited(task: Callable[[], Awaitable[Any]]) -> None:
    await task()


async def _unless(stopping: asyncio.Event, work: Awaitable[None]) -> bool:
    """Do the work, or stop doing it when `stopping` is set; True when it was done."""

    async def do() -> None:
        await work

    async with asyncio.TaskGroup() as group:
        working = group.create_task(do())
        signal = group.create_task(_awaited(stopping.wait))
        await asyncio.wait({working, signal}, return_when=asyncio.FIRST_COMPLETED)
        done = working.done()
        working.cancel()
        signal.cancel()
    return done


def _always() -> bool:
    return True


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception inside, so that callers see `LeaseLost` and not its wrapping."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
