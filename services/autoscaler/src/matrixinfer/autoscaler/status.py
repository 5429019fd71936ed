"""What the status says: pure construction, and the rule that a steady target costs no write.

Trap: numbers move a little in every round. The recommendation in status is renewed at once when replicas, mode or
conditions change, and otherwise only when what it rests on differs and the one there is old enough.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from matrixinfer.api.conditions import Condition, set_condition
from matrixinfer.api.v1alpha1.autoscaling import (
    AutoscalingPolicy,
    AutoscalingPolicyBindingStatus,
    AutoscalingPolicyStatus,
    MetricReading,
    Recommendation,
    ScalingMode,
    TargetStatus,
)
from matrixinfer.autoscaler.core.recommend import Vote
from matrixinfer.autoscaler.seen import BindingSeen, Verdict

__all__ = ["blocked_status", "decided_status", "policy_status"]

RENEWAL: Final = timedelta(seconds=60)
"""How old a recommendation is before mere numbers renew it."""


def blocked_status(
    seen: BindingSeen, now: datetime, *, reason: str, message: str, found: bool | None
) -> AutoscalingPolicyBindingStatus:
    """Nothing can be decided: `Ready` is False and says why. `found` is what is known of the target."""
    conditions: Sequence[Condition] = seen.binding.status.conditions
    if found is not None:
        conditions = _with_target(seen, conditions, now, found=found, message=message)
    conditions = set_condition(conditions, "Ready", False, reason, message, seen.binding.metadata.generation, now)
    return seen.binding.status.model_copy(
        update={
            "observed_generation": seen.binding.metadata.generation,
            "target": _target_text(seen),
            "conditions": tuple(conditions),
        }
    )


def decided_status(
    seen: BindingSeen, verdict: Verdict, now: datetime, *, current: int, scaled: bool, dry_run: bool
) -> AutoscalingPolicyBindingStatus:
    """The outcome of a round: what is recommended, from what, and why."""
    before, generation = seen.binding.status, seen.binding.metadata.generation
    decision = verdict.decision
    mode = ScalingMode.DRY_RUN if dry_run else ScalingMode.PANIC if decision.panic else ScalingMode.STABLE
    conditions = _with_target(seen, before.conditions, now, found=True, message="")
    known = any(cast.replicas is not None for cast in decision.votes) or not decision.votes
    reason, message = _ready_words(known=known, dry_run=dry_run)
    conditions = set_condition(conditions, "Ready", known, reason, message, generation, now)
    name = seen.infer.metadata.name if seen.infer is not None else ""
    recommendation = _recommendation(verdict)
    if before.mode is mode and before.desired_replicas == decision.replicas and not scaled:
        recommendation = _settled(before.recommendation, recommendation, now)
    return AutoscalingPolicyBindingStatus(
        observed_generation=generation,
        target=_target_text(seen),
        current_replicas=current,
        desired_replicas=decision.replicas,
        mode=mode,
        last_scale_time=now.replace(microsecond=0) if scaled else before.last_scale_time,
        recommendation=recommendation,
        targets=(TargetStatus(name=name, current_replicas=current, desired_replicas=decision.replicas),),
        conditions=tuple(conditions),
    )


def policy_status(policy: AutoscalingPolicy, bindings: int, now: datetime) -> AutoscalingPolicyStatus:
    """Who uses a policy, and that it is understood."""
    generation = policy.metadata.generation
    message = "No binding uses the policy." if not bindings else f"Bindings that use the policy: {bindings}."
    conditions = set_condition(policy.status.conditions, "Accepted", True, "Understood", message, generation, now)
    return AutoscalingPolicyStatus(
        observed_generation=generation,
        metrics=", ".join(metric.metric_name for metric in policy.spec.metrics),
        bindings=bindings,
        conditions=tuple(conditions),
    )


def _ready_words(*, known: bool, dry_run: bool) -> tuple[str, str]:
    if not known:
        return "MetricsUnknown", "No pod of the target says any metric of the policy; replicas are kept."
    if dry_run:
        return "DryRun", "Replicas are recommended and not changed, as the policy asks."
    return "Scaling", "Replicas follow the metrics of the policy."


def _with_target(
    seen: BindingSeen, conditions: Sequence[Condition], now: datetime, *, found: bool, message: str
) -> list[Condition]:
    reason = "Found" if found else "NotFound"
    text = "The target exists." if found else message
    return set_condition(conditions, "TargetFound", found, reason, text, seen.binding.metadata.generation, now)


def _target_text(seen: BindingSeen) -> str | None:
    target = seen.target
    if target is None:
        optimizer = seen.binding.spec.optimizer_configuration
        params = () if optimizer is None else optimizer.params
        return ", ".join(p.target.target_ref.name or "" for p in params if p.target is not None) or None
    return target.target_ref.name


def _settled(before: Recommendation | None, fresh: Recommendation, now: datetime) -> Recommendation:
    """The recommendation to show: the one there is, unless it says something else and has been there long enough."""
    if before is None or before.replicas != fresh.replicas:
        return fresh
    same = before.message == fresh.message and before.inputs == fresh.inputs
    return before if same or now - before.time < RENEWAL else fresh


def _recommendation(verdict: Verdict) -> Recommendation:
    decision = verdict.decision
    wanted = decision.replicas if decision.recommended is None else decision.recommended
    return Recommendation(
        replicas=wanted,
        time=verdict.at.replace(microsecond=0),
        message=decision.sentence,
        inputs=tuple(_reading(cast) for cast in decision.votes if cast.signal.value is not None),
    )


def _reading(cast: Vote) -> MetricReading:
    signal = cast.signal
    return MetricReading(
        metric_name=signal.name,
        value=_quantity(signal.mean),
        target_value=_quantity(signal.target),
        pods=signal.pods,
        missing_pods=signal.missing,
    )


def _quantity(value: float) -> str:
    """A quantity with three decimals; what is smaller is nothing."""
    thousandths = round(value * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
