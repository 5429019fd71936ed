"""How many requests a draining pod still has, read from its engine's own metrics.

Owns one small loop that asks only pods that are being removed, so a steady fleet is never asked anything. Refuses to
decide: it tells `drain` a number, or nothing. The trap: an engine that is too busy to answer in time is busy, not idle
and not unknown; one that refuses the connection has no requests left to lose.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import aiohttp

from matrixinfer.engines.exposition import ExpositionTooLarge, MetricReader
from matrixinfer.engines.metric_names import Metric
from matrixinfer.infer_controller.fleet import Pod
from matrixinfer.kube.resource import Key

__all__ = ["LoadFeed", "Read", "read_over_http"]

Read = Callable[[Pod], Awaitable[int | None]]
"""Asks one pod for its requests in flight; None when it cannot tell."""

_CONCURRENT: Final = 32
_LARGEST_PAGE: Final = 4 * 2**20
_BUSY: Final = 1


class LoadFeed:
    """Keeps `in_flight` for every pod that is being removed."""

    def __init__(
        self, pods: Callable[[], Iterable[Pod]], read: Read, woken: Callable[[Key], None], *, every_seconds: float
    ) -> None:
        self._pods = pods
        self._read = read
        self._woken = woken
        self._every_seconds = every_seconds
        self.in_flight: Mapping[str, int] = {}

    async def run(self) -> None:
        """Ask again and again; never returns."""
        while True:
            await self.ask_once()
            await asyncio.sleep(self._every_seconds)

    async def ask_once(self) -> None:
        """Ask every draining entry pod once and wake the ModelInfers whose pods became idle."""
        draining = [pod for pod in self._pods() if _is_draining(pod)]
        before, self.in_flight = self.in_flight, await self._numbers(draining)
        for pod in draining:
            if self.in_flight.get(pod.uid) == 0 and before.get(pod.uid) != 0:
                self._woken(Key(pod.namespace, pod.infer))

    async def _numbers(self, pods: Iterable[Pod]) -> Mapping[str, int]:
        limit = asyncio.Semaphore(_CONCURRENT)

        async def ask(pod: Pod) -> tuple[str, int | None]:
            async with limit:
                return pod.uid, await self._read(pod)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(pod)) for pod in pods]
        return {uid: number for uid, number in (task.result() for task in asked) if number is not None}


def _is_draining(pod: Pod) -> bool:
    return pod.removal is not None and not pod.is_terminating and pod.index == 0 and pod.ready and pod.port > 0


def read_over_http(session: aiohttp.ClientSession, *, deadline_seconds: float) -> Read:
    """Return a reader that gets the pod's `/metrics` page."""
    reader = MetricReader([Metric.RUNNING, Metric.WAITING])

    async def read(pod: Pod) -> int | None:
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        try:
            url = f"http://{host}:{pod.port}/metrics"
            async with asyncio.timeout(deadline_seconds), session.get(url, allow_redirects=False) as answer:
                page = await _page(answer) if answer.status == 200 else None
            found = None if page is None else reader.read(page).in_flight
        except TimeoutError:
            return _BUSY
        # What one pod sends concerns that pod alone, however broken it is.
        except (aiohttp.ClientError, OSError, ExpositionTooLarge, ValueError):
            return None
        return None if found is None else round(found)

    return read


async def _page(answer: aiohttp.ClientResponse) -> bytes | None:
    """The whole body; None as soon as it is larger than any page of an engine."""
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > _LARGEST_PAGE:
            return None
    return bytes(body)
