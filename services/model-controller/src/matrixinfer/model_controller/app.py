"""Composition root of the model-controller: the only place that knows concrete classes.

Caches, one controller, one manager with a lease. The trap: children are watched through the label that we put on
them, so an object of ours whose label somebody removed looks gone, and is applied again.
"""

import asyncio
from typing import Final

from matrixinfer.api import names
from matrixinfer.api.names import REGISTRY_GROUP
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import typed
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.errors import LeaseLost
from matrixinfer.kube.manager import Manager
from matrixinfer.model_controller import metrics
from matrixinfer.model_controller.observe import CHILD_INDEXES, MODEL_INDEXES, VERSION_INDEXES, Observer, Stores
from matrixinfer.model_controller.reconciler import ModelReconciler, explain
from matrixinfer.model_controller.resources import CHILDREN, MODELS, ROLE_BINDINGS, SERVICE_ACCOUNTS, VERSIONS
from matrixinfer.model_controller.settings import ModelControllerSettings
from matrixinfer.service.exits import Exit, ExitCode
from matrixinfer.service.lifecycle import Lifecycle

__all__ = ["COMPONENT", "FIELD_MANAGER", "main", "watched"]

COMPONENT: Final = "model-controller"
"""Name in events, logs and metrics."""
FIELD_MANAGER: Final = "matrixinfer-model-controller"
"""Owner of the fields that we apply, and name of the lease."""


def watched(cache: Cache) -> Stores:
    """Declare every watch of the controller."""
    ours = f"{names.MODEL_MANAGED_BY}={REGISTRY_GROUP}"
    return Stores(
        models=cache.watch(MODELS, indexes=MODEL_INDEXES),
        versions=cache.watch(
            VERSIONS, project=typed(ModelVersion.model_validate_json), label_selector=ours, indexes=VERSION_INDEXES
        ),
        children={resource: cache.watch(resource, label_selector=ours, indexes=CHILD_INDEXES) for resource in CHILDREN},
        access={resource: cache.watch(resource, label_selector=ours) for resource in (SERVICE_ACCOUNTS, ROLE_BINDINGS)},
    )


async def main(lifecycle: Lifecycle, settings: ModelControllerSettings) -> None:
    """Run the controller until the process is told to stop, or loses its lease."""
    connected = asyncio.Event()
    lifecycle.ready_when("api-server", lambda: connected.is_set() or "connecting to the API server")
    async with await Client.connect(settings.kubeconfig, user_agent=FIELD_MANAGER) as client:
        cache = Cache(client)
        stores = watched(cache)
        metrics.count_models(stores.models.values)
        controller = Controller(
            "model",
            stores.models,
            ModelReconciler(Observer(stores), settings.render_environment, metrics.count_decisions),
            sources=stores.sources(),
            field_manager=FIELD_MANAGER,
            workers=settings.workers,
            explain=explain,
        )
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
