"""Composition root of the infer-controller: the only place that knows concrete classes.

Caches, one controller, one manager with a lease, and the feed that asks draining pods for their load. The trap: pods
are watched through a label selector, because a cluster has many pods and few of them are ours.
"""

import asyncio
from datetime import timedelta
from typing import Final

import aiohttp

from matrixinfer.infer_controller import metrics
from matrixinfer.infer_controller.load import LoadFeed, read_over_http
from matrixinfer.infer_controller.observe import (
    BY_DRAINING,
    LostNodes,
    Observer,
    PodSource,
    Stores,
    Waker,
    infer_key,
)
from matrixinfer.infer_controller.pace import StatusPace
from matrixinfer.infer_controller.reconciler import InferReconciler, explain
from matrixinfer.infer_controller.settings import InferControllerSettings
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.errors import LeaseLost
from matrixinfer.kube.manager import Manager
from matrixinfer.kube.sources import mapped
from matrixinfer.service.exits import Exit, ExitCode
from matrixinfer.service.lifecycle import Lifecycle

__all__ = ["COMPONENT", "FIELD_MANAGER", "main"]

COMPONENT: Final = "infer-controller"
"""Name in events, logs and metrics."""
FIELD_MANAGER: Final = "matrixinfer-infer-controller"
"""Owner of the fields that we apply, and name of the lease."""

_EXPECTATION_SECONDS: Final = 30.0
"""A watch may lag this far behind an overloaded API server; looking earlier would only repeat the same creates."""


async def main(lifecycle: Lifecycle, settings: InferControllerSettings) -> None:
    """Run the controller until the process is told to stop, or loses its lease."""
    connected = asyncio.Event()
    lifecycle.ready_when("api-server", lambda: connected.is_set() or "connecting to the API server")
    async with await Client.connect(settings.kubeconfig, user_agent=FIELD_MANAGER) as client, _session() as session:
        cache = Cache(client)
        stores = Stores.declared(cache)
        pods = stores.pods
        wake = Waker()
        lost = LostNodes(stores.nodes, pods, wake)
        metrics.LOST_NODES.set_function(lambda: len(lost.believed))
        load = LoadFeed(
            lambda: pods.by_index(BY_DRAINING, "yes"),
            read_over_http(session, deadline_seconds=settings.load_deadline_seconds),
            wake,
            every_seconds=settings.load_poll_seconds,
        )
        metrics.DRAINING.set_function(lambda: len(pods.by_index(BY_DRAINING, "yes")))
        observer = Observer(
            stores,
            lost_nodes=lambda: lost.believed,
            in_flight=lambda: load.in_flight,
            timing=settings.timing,
            history_limit=settings.history_limit,
        )
        pace = StatusPace(timedelta(seconds=settings.status_hold_seconds))
        controller = Controller(
            "modelinfer",
            stores.infers,
            InferReconciler(observer, pace, lambda note: metrics.DECISIONS.labels(note.reason).inc()),
            sources=[
                PodSource(pods, infer_key),
                mapped(stores.services, infer_key),
                mapped(stores.revisions, infer_key),
            ],
            field_manager=FIELD_MANAGER,
            workers=settings.workers,
            explain=explain,
            expectation_seconds=_EXPECTATION_SECONDS,
        )
        wake.target = controller.enqueue
        manager = Manager(
            client,
            cache,
            [controller],
            component=COMPONENT,
            election=ElectionSettings(
                name=FIELD_MANAGER,
                namespace=settings.namespace,
                identity=settings.pod_name or COMPONENT,
                lease_seconds=settings.lease_seconds,
                renew_deadline_seconds=settings.renew_deadline_seconds,
                retry_seconds=settings.retry_seconds,
                request_seconds=settings.lease_request_seconds,
            ),
            leader_tasks=[load.run],
            drain_seconds=settings.drain_seconds,
            writes_in_flight=settings.writes_in_flight,
        )
        lifecycle.ready_when("caches", lambda: manager.ready or "waiting for the first lists")
        lifecycle.debug_page("leading", lambda: {"leading": manager.leading})
        connected.set()
        try:
            await manager.run(lifecycle.stopping)
        except LeaseLost as exc:
            raise Exit(ExitCode.LEASE_LOST, str(exc)) from exc


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), auto_decompress=True)
