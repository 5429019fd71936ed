"""AutoscalingPolicy and AutoscalingPolicyBinding: how replicas follow load, and whose.

The policy says how (metrics, targets, how fast); the binding says whom (one target, or several by cost). A policy may
also be written inline in a Model. Shares are integers in percent; there are no floats.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from matrixinfer.api.conditions import Conditions, Timestamp
from matrixinfer.api.meta import (
    NO_DEFAULT,
    ApiModel,
    ApiObject,
    Duration,
    LocalObjectReference,
    ObjectReference,
    Quantity,
)
from matrixinfer.api.v1alpha1.kinds import AUTOSCALING_POLICY, AUTOSCALING_POLICY_BINDING

__all__ = [
    "AutoscalingPolicy",
    "AutoscalingPolicyBinding",
    "AutoscalingPolicyBindingSpec",
    "AutoscalingPolicyBindingStatus",
    "AutoscalingPolicySpec",
    "AutoscalingPolicyStatus",
    "Behavior",
    "Metric",
    "MetricEndpoint",
    "MetricReading",
    "MetricSource",
    "OptimizerConfiguration",
    "OptimizerParam",
    "PanicPolicy",
    "PrometheusQuery",
    "RatioBounds",
    "Recommendation",
    "ScaleToZero",
    "ScaleUp",
    "ScalingConfiguration",
    "ScalingMode",
    "SelectPolicy",
    "StablePolicy",
    "Target",
    "TargetStatus",
]


class MetricSource(StrEnum):
    """Where the numbers of a metric come from."""

    POD = "Pod"
    PROMETHEUS = "Prometheus"


class SelectPolicy(StrEnum):
    """How a limit in instances and one in percent combine: the looser of the two, or the stricter."""

    OR = "Or"
    AND = "And"


class ScalingMode(StrEnum):
    """How the last recommendation came about."""

    STABLE = "Stable"
    PANIC = "Panic"
    DRY_RUN = "DryRun"


class PrometheusQuery(ApiModel):
    """A number asked of a Prometheus."""

    server_url: Annotated[str, Field(alias="serverURL", pattern=r"^https?://.+")]
    """Base URL of the server."""
    query: Annotated[str, Field(json_schema_extra={"minLength": 1})]
    """A query with one number for an answer: the total over all pods of the target."""


class Metric(ApiModel):
    """One signal and its target for each instance."""

    metric_name: Annotated[str, Field(json_schema_extra={"maxLength": 256})]
    """Name of the metric; names that begin with `matrixinfer:` mean the same on every engine."""
    target_value: Quantity
    """What one instance should carry; above zero."""
    source: MetricSource = MetricSource.POD
    """Read the pods of the target, or ask Prometheus."""
    prometheus: PrometheusQuery | None = None
    """What to ask, when the source is Prometheus."""


class StablePolicy(ApiModel):
    """How fast replicas may change in normal times."""

    instances: Annotated[int, Field(ge=0)] = 1
    """Instances that may change in one period."""
    percent: Annotated[int, Field(ge=0, le=1000)] = 100
    """Percent of the instances that may change in one period."""
    period: Duration = Field(default="15s", validate_default=True)
    """The span that the limits count over."""
    select_policy: SelectPolicy = SelectPolicy.OR
    """How the two limits combine."""
    stabilization_window: Duration | None = None
    """The span over which recommendations are smoothed."""


class PanicPolicy(ApiModel):
    """What is done when load jumps."""

    percent: Annotated[int, Field(ge=0, le=1000)] = 1000
    """Percent of the instances that may be added in one period."""
    period: Duration
    """The short span that is looked at."""
    panic_threshold_percent: Annotated[int, Field(ge=110, le=1000)] = 200
    """Load, in percent of what the instances should carry, that starts it."""
    panic_mode_hold: Duration = Field(default="60s", validate_default=True)
    """How long it stays on after the last sign."""


class ScaleUp(ApiModel):
    """How replicas are added."""

    stable_policy: StablePolicy | None = None
    """In normal times."""
    panic_policy: PanicPolicy | None = None
    """When load jumps."""


class Behavior(ApiModel):
    """How fast replicas change."""

    scale_up: ScaleUp | None = None
    """Upwards."""
    scale_down: StablePolicy | None = None
    """Downwards."""


class ScaleToZero(ApiModel):
    """Stopping everything while nobody asks. Needs a lower bound of zero replicas."""

    idle_window: Duration = Field(default="10m", validate_default=True)
    """How long nobody must have asked."""


class AutoscalingPolicySpec(ApiModel):
    """How replicas follow load."""

    tolerance_percent: Annotated[int, Field(ge=0, le=100)] = 10
    """Deviation from the target that is not acted on."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, json_schema_extra={"maxItems": 16})]
    """The signals; the one that asks for most replicas decides."""
    behavior: Behavior | None = None
    """How fast replicas change."""
    scale_to_zero: ScaleToZero | None = None
    """Stop everything while nobody asks."""
    dry_run: bool | None = None
    """Recommend in status, and change nothing."""


class AutoscalingPolicyStatus(ApiModel):
    """Who uses a policy."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    metrics: str | None = None
    """Names of the metrics, as text."""
    bindings: int | None = None
    """Bindings that use the policy."""
    conditions: Conditions = ()
    """`Accepted`."""


class AutoscalingPolicy(ApiObject):
    """How replicas follow load."""

    API_VERSION: ClassVar[str] = AUTOSCALING_POLICY.api_version
    KIND: ClassVar[str] = AUTOSCALING_POLICY.kind

    spec: AutoscalingPolicySpec
    """How replicas follow load."""
    status: AutoscalingPolicyStatus = Field(default_factory=AutoscalingPolicyStatus)
    """Who uses it."""


class MetricEndpoint(ApiModel):
    """Where the pods of a target publish their metrics; absent takes what the engine is known to use."""

    uri: str = "/metrics"
    """Path of the metrics."""
    port: int = 8100
    """Port of the metrics."""


class Target(ApiModel):
    """What is scaled."""

    target_ref: ObjectReference
    """A ModelInfer in the namespace of the binding."""
    role: Annotated[str, Field(json_schema_extra={"maxLength": 63})] | None = None
    """Read the metrics of the pods of this role only."""
    additional_match_labels: dict[str, str] = Field(default_factory=dict)
    """Read the metrics of the pods with these labels only."""
    metric_endpoint: MetricEndpoint | None = None
    """Where the pods publish their metrics."""


class RatioBounds(ApiModel):
    """Bounds of the replicas of one role over those of another, in percent."""

    numerator_role: str
    """Role above the line, for example `prefill`."""
    denominator_role: str
    """Role below the line, for example `decode`."""
    min_percent: Annotated[int, Field(ge=0, le=100000)]
    """The least ratio, in percent."""
    max_percent: Annotated[int, Field(ge=1, le=100000)]
    """The greatest ratio, in percent."""


class ScalingConfiguration(ApiModel):
    """Scaling one target."""

    target: Target | None = None
    """What is scaled."""
    min_replicas: Annotated[int, Field(ge=0, le=1_000_000)]
    """Never fewer; zero allows scaling to zero."""
    max_replicas: Annotated[int, Field(ge=1, le=1_000_000)]
    """Never more."""
    ratio: RatioBounds | None = None
    """Bounds between prefill and decode."""


class OptimizerParam(ApiModel):
    """One target among several."""

    target: Target | None = None
    """What is scaled."""
    cost: Annotated[int, Field(ge=0, json_schema_extra=NO_DEFAULT)] = 0
    """Cost of one replica relative to the others."""
    min_replicas: Annotated[int, Field(ge=0, le=1_000_000)]
    """Never fewer."""
    max_replicas: Annotated[int, Field(ge=1, le=1_000_000)]
    """Never more."""


class OptimizerConfiguration(ApiModel):
    """Sharing replicas between several targets by cost."""

    params: Annotated[tuple[OptimizerParam, ...], Field(min_length=1, json_schema_extra={"maxItems": 16})]
    """The targets."""
    cost_expansion_rate_percent: Annotated[int, Field(ge=0)] = 200
    """How much dearer a faster mix may be."""


class AutoscalingPolicyBindingSpec(ApiModel):
    """Which policy rules whom."""

    policy_ref: LocalObjectReference
    """The AutoscalingPolicy, in the same namespace."""
    scaling_configuration: ScalingConfiguration | None = None
    """Scale one target."""
    optimizer_configuration: OptimizerConfiguration | None = None
    """Share replicas between several targets by cost."""


class MetricReading(ApiModel):
    """What one metric read when a recommendation was made."""

    metric_name: str
    """Name of the metric."""
    value: Quantity
    """Mean over the pods."""
    target_value: Quantity
    """What one instance should carry."""
    pods: int = 0
    """Pods that answered."""
    missing_pods: int = 0
    """Pods that did not."""


class Recommendation(ApiModel):
    """The last recommendation and what it rests on."""

    replicas: int
    """What was recommended."""
    time: Timestamp
    """When."""
    message: str
    """The sentence that explains it."""
    inputs: tuple[MetricReading, ...] = ()
    """What the metrics read."""


class TargetStatus(ApiModel):
    """Replicas of one target."""

    name: str
    """Name of the ModelInfer."""
    current_replicas: int
    """Replicas that it has."""
    desired_replicas: int
    """Replicas that it should have."""


class AutoscalingPolicyBindingStatus(ApiModel):
    """What scaling does, and why."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    target: str | None = None
    """What is scaled, as text."""
    current_replicas: int | None = None
    """Replicas of all targets."""
    desired_replicas: int | None = None
    """Replicas that all targets should have."""
    mode: ScalingMode | None = None
    """How the last recommendation came about."""
    last_scale_time: Timestamp | None = None
    """When replicas last changed."""
    recommendation: Recommendation | None = None
    """The last recommendation and what it rests on."""
    targets: tuple[TargetStatus, ...] = ()
    """Replicas of each target."""
    conditions: Conditions = ()
    """`Ready` and `TargetFound`."""


class AutoscalingPolicyBinding(ApiObject):
    """Says whom an AutoscalingPolicy rules."""

    API_VERSION: ClassVar[str] = AUTOSCALING_POLICY_BINDING.api_version
    KIND: ClassVar[str] = AUTOSCALING_POLICY_BINDING.kind

    spec: AutoscalingPolicyBindingSpec
    """Which policy rules whom."""
    status: AutoscalingPolicyBindingStatus = Field(default_factory=AutoscalingPolicyBindingStatus)
    """What scaling does, and why."""
