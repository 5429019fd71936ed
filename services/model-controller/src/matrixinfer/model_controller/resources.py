"""The resources that this controller reads and writes, by the names that its modules use."""

from typing import Final

from matrixinfer.api.v1alpha1 import kinds
from matrixinfer.kube.resource import ROLE_BINDINGS, SERVICE_ACCOUNTS, Resource

__all__ = [
    "BINDINGS",
    "CHILDREN",
    "INFERS",
    "MODELS",
    "POLICIES",
    "ROLE_BINDINGS",
    "ROUTES",
    "SERVERS",
    "SERVICE_ACCOUNTS",
    "VERSIONS",
]

MODELS: Final = Resource.of(kinds.MODEL)
VERSIONS: Final = Resource.of(kinds.MODEL_VERSION)
INFERS: Final = Resource.of(kinds.MODEL_INFER)
SERVERS: Final = Resource.of(kinds.MODEL_SERVER)
ROUTES: Final = Resource.of(kinds.MODEL_ROUTE)
POLICIES: Final = Resource.of(kinds.AUTOSCALING_POLICY)
BINDINGS: Final = Resource.of(kinds.AUTOSCALING_POLICY_BINDING)

CHILDREN: Final = (INFERS, SERVERS, POLICIES, BINDINGS, ROUTES)
"""What is rendered from a Model and owned by it, in the order in which it is made; versions are apart."""
