"""Which ModelInfer stands behind a ModelServer that has no pod to ask. Pure."""

from matrixinfer.api.names import INFER_NAME, MODEL_BACKEND_NAME
from matrixinfer.api.v1alpha1.modelserver import ModelServer

__all__ = ["workload_of"]


def workload_of(server: ModelServer) -> str | None:
    """Return the ModelInfer's name, in the server's namespace; None when the selector does not tell.

    A server by hand selects the pods of a ModelInfer by its name. One that the model-controller made selects them by
    backend, and has the same name as the backend's ModelInfer.
    """
    labels = server.spec.workload_selector.match_labels
    if INFER_NAME in labels:
        return labels[INFER_NAME]
    return server.metadata.name if MODEL_BACKEND_NAME in labels else None
