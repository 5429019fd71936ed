"""ModelInfer: a scalable set of groups of pods that serve together.

A group is the unit of scaling and updating; it is made of roles; a role replica is one entry pod and its workers.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from matrixinfer.api.conditions import Conditions, Timestamp
from matrixinfer.api.meta import NO_DEFAULT, ApiModel, ApiObject, IntOrString, LabelSelector, NonNegative
from matrixinfer.api.v1alpha1.core import PodTemplate
from matrixinfer.api.v1alpha1.kinds import MODEL_INFER

__all__ = [
    "GangSchedule",
    "InferGroup",
    "ModelInfer",
    "ModelInferSpec",
    "ModelInferStatus",
    "NetworkTopology",
    "RecoveryPolicy",
    "RecoveryRecord",
    "Role",
    "RoleStatus",
    "RollingUpdateConfiguration",
    "RolloutStrategy",
    "RolloutStrategyType",
    "TopologySpreadConstraint",
]


class RecoveryPolicy(StrEnum):
    """What is rebuilt when a pod fails."""

    INFER_GROUP_RECREATE = "InferGroupRecreate"
    ROLE_RECREATE = "RoleRecreate"
    NONE = "None"


class RolloutStrategyType(StrEnum):
    """What is replaced as one when the template changes."""

    INFER_GROUP_ROLLING_UPDATE = "InferGroupRollingUpdate"
    ROLE_ROLLING_UPDATE = "RoleRollingUpdate"


class RollingUpdateConfiguration(ApiModel):
    """How fast and how far an update goes."""

    max_unavailable: IntOrString = 1
    """Groups that may be missing during an update; a percentage is rounded down."""
    max_surge: IntOrString = 0
    """Groups that may exist above the wanted number; a percentage is rounded up."""
    partition: Annotated[NonNegative, Field(json_schema_extra=NO_DEFAULT)] = 0
    """Groups with an ordinal below it keep the old revision."""


class RolloutStrategy(ApiModel):
    """How a change of the template reaches the pods."""

    type: RolloutStrategyType = RolloutStrategyType.INFER_GROUP_ROLLING_UPDATE
    """What is replaced as one: a whole group, or only the roles that changed."""
    rolling_update_configuration: RollingUpdateConfiguration | None = None
    """How fast and how far."""


class TopologySpreadConstraint(ApiModel):
    """How the pods spread over the cluster; as in a pod, but every member may be absent."""

    max_skew: int | None = None
    topology_key: str | None = None
    when_unsatisfiable: str | None = None
    label_selector: LabelSelector | None = None


class NetworkTopology(ApiModel):
    """How near to each other in the network the pods must be."""

    mode: str = "hard"
    """`hard` refuses to place pods farther away; `soft` only prefers near ones."""
    highest_tier_allowed: int = 1
    """The highest network tier that the pods may span."""


class GangSchedule(ApiModel):
    """Placing the pods of a group together or not at all."""

    enable: bool = True
    """Whether groups are placed as gangs."""


class Role(ApiModel):
    """One kind of member of a group."""

    name: Annotated[
        str, Field(max_length=12, json_schema_extra={"pattern": r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"})
    ]
    """Name of the role, for example `leader`, `prefill`, `decode`."""
    replicas: Annotated[int, Field(ge=0)] = 1
    """Replicas of the role in each group."""
    min_replicas: Annotated[int, Field(ge=0)] | None = None
    """Replicas that must be placeable before a gang starts; absent means all."""
    network_topology: NetworkTopology | None = None
    """How near to each other the pods of a replica must be."""
    entry_template: PodTemplate
    """The one entry pod of each replica."""
    worker_replicas: Annotated[NonNegative, Field(json_schema_extra=NO_DEFAULT)] = 0
    """Worker pods of each replica, beside the entry pod."""
    worker_template: PodTemplate | None = None
    """The worker pods; needed when there are any."""


class InferGroup(ApiModel):
    """The unit of scaling and updating."""

    restart_grace_period_seconds: Annotated[NonNegative, Field(json_schema_extra={"format": "int64"})] = 0
    """How long a failed pod is left alone before it is replaced."""
    network_topology: NetworkTopology | None = None
    """How near to each other the pods of a group must be."""
    gang_schedule: GangSchedule | None = None
    """Place the pods of a group together or not at all."""
    roles: Annotated[
        tuple[Role, ...],
        Field(
            min_length=1,
            max_length=4,
        ),
    ]
    """The members of a group."""


class ModelInferSpec(ApiModel):
    """What groups there are and how they change."""

    replicas: Annotated[int, Field(ge=0)] = 1
    """Groups wanted."""
    scheduler_name: str | None = None
    """Scheduler of pods whose template names none; absent is the cluster's default, `volcano` allows gangs."""
    template: InferGroup
    """What every group is made of."""
    rollout_strategy: RolloutStrategy | None = None
    """How a change of the template reaches the pods."""
    recovery_policy: RecoveryPolicy = RecoveryPolicy.ROLE_RECREATE
    """What is rebuilt when a pod fails."""
    backoff_limit: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Rebuilds in a row of one group before it is left as it is; absent is without limit."""
    topology_spread_constraints: tuple[TopologySpreadConstraint, ...] = ()
    """How the pods spread over the cluster."""


class RoleStatus(ApiModel):
    """Replicas of one role over all groups."""

    name: str
    """Name of the role."""
    replicas: int = 0
    """Replicas that exist."""
    ready_replicas: int = 0
    """Replicas that are ready."""
    updated_replicas: int = 0
    """Replicas of the newest revision."""


class RecoveryRecord(ApiModel):
    """How often one group or role replica was rebuilt: what the back-off is counted from."""

    name: str
    """Name of the group, or of the group and the role replica in it (`x-0/decode-1`)."""
    revision: str = ""
    """Revision that failed; a newer one starts counting afresh."""
    attempts: int = 0
    """Rebuilds in a row."""
    last_time: Timestamp | None = None
    """When the last rebuild began."""
    reason: str = ""
    """Why, as one CamelCase word."""


class ModelInferStatus(ApiModel):
    """What there is of a ModelInfer."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    replicas: int = 0
    """Groups that exist."""
    ready_replicas: int = 0
    """Groups whose pods are all ready."""
    current_replicas: int = 0
    """Groups of an older revision."""
    updated_replicas: int = 0
    """Groups of the newest revision."""
    available_replicas: int = 0
    """Groups that can take requests."""
    current_revision: str | None = None
    """The revision before the newest, while an update goes on; else the newest."""
    update_revision: str | None = None
    """The newest revision."""
    label_selector: str | None = None
    """Selector of the pods, for the scale subresource."""
    roles: Annotated[
        tuple[RoleStatus, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = ()
    """Counts for each role."""
    recoveries: Annotated[
        tuple[RecoveryRecord, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = ()
    """Groups and role replicas that were rebuilt of late."""
    conditions: Conditions = ()
    """`Available`, `Progressing` and `UpdateInProgress`."""


class ModelInfer(ApiObject):
    """A scalable set of groups of pods that serve together."""

    API_VERSION: ClassVar[str] = MODEL_INFER.api_version
    KIND: ClassVar[str] = MODEL_INFER.kind

    spec: ModelInferSpec
    """What groups there are and how they change."""
    status: ModelInferStatus = Field(default_factory=ModelInferStatus)
    """What there is of it."""
