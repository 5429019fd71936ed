"""The seven kinds: what the API server and every client need to know to name them.

Owns identity (group, names, printer columns, subresources) and nothing of what is inside an object.
"""

from dataclasses import dataclass
from typing import Final

from matrixinfer.api.names import NETWORKING_GROUP, REGISTRY_GROUP, WORKLOAD_GROUP

__all__ = [
    "ALL_KINDS",
    "AUTOSCALING_POLICY",
    "AUTOSCALING_POLICY_BINDING",
    "MODEL",
    "MODEL_INFER",
    "MODEL_ROUTE",
    "MODEL_SERVER",
    "MODEL_VERSION",
    "Column",
    "Kind",
]


@dataclass(frozen=True, slots=True)
class Column:
    """One column that `kubectl get` prints: `json_path` as the API server takes it; priority 1 shows with `-o wide`."""

    name: str
    json_path: str
    type: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """Identity of one kind. `Resource.of(kind)` of the reconciliation library takes it as it is."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("matrixinfer",)
    columns: tuple[Column, ...] = ()
    scalable: bool = False

    @property
    def api_version(self) -> str:
        """`group/version`."""
        return f"{self.group}/{self.version}"

    @property
    def singular(self) -> str:
        """The kind in lower case, as `kubectl` takes it."""
        return self.kind.lower()

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{self.group}"


def _condition(type_: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")].status'


_VERSION: Final = "v1alpha1"
_AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")

MODEL: Final = Kind(
    REGISTRY_GROUP,
    _VERSION,
    "models",
    "Model",
    short_names=("mdl",),
    columns=(
        Column("Ready", _condition("Active"), description="Every backend serves"),
        Column("Versions", ".status.activeVersions", description="The versions that serve now"),
        Column("Replicas", ".status.replicas", "integer", "Groups of all backends"),
        Column("Endpoint", ".status.endpointName", description="The model name that clients send"),
        _AGE,
    ),
)
MODEL_VERSION: Final = Kind(
    REGISTRY_GROUP,
    _VERSION,
    "modelversions",
    "ModelVersion",
    short_names=("mv",),
    columns=(
        Column("Model", ".spec.modelName"),
        Column("Backend", ".spec.backendName"),
        Column("Digest", ".status.shortDigest", description="First digits of the content digest"),
        Column("Size", ".status.size", description="Bytes of the content"),
        Column("Ready", _condition("Available"), description="The bytes were verified on a cache"),
        Column("Active", _condition("Active"), description="The version serves traffic"),
        _AGE,
    ),
)
AUTOSCALING_POLICY: Final = Kind(
    REGISTRY_GROUP,
    _VERSION,
    "autoscalingpolicies",
    "AutoscalingPolicy",
    short_names=("asp",),
    columns=(
        Column("Metrics", ".status.metrics", description="The metrics that decide"),
        Column("Bindings", ".status.bindings", "integer", "Bindings that use the policy"),
        _AGE,
    ),
)
AUTOSCALING_POLICY_BINDING: Final = Kind(
    REGISTRY_GROUP,
    _VERSION,
    "autoscalingpolicybindings",
    "AutoscalingPolicyBinding",
    short_names=("aspb",),
    columns=(
        Column("Policy", ".spec.policyRef.name"),
        Column("Target", ".status.target", description="What is scaled"),
        Column("Current", ".status.currentReplicas", "integer"),
        Column("Desired", ".status.desiredReplicas", "integer"),
        Column("Mode", ".status.mode", description="Stable, Panic or DryRun"),
        _AGE,
    ),
)
MODEL_INFER: Final = Kind(
    WORKLOAD_GROUP,
    _VERSION,
    "modelinfers",
    "ModelInfer",
    short_names=("mi",),
    scalable=True,
    columns=(
        Column("Groups", ".status.replicas", "integer", "Groups that exist"),
        Column("Ready", ".status.readyReplicas", "integer", "Groups that are ready"),
        Column("Updated", ".status.updatedReplicas", "integer", "Groups of the newest revision"),
        Column("Revision", ".status.updateRevision", description="The newest revision"),
        _AGE,
    ),
)
MODEL_SERVER: Final = Kind(
    NETWORKING_GROUP,
    _VERSION,
    "modelservers",
    "ModelServer",
    short_names=("ms",),
    columns=(
        Column("Engine", ".spec.inferenceEngine"),
        Column("Endpoints", ".status.endpoints", description="Ready endpoints of all endpoints"),
        Column("Accepted", _condition("Accepted")),
        _AGE,
    ),
)
MODEL_ROUTE: Final = Kind(
    NETWORKING_GROUP,
    _VERSION,
    "modelroutes",
    "ModelRoute",
    short_names=("mr",),
    columns=(
        Column("Model", ".spec.modelName"),
        Column("Rules", ".status.rules", "integer"),
        Column("Accepted", _condition("Accepted")),
        _AGE,
    ),
)

ALL_KINDS: Final[tuple[Kind, ...]] = (
    MODEL,
    MODEL_VERSION,
    AUTOSCALING_POLICY,
    AUTOSCALING_POLICY_BINDING,
    MODEL_INFER,
    MODEL_SERVER,
    MODEL_ROUTE,
)
