"""The leader's work: status of routes and servers, beside the traffic and never in its way.

A lost lease ends a controller process; here it only ends this term of office. The stores are those that routing uses:
they run elsewhere and go on, so a new term needs no list.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from matrixinfer.gateway.feeds.kube import ClusterView
from matrixinfer.gateway.figures import TrafficFigures
from matrixinfer.gateway.reconcilers import SeenRoute, status_controllers
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.manager import Manager
from matrixinfer.kube.resource import Key, Resource
from matrixinfer.kube.store import Store
from matrixinfer.service.logging import get_logger

__all__ = ["StatusWriter"]

log = get_logger("status")

_PAUSE_SECONDS = 5.0


class StatusWriter:
    """Runs for office again and again."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        view: ClusterView,
        election: ElectionSettings,
        figures: TrafficFigures,
        *,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        """`pause_seconds` lie between a term that failed and the next try."""
        self._pause_seconds = pause_seconds
        self._client = client
        self._cache = cache
        self._view = view
        self._election = election
        self._figures = figures
        self._manager: Manager | None = None
        self._routes: Controller[SeenRoute] | None = None

    @property
    def leading(self) -> bool:
        """Whether this replica writes now."""
        return self._manager is not None and self._manager.leading

    def look_at(self, routes: Sequence[Key]) -> None:
        """Write the status of these routes soon, when it is ours to write."""
        if self._routes is not None:
            for key in routes:
                self._routes.enqueue(key)

    async def run(self, stopping: asyncio.Event) -> None:
        """Take part in the election until `stopping`; whatever ends a term is logged and the next one begins."""
        while not stopping.is_set():
            try:
                self._routes, servers = status_controllers(self._view, self._figures.of)
                self._manager = Manager(
                    self._client,
                    _Borrowed(self._cache),
                    (self._routes, servers),
                    component="gateway",
                    election=self._election,
                )
                await self._manager.run(stopping)
            # Status must never cost traffic: a lost lease or any fault of the writer ends its term, not the process.
            except Exception as exc:  # noqa: BLE001
                log.warning("status_term_ended", reason=f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(self._pause_seconds)


class _Borrowed(Cache):
    """A cache that somebody else runs, in the form that a manager expects."""

    # The base's own state stays unmade on purpose: nothing here declares or runs a watch.
    def __init__(self, cache: Cache) -> None:
        self._lender = cache

    @property
    def synced(self) -> bool:
        """Whether everything was listed."""
        return self._lender.synced

    @property
    def unsynced(self) -> Sequence[str]:
        """What was not."""
        return self._lender.unsynced

    def stores_of(self, resource: Resource) -> Sequence[Store[Any]]:
        """The stores of a resource."""
        return self._lender.stores_of(resource)

    async def wait_synced(self) -> None:
        """Return when everything was listed."""
        await self._lender.wait_synced()

    async def run(self) -> None:
        """Do nothing until cancelled: the lender runs it."""
        await asyncio.Event().wait()
