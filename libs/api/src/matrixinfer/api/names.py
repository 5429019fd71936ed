"""Labels, annotations, environment names and generated object names: the contract with other tools.

Everything here is read by people and programs outside this repository; a change is a breaking change.
"""

from typing import Final

__all__ = [
    "ENV_ENTRY_ADDRESS",
    "ENV_GROUP_SIZE",
    "ENV_WORKER_INDEX",
    "INFER_DRAINING_SINCE",
    "INFER_ENTRY",
    "INFER_GROUP_NAME",
    "INFER_NAME",
    "INFER_PREFIX",
    "INFER_REMOVAL",
    "INFER_REVISION",
    "INFER_ROLE",
    "INFER_ROLE_ID",
    "INFER_UID",
    "MODEL_BACKEND_NAME",
    "MODEL_MANAGED_BY",
    "MODEL_NAME",
    "MODEL_PREFIX",
    "MODEL_REVISION",
    "MODEL_UID",
    "NETWORKING_GROUP",
    "REGISTRY_GROUP",
    "WAKE_UP_ANNOTATION",
    "WORKLOAD_GROUP",
    "backend_object_name",
    "entry_pod_name",
    "group_name",
    "pod_name",
    "role_id",
]

REGISTRY_GROUP: Final = "registry.matrixinfer.ai"
WORKLOAD_GROUP: Final = "workload.matrixinfer.ai"
NETWORKING_GROUP: Final = "networking.matrixinfer.ai"

INFER_PREFIX: Final = "modelinfer.matrixinfer.ai/"
INFER_NAME: Final = INFER_PREFIX + "name"
INFER_GROUP_NAME: Final = INFER_PREFIX + "group-name"
INFER_ROLE: Final = INFER_PREFIX + "role"
INFER_ROLE_ID: Final = INFER_PREFIX + "role-id"
INFER_ENTRY: Final = INFER_PREFIX + "entry"
INFER_REVISION: Final = INFER_PREFIX + "revision"
INFER_UID: Final = INFER_PREFIX + "uid"
INFER_REMOVAL: Final = INFER_PREFIX + "removal"
"""Annotation beside `draining-since`: what is being removed with the pod and why, e.g. `group/ScaleDown`."""
INFER_DRAINING_SINCE: Final = INFER_PREFIX + "draining-since"
"""Annotation on a pod that is about to be removed: RFC 3339 time. The gateway stops sending at once."""

MODEL_PREFIX: Final = "registry.matrixinfer.ai/"
MODEL_NAME: Final = MODEL_PREFIX + "model-name"
MODEL_BACKEND_NAME: Final = MODEL_PREFIX + "backend-name"
MODEL_MANAGED_BY: Final = MODEL_PREFIX + "managed-by"
MODEL_REVISION: Final = MODEL_PREFIX + "revision"
MODEL_UID: Final = MODEL_PREFIX + "model-uid"

WAKE_UP_ANNOTATION: Final = "networking.matrixinfer.ai/wake-up-at"
"""Annotation the gateway writes on a ModelServer's workload when a request waits for its first endpoint."""

ENV_ENTRY_ADDRESS: Final = "ENTRY_ADDRESS"
ENV_WORKER_INDEX: Final = "WORKER_INDEX"
ENV_GROUP_SIZE: Final = "GROUP_SIZE"


def backend_object_name(model: str, backend: str) -> str:
    """Name of the ModelInfer, ModelServer, policy and binding of one backend."""
    return f"{model}-{backend}"


def group_name(infer: str, ordinal: int) -> str:
    """Name of one group of a ModelInfer."""
    return f"{infer}-{ordinal}"


def role_id(role: str, replica: int) -> str:
    """Identity of one role replica inside its group."""
    return f"{role}-{replica}"


def entry_pod_name(infer: str, ordinal: int, role: str, replica: int) -> str:
    """Name of the entry pod of a role replica; its headless Service has the same name."""
    return pod_name(infer, ordinal, role, replica, 0)


def pod_name(infer: str, ordinal: int, role: str, replica: int, index: int) -> str:
    """Name of one pod: index 0 is the entry, 1..N the workers."""
    return f"{group_name(infer, ordinal)}-{role_id(role, replica)}-{index}"
