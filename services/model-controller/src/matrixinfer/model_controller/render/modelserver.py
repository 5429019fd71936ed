"""The ModelServer of a backend: its pods as one thing to send requests to."""

from typing import Any

from matrixinfer.api import names
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import Model, ModelBackend, WorkerType
from matrixinfer.api.v1alpha1.modelversion import VersionWorker
from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.errors import EngineError
from matrixinfer.engines.vllm import kv_connector_of
from matrixinfer.model_controller.render.children import owned
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.resources import SERVERS
from matrixinfer.model_controller.versions import Served

__all__ = ["modelserver"]


def modelserver(model: Model, backend: ModelBackend, served: Served) -> dict[str, Any]:
    """Return the ModelServer. It selects the entry pods of this backend only, so weights between backends hold.

    Raises:
        RenderError: the workers' configs contradict each other.
    """
    engine = engine_for(served.spec.type)
    spec: dict[str, Any] = {
        "model": served.spec.served_name,
        "inferenceEngine": engine.name.value,
        "workloadSelector": {
            "matchLabels": {
                names.MODEL_UID: model.metadata.uid,
                names.MODEL_BACKEND_NAME: backend.name,
                names.INFER_ENTRY: "true",
            }
        },
        "workloadPort": {"port": _port(backend, served), "protocol": "http"},
    }
    if served.spec.type.is_disaggregated:
        spec["workloadSelector"]["pdGroup"] = {
            "groupKey": names.INFER_GROUP_NAME,
            "prefillLabels": {names.INFER_ROLE: WorkerType.PREFILL.value},
            "decodeLabels": {names.INFER_ROLE: WorkerType.DECODE.value},
        }
        connector = _connector(served)
        if connector:
            spec["kvConnector"] = {"type": connector}
    name = backend_object_name(model.metadata.name, backend.name)
    return owned(model, SERVERS, name, backend.name, {"spec": spec})


def _port(backend: ModelBackend, served: Served) -> int:
    engine = engine_for(served.spec.type)
    try:
        ports = {engine.port_of(worker.config) for worker in served.spec.workers}
    except EngineError as fault:
        raise RenderError("ConfigRefused", f"backend {backend.name!r}: {fault}") from fault
    if len(ports) > 1:
        listed = ", ".join(str(port) for port in sorted(ports))
        raise RenderError(
            "ConfigRefused", f"the workers of backend {backend.name!r} use the ports {listed}; use one port"
        )
    return ports.pop()


def _connector(served: Served) -> str | None:
    if served.spec.type.value.startswith("SGLang"):
        return "sglang"
    return next((found for worker in served.spec.workers if (found := _connector_of(worker))), None)


def _connector_of(worker: VersionWorker) -> str | None:
    try:
        return kv_connector_of(worker.config)
    except EngineError:
        # The same config is refused, with its reason, where the engine's command line is made.
        return None
