"""The ModelRoute of a Model: one rule, one target for each backend."""

from typing import Any

from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.model_controller.render.children import owned
from matrixinfer.model_controller.resources import ROUTES

__all__ = ["modelroute"]


def modelroute(model: Model) -> dict[str, Any]:
    """Return the ModelRoute: the client-facing name, all adapters, and the backends by weight."""
    rule: dict[str, Any] = {
        "name": "default",
        "targetModels": [
            {
                "modelServerName": backend_object_name(model.metadata.name, backend.name),
                "weight": backend.route_weight,
            }
            for backend in model.spec.backends
        ],
    }
    if model.spec.model_match is not None:
        rule["modelMatch"] = model.spec.model_match.to_manifest()
    spec: dict[str, Any] = {"modelName": model.served_name, "rules": [rule]}
    adapters = sorted({adapter.name for backend in model.spec.backends for adapter in backend.lora_adapters})
    if adapters:
        spec["loraAdapters"] = adapters
    return owned(model, ROUTES, model.metadata.name, "", {"spec": spec})
