"""Names, labels and ownership of what is made from a Model: the same for every kind."""

from collections.abc import Mapping
from typing import Any

from matrixinfer.api import names
from matrixinfer.api.names import REGISTRY_GROUP
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.kube.resource import Resource, owner_reference
from matrixinfer.model_controller.resources import MODELS

__all__ = ["labels_of", "owned"]


def labels_of(model: Model, backend: str) -> dict[str, str]:
    """Return the labels of an object of one backend; `backend` is empty for an object of the whole Model."""
    return {
        names.MODEL_NAME: model.metadata.name,
        names.MODEL_BACKEND_NAME: backend,
        names.MODEL_MANAGED_BY: REGISTRY_GROUP,
        names.MODEL_UID: model.metadata.uid,
    }


def owned(model: Model, resource: Resource, name: str, backend: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest that the Model controls, with `body` (usually a `spec`) in it."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": name,
            "namespace": model.metadata.namespace,
            "labels": labels_of(model, backend),
            "ownerReferences": [owner_reference(MODELS, model.metadata.name, model.metadata.uid)],
        },
        **body,
    }
