"""Waking up what was scaled to zero: one annotation on the ModelInfer behind a ModelServer that requests wait for.

The only write of the gateway that is not about its own objects, so it is narrow: one key of metadata, by a merge patch
that creates nothing, for servers that really have no pod, and rarely for each. Workers say again and again what they
wait for, so nothing here has to be remembered or repeated. Who scales is the autoscaler, by its own rules.

The trap: a pod that starts takes minutes, and requests wait all that time. A server with any pod at all, ready or not,
is awake and is left alone.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

from matrixinfer.api.conditions import format_time
from matrixinfer.api.names import WAKE_UP_ANNOTATION
from matrixinfer.api.v1alpha1.kinds import MODEL_INFER
from matrixinfer.gateway import metrics
from matrixinfer.gateway.core.workload import workload_of
from matrixinfer.gateway.feeds.kube import ClusterView
from matrixinfer.gateway.ipc import Wanted
from matrixinfer.gateway.reconcilers import FIELD_MANAGER
from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import ApiError, NotFound
from matrixinfer.kube.resource import Key, Manifest, Resource
from matrixinfer.service.logging import get_logger

__all__ = ["INFERS", "Waker"]

log = get_logger("waking")

INFERS = Resource.of(MODEL_INFER)

_DEADLINE_SECONDS = 5.0
_AFTER_FAILURE_SECONDS = 2.0


class Waker:
    """Hears what is wanted, and asks for it through the API."""

    def __init__(self, *, every_seconds: float, clock: Callable[[], float], now: Callable[[], datetime]) -> None:
        """Nothing is asked for more often than every `every_seconds`."""
        self._every_seconds = every_seconds
        self._clock = clock
        self._now = now
        self._wanted: set[Key] = set()
        self._heard = asyncio.Event()
        self._not_before: dict[Key, float] = {}

    def hear(self, wanted: Wanted) -> None:
        """A worker has requests that wait for this server."""
        self._wanted.add(Key(wanted.namespace, wanted.name))
        self._heard.set()

    async def run(self, client: Client, view: ClusterView) -> None:
        """Write annotations, one at a time, until cancelled. The workers are who retries."""
        while True:
            await self._heard.wait()
            self._heard.clear()
            while self._wanted:
                await self._consider(self._wanted.pop(), client, view)

    async def _consider(self, key: Key, client: Client, view: ClusterView) -> None:
        server = view.servers.get(key)
        if server is None or view.pods_of(server) or self._clock() < self._not_before.get(key, 0.0):
            return
        self._forget_all_but({Key(s.metadata.namespace, s.metadata.name) for s in view.servers.values()})
        self._not_before[key] = self._clock() + self._every_seconds
        name = workload_of(server)
        if name is None:
            self._report(key, "unknown", "its selector names no ModelInfer")
            return
        patch: Manifest = {"metadata": {"annotations": {WAKE_UP_ANNOTATION: format_time(self._now())}}}
        try:
            await client.merge_patch(
                INFERS,
                Key(key.namespace, name),
                patch,
                field_manager=FIELD_MANAGER,
                deadline_seconds=_DEADLINE_SECONDS,
            )
        except NotFound:
            self._report(key, "unknown", f"there is no ModelInfer {name!r}")
        except ApiError as exc:
            self._not_before[key] = self._clock() + _AFTER_FAILURE_SECONDS
            self._report(key, "failed", str(exc))
        else:
            metrics.WAKE_UPS.labels("written").inc()
            log.info("woken_up", server=str(key), modelinfer=name)

    def _report(self, key: Key, result: str, reason: str) -> None:
        metrics.WAKE_UPS.labels(result).inc()
        log.warning("not_woken_up", server=str(key), reason=reason)

    def _forget_all_but(self, present: set[Key]) -> None:
        for key in self._not_before.keys() - present:
            del self._not_before[key]
