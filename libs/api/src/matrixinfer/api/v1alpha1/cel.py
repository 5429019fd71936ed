"""The rules that the API server checks by itself, with the webhook down: CEL for each type, by class name.

Each mirrors a rule of `rules`, which says the same with better paths and with a fix. The trap: CEL has a cost budget;
a rule over a list needs `maxItems` on the list, and rules over texts need `maxLength`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["RULES", "CelRule"]


@dataclass(frozen=True, slots=True)
class CelRule:
    """One rule: an expression over `self` that must hold, and what to say when it does not."""

    rule: str
    message: str

    def as_json(self) -> dict[str, str]:
        """The form of a CRD."""
        return {"rule": self.rule, "message": self.message}


def _within_half_hour(field: str) -> CelRule:
    return CelRule(
        f"!has(self.{field})"
        f" || (duration(self.{field}) >= duration('0s') && duration(self.{field}) <= duration('30m'))",
        f"{field} must be between 0s and 30m",
    )


def _not_negative(field: str) -> CelRule:
    return CelRule(
        f"!has(self.{field}) || duration(self.{field}) >= duration('0s')",
        f"{field} must not be negative; write for example 30s",
    )


def _percent_or_count(field: str) -> CelRule:
    return CelRule(
        f"!has(self.{field}) || (type(self.{field}) == int ? self.{field} >= 0"
        f" : self.{field}.matches('^([0-9]|[1-9][0-9]|100)%$'))",
        f"{field} must be a count of at least 0 or a percentage from 0% to 100%",
    )


_MIN_MAX: Final = CelRule("self.minReplicas <= self.maxReplicas", "minReplicas must not be greater than maxReplicas")
_TARGET: Final = CelRule("has(self.target)", "target must be set: name the ModelInfer to scale in target.targetRef")

RULES: Final[Mapping[str, tuple[CelRule, ...]]] = {
    "ModelSpec": (
        CelRule(
            "!has(self.autoscalingPolicy) || self.backends.all(b, !has(b.autoscalingPolicy))",
            "autoscalingPolicy of the Model and of a backend exclude each other; keep one of them",
        ),
        CelRule(
            "has(self.autoscalingPolicy) || !has(self.costExpansionRatePercent)",
            "costExpansionRatePercent needs an autoscalingPolicy of the Model; add one or remove the field",
        ),
        CelRule(
            "has(self.autoscalingPolicy) || self.backends.all(b, !has(b.scalingCost) || b.scalingCost == 0)",
            "scalingCost needs an autoscalingPolicy of the Model; add one or remove the field",
        ),
        CelRule(
            "!has(self.autoscalingPolicy) || self.backends.all(b, has(b.scalingCost) && b.scalingCost > 0)",
            "with an autoscalingPolicy of the Model every backend needs a scalingCost of at least 1",
        ),
        CelRule(
            "has(self.autoscalingPolicy)"
            " || self.backends.all(b, has(b.autoscalingPolicy) || !has(b.scaleToZeroGracePeriod))",
            "scaleToZeroGracePeriod needs an autoscalingPolicy; add one or remove the field",
        ),
        CelRule(
            "self.backends.map(b, b.maxReplicas).sum() <= 1000000",
            "the sum of maxReplicas over all backends must not exceed 1000000",
        ),
        CelRule("self.backends.exists(b, b.routeWeight > 0)", "at least one backend must have a routeWeight above 0"),
    ),
    "ModelBackend": (
        _MIN_MAX,
        CelRule(
            "!(self.type in ['MindIE', 'MindIEDisaggregated'])",
            "MindIE is not supported yet; write vLLM, vLLMDisaggregated, SGLang, SGLangDisaggregated or LlamaCpp",
        ),
        CelRule(
            "self.type.endsWith('Disaggregated')"
            " || (size(self.workers) == 1 && self.workers.all(w, w.type == 'server'))",
            "a backend that is not disaggregated has exactly one worker, of type server",
        ),
        CelRule(
            "!self.type.endsWith('Disaggregated') || self.workers.all(w, w.type in ['prefill', 'decode'])",
            "the workers of a disaggregated backend are of type prefill or decode",
        ),
        CelRule(
            "!self.type.endsWith('Disaggregated')"
            " || (self.workers.exists(w, w.type == 'prefill') && self.workers.exists(w, w.type == 'decode'))",
            "a disaggregated backend needs a prefill worker and a decode worker",
        ),
        _within_half_hour("scaleToZeroGracePeriod"),
    ),
    "BackendRollout": (
        CelRule(
            "self.strategy == 'Canary' ? has(self.steps) && size(self.steps) > 0"
            " : !has(self.steps) || size(self.steps) == 0",
            "steps are for strategy Canary, which needs at least one",
        ),
    ),
    "ModelVersionSpec": (
        CelRule("self == oldSelf", "a ModelVersion cannot be changed; change the Model, and a new version is made"),
    ),
    "AutoscalingPolicySpec": (
        CelRule(
            "self.metrics.all(x, self.metrics.exists_one(y, y.metricName == x.metricName))",
            "each metricName may appear once",
        ),
    ),
    "Metric": (
        CelRule(
            "type(self.targetValue) == int ? self.targetValue > 0"
            " : quantity(self.targetValue).isGreaterThan(quantity('0'))",
            "targetValue must be greater than 0",
        ),
        CelRule("size(self.metricName) > 0", "metricName must not be empty"),
        CelRule(
            "(has(self.source) && self.source == 'Prometheus') == has(self.prometheus)",
            "prometheus is for source Prometheus, which needs it",
        ),
    ),
    "StablePolicy": (_within_half_hour("period"), _within_half_hour("stabilizationWindow")),
    "PanicPolicy": (_within_half_hour("period"), _within_half_hour("panicModeHold")),
    "ScaleToZero": (_not_negative("idleWindow"),),
    "AutoscalingPolicyBindingSpec": (
        CelRule(
            "has(self.optimizerConfiguration) != has(self.scalingConfiguration)",
            "Either optimizerConfiguration or scalingConfiguration must be set, but not both.",
        ),
        CelRule(
            "has(self.policyRef.name) && size(self.policyRef.name) > 0", "policyRef.name must name an AutoscalingPolicy"
        ),
    ),
    "ScalingConfiguration": (_MIN_MAX, _TARGET),
    "OptimizerParam": (_MIN_MAX, _TARGET),
    "Target": (
        CelRule("has(self.targetRef.name) && size(self.targetRef.name) > 0", "targetRef.name must name a ModelInfer"),
        CelRule(
            "!has(self.targetRef.kind) || self.targetRef.kind in ['', 'ModelInfer']",
            "targetRef.kind must be ModelInfer",
        ),
    ),
    "RatioBounds": (
        CelRule("self.numeratorRole != self.denominatorRole", "numeratorRole and denominatorRole must differ"),
        CelRule("self.minPercent <= self.maxPercent", "minPercent must not be greater than maxPercent"),
    ),
    "InferGroup": (
        CelRule("self.roles.all(x, self.roles.exists_one(y, y.name == x.name))", "roles name must be unique"),
    ),
    "Role": (
        CelRule(
            "!has(self.workerReplicas) || self.workerReplicas <= 0 || has(self.workerTemplate)",
            "workerTemplate must be set when workerReplicas is greater than 0",
        ),
        CelRule(
            "!has(self.minReplicas) || self.minReplicas <= self.replicas",
            "minReplicas must not be greater than replicas",
        ),
    ),
    "RollingUpdateConfiguration": (
        _percent_or_count("maxUnavailable"),
        _percent_or_count("maxSurge"),
        CelRule(
            "!(string(self.maxUnavailable) in ['0', '0%'] && string(self.maxSurge) in ['0', '0%'])",
            "maxUnavailable and maxSurge cannot both be 0",
        ),
    ),
    "ModelRouteSpec": (
        CelRule(
            "(has(self.modelName) && self.modelName != '') || (has(self.loraAdapters) && size(self.loraAdapters) > 0)",
            "ModelName and LoraAdapters cannot both be empty",
        ),
        CelRule(
            "!has(oldSelf.modelName) || !has(self.modelName) || self.modelName == oldSelf.modelName",
            "modelName is immutable",
        ),
    ),
    "Rule": (CelRule("self.targetModels.exists(t, t.weight > 0)", "at least one target must have a weight above 0"),),
    "RouteTimeouts": (_not_negative("request"), _not_negative("firstByte"), _not_negative("idle")),
    "TrafficPolicy": (_not_negative("timeout"), _not_negative("firstByteTimeout"), _not_negative("idleTimeout")),
}
