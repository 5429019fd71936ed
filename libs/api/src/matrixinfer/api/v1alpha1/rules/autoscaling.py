"""Rules of AutoscalingPolicy, also where a Model holds one, and of AutoscalingPolicyBinding."""

from collections.abc import Iterator
from typing import Final

from matrixinfer.api import quantity
from matrixinfer.api.errors import FieldError
from matrixinfer.api.v1alpha1.autoscaling import (
    AutoscalingPolicy,
    AutoscalingPolicyBinding,
    AutoscalingPolicySpec,
    Behavior,
    Metric,
    MetricSource,
    RatioBounds,
    StablePolicy,
    Target,
)
from matrixinfer.api.v1alpha1.rules.values import check_duration, check_labels

__all__ = ["binding_errors", "binding_notices", "policy_errors", "policy_spec_errors"]

_LAST_PORT: Final = 65535


def policy_errors(new: AutoscalingPolicy, old: AutoscalingPolicy | None) -> Iterator[FieldError]:
    """Yield what is wrong with a policy."""
    del old
    yield from policy_spec_errors(new.spec, "spec")


def policy_spec_errors(spec: AutoscalingPolicySpec, path: str) -> Iterator[FieldError]:
    """Yield what is wrong with a policy that is found at `path`."""
    seen: set[str] = set()
    for index, metric in enumerate(spec.metrics):
        place = f"{path}.metrics[{index}]"
        yield from _metric_errors(metric, place)
        if metric.metric_name in seen:
            yield FieldError(f"{place}.metricName", f"{metric.metric_name!r} is used twice", "name each metric once")
        seen.add(metric.metric_name)
    if spec.behavior is not None:
        yield from _behavior_errors(spec.behavior, f"{path}.behavior")
    if spec.scale_to_zero is not None:
        yield from check_duration(spec.scale_to_zero.idle_window, f"{path}.scaleToZero.idleWindow", None)


def _metric_errors(metric: Metric, path: str) -> Iterator[FieldError]:
    if not metric.metric_name:
        yield FieldError(f"{path}.metricName", "must not be empty", "name a metric that the pods publish")
    yield from _target_value_errors(metric.target_value, f"{path}.targetValue")
    if metric.source is MetricSource.PROMETHEUS and metric.prometheus is None:
        yield FieldError(f"{path}.prometheus", "is missing", "set serverURL and query, or make the source Pod")
    if metric.source is MetricSource.POD and metric.prometheus is not None:
        yield FieldError(
            f"{path}.prometheus", "is not used with source Pod", "remove it, or make the source Prometheus"
        )


def _target_value_errors(value: int | str, path: str) -> Iterator[FieldError]:
    fix = "write for example 5 or 500m"
    try:
        number = quantity.parse(value)
    except ValueError:
        # The schema's grammar is that of the API server and wider than anyone needs: fractions as exponents, say.
        yield FieldError(path, f"{value!r} is not a number that we can read", fix)
        return
    if number <= 0:
        yield FieldError(path, f"must be greater than 0, but is {value}", fix)


def _behavior_errors(behavior: Behavior, path: str) -> Iterator[FieldError]:
    yield from _stable_errors(behavior.scale_down, f"{path}.scaleDown")
    if behavior.scale_up is None:
        return
    yield from _stable_errors(behavior.scale_up.stable_policy, f"{path}.scaleUp.stablePolicy")
    panic = behavior.scale_up.panic_policy
    if panic is not None:
        yield from check_duration(panic.period, f"{path}.scaleUp.panicPolicy.period")
        yield from check_duration(panic.panic_mode_hold, f"{path}.scaleUp.panicPolicy.panicModeHold")


def _stable_errors(policy: StablePolicy | None, path: str) -> Iterator[FieldError]:
    if policy is not None:
        yield from check_duration(policy.period, f"{path}.period")
        yield from check_duration(policy.stabilization_window, f"{path}.stabilizationWindow")


def binding_errors(new: AutoscalingPolicyBinding, old: AutoscalingPolicyBinding | None) -> Iterator[FieldError]:
    """Yield what is wrong with a binding."""
    del old
    spec = new.spec
    if not spec.policy_ref.name:
        yield FieldError("spec.policyRef.name", "must not be empty", "name an AutoscalingPolicy of this namespace")
    one, several = spec.scaling_configuration, spec.optimizer_configuration
    if one is None and several is None:
        yield FieldError("spec.scalingConfiguration", "is missing", "set it, or optimizerConfiguration")
    if one is not None and several is not None:
        yield FieldError(
            "spec.scalingConfiguration",
            "cannot be set together with optimizerConfiguration",
            "keep one of the two",
        )
    if one is not None:
        path = "spec.scalingConfiguration"
        yield from _target_errors(one.target, path)
        yield from _bounds_errors(one.min_replicas, one.max_replicas, path)
        yield from _ratio_errors(one.ratio, f"{path}.ratio")
    for index, param in enumerate(several.params if several is not None else ()):
        path = f"spec.optimizerConfiguration.params[{index}]"
        yield from _target_errors(param.target, path)
        yield from _bounds_errors(param.min_replicas, param.max_replicas, path)


def binding_notices(new: AutoscalingPolicyBinding, old: AutoscalingPolicyBinding | None) -> Iterator[FieldError]:
    """Yield what is legal in a binding but hardly meant."""
    del old
    params = new.spec.optimizer_configuration.params if new.spec.optimizer_configuration is not None else ()
    names = [param.target.target_ref.name for param in params if param.target is not None]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield FieldError(
                f"spec.optimizerConfiguration.params[{index}].target.targetRef.name",
                f"{name!r} is a target twice",
                "name each ModelInfer once",
            )


def _bounds_errors(least: int, most: int, path: str) -> Iterator[FieldError]:
    if least > most:
        yield FieldError(
            f"{path}.minReplicas",
            f"cannot be greater than maxReplicas ({least} > {most})",
            "raise maxReplicas or lower it",
        )


def _target_errors(target: Target | None, parent: str) -> Iterator[FieldError]:
    path = f"{parent}.target"
    if target is None:
        yield FieldError(path, "is missing", "name the ModelInfer to scale in target.targetRef")
        return
    if not target.target_ref.name:
        yield FieldError(f"{path}.targetRef.name", "is missing", "name a ModelInfer of this namespace")
    if target.target_ref.kind not in (None, "", "ModelInfer"):
        yield FieldError(f"{path}.targetRef.kind", f"{target.target_ref.kind!r} cannot be scaled", "write ModelInfer")
    yield from check_labels(target.additional_match_labels, f"{path}.additionalMatchLabels")
    endpoint = target.metric_endpoint
    if endpoint is None:
        return
    if not 1 <= endpoint.port <= _LAST_PORT:
        yield FieldError(
            f"{path}.metricEndpoint.port", f"{endpoint.port} is not a port", "write a port from 1 to 65535"
        )
    if not endpoint.uri.startswith("/"):
        yield FieldError(
            f"{path}.metricEndpoint.uri", f"{endpoint.uri!r} is not a path", "begin with '/', as in /metrics"
        )


def _ratio_errors(ratio: RatioBounds | None, path: str) -> Iterator[FieldError]:
    if ratio is None:
        return
    if ratio.numerator_role == ratio.denominator_role:
        yield FieldError(f"{path}.denominatorRole", "is the same as numeratorRole", "name two different roles")
    if ratio.min_percent > ratio.max_percent:
        yield FieldError(
            f"{path}.minPercent",
            f"cannot be greater than maxPercent ({ratio.min_percent} > {ratio.max_percent})",
            "raise maxPercent or lower it",
        )
