"""A policy's words as the core's values. Pure; the only place where the two meet."""

from datetime import timedelta
from typing import Final

from matrixinfer.api import quantity
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicySpec, MetricSource, SelectPolicy, StablePolicy
from matrixinfer.autoscaler.core.behavior import Limit, Rules
from matrixinfer.autoscaler.core.panic import PanicRule
from matrixinfer.autoscaler.core.signals import Wanted

__all__ = ["idle_window_of", "rules_of", "unread_metrics", "wanted_of"]

_IDLE_WINDOW: Final = timedelta(minutes=10)
_FREE: Final = Limit(instances=0, percent=100, period=timedelta(minutes=1), window=timedelta(0))


def rules_of(spec: AutoscalingPolicySpec) -> Rules:
    """How fast replicas may change."""
    behavior = spec.behavior
    up = behavior.scale_up if behavior is not None else None
    panic = up.panic_policy if up is not None else None
    return Rules(
        up=_limit(up.stable_policy if up is not None else None),
        down=_limit(behavior.scale_down if behavior is not None else None),
        panic=None
        if panic is None
        else PanicRule(panic.percent, panic.period, panic.panic_threshold_percent, panic.panic_mode_hold),
        tolerance=spec.tolerance_percent / 100,
    )


def _limit(policy: StablePolicy | None) -> Limit:
    if policy is None:
        return _FREE
    return Limit(
        instances=policy.instances,
        percent=policy.percent,
        period=policy.period,
        window=policy.stabilization_window or timedelta(0),
        strict=policy.select_policy is SelectPolicy.AND,
    )


def wanted_of(spec: AutoscalingPolicySpec) -> tuple[Wanted, ...]:
    """The metrics that are read from pods, with their targets."""
    return tuple(
        Wanted(metric.metric_name, float(quantity.parse(metric.target_value)))
        for metric in spec.metrics
        if metric.source is MetricSource.POD
    )


def unread_metrics(spec: AutoscalingPolicySpec) -> tuple[Wanted, ...]:
    """The metrics that come from elsewhere and that this release does not read: they count as unknown."""
    return tuple(
        Wanted(metric.metric_name, float(quantity.parse(metric.target_value)))
        for metric in spec.metrics
        if metric.source is not MetricSource.POD
    )


def idle_window_of(spec: AutoscalingPolicySpec) -> timedelta:
    """How long nobody must have asked before a target whose minimum is zero is stopped."""
    return spec.scale_to_zero.idle_window if spec.scale_to_zero is not None else _IDLE_WINDOW
