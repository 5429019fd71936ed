"""What is written for a binding or a policy: status, and replicas through the `scale` subresource only. Pure.

Trap: a verdict is about the world of its round. It is carried out only while the target still has the uid and the
replicas that the round saw; whoever changed them meanwhile, a person included, is answered by the next round.
"""

from datetime import datetime
from typing import Any, NamedTuple

from matrixinfer.api.conditions import find_condition
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicyBindingStatus
from matrixinfer.autoscaler.seen import BindingSeen, PolicySeen
from matrixinfer.autoscaler.status import blocked_status, decided_status, policy_status
from matrixinfer.autoscaler.views import BINDING, INFER, POLICY, InferView
from matrixinfer.kube.plan import EventType, Note, Plan, Scale, WriteStatus
from matrixinfer.kube.resource import Key

__all__ = ["Blocked", "blocked", "plan_binding", "plan_policy", "unwritten"]


class Blocked(NamedTuple):
    """Why nothing can be decided for a binding; `found` is what is known of its target."""

    reason: str
    message: str
    found: bool | None = None


def blocked(seen: BindingSeen) -> Blocked | None:
    """Why this binding cannot be decided, or `None` when it can."""
    namespace = seen.key.namespace
    if seen.scaling is None and seen.binding.spec.optimizer_configuration is not None:
        return Blocked("SeveralTargets", "Sharing replicas between several targets is not available; bind one target.")
    target = seen.target
    if target is None or not target.target_ref.name:
        return Blocked("NoTarget", "The binding names no target; set targetRef.name.", False)
    if target.target_ref.kind not in (None, "", "ModelInfer"):
        kind = target.target_ref.kind
        return Blocked("TargetKind", f"A {kind} cannot be scaled; set targetRef.kind to ModelInfer.", False)
    if seen.infer is None:
        return Blocked("TargetNotFound", f"ModelInfer {namespace}/{target.target_ref.name} does not exist.", False)
    if seen.policy is None:
        name = seen.binding.spec.policy_ref.name
        return Blocked("PolicyNotFound", f"AutoscalingPolicy {namespace}/{name} does not exist.", True)
    if target.role is not None and not seen.infer.entry_pods(target.role):
        return Blocked("RoleNotFound", f"ModelInfer {seen.infer.key} has no role {target.role!r}.", True)
    return None


def plan_binding(seen: BindingSeen, now: datetime) -> Plan:
    """Write the status, and the replicas when the latest verdict still applies and wants others."""
    if seen.binding.metadata.deletion_timestamp is not None:
        return Plan()
    obstacle = blocked(seen)
    if obstacle is not None:
        status = blocked_status(seen, now, reason=obstacle.reason, message=obstacle.message, found=obstacle.found)
        return Plan(status=(_write(seen, status),), notes=_warning(seen, obstacle))
    verdict, infer, policy = seen.verdict, seen.infer, seen.policy
    if verdict is None or infer is None or policy is None or verdict.infer_uid != infer.metadata.uid:
        # The first round is at most one period away; until then the status that is there stays true.
        return Plan()
    dry_run = bool(policy.spec.dry_run)
    applies = verdict.replicas_then == infer.replicas and infer.metadata.deletion_timestamp is None
    scaling = applies and verdict.decision.replicas != infer.replicas and not dry_run
    if not applies and seen.binding.status.recommendation is not None:
        return _counted(seen, infer)
    status = decided_status(seen, verdict, now, current=infer.existing, scaled=scaling, dry_run=dry_run)
    if not scaling:
        return Plan(status=(_write(seen, status),))
    sentence = verdict.decision.sentence
    return Plan(
        why=sentence,
        waves=((Scale(INFER, infer.key, verdict.decision.replicas),),),
        status=(_write(seen, status),),
        notes=(Note("Scaled", f"ModelInfer {infer.key}: {sentence}"),),
    )


def unwritten(seen: BindingSeen, message: str, now: datetime) -> WriteStatus:
    """The status when replicas could not be written: `message` is what the server said."""
    return _write(seen, blocked_status(seen, now, reason="ScaleFailed", message=message, found=True))


def plan_policy(seen: PolicySeen, now: datetime) -> Plan:
    """Write who uses a policy."""
    policy = seen.policy
    desired: dict[str, Any] = policy_status(policy, seen.bindings, now).to_manifest()
    current: dict[str, Any] = policy.status.to_manifest()
    key = Key(policy.metadata.namespace, policy.metadata.name)
    return Plan(status=(WriteStatus(POLICY, key, policy.metadata.uid, desired, current),))


def _counted(seen: BindingSeen, infer: InferView) -> Plan:
    """Between two rounds only the count of what exists moves."""
    before = seen.binding.status
    targets = tuple(target.model_copy(update={"current_replicas": infer.existing}) for target in before.targets)
    status = before.model_copy(update={"current_replicas": infer.existing, "targets": targets})
    return Plan(status=(_write(seen, status),))


def _write(seen: BindingSeen, status: AutoscalingPolicyBindingStatus) -> WriteStatus:
    current: dict[str, Any] = seen.binding.status.to_manifest()
    desired: dict[str, Any] = status.to_manifest()
    return WriteStatus(BINDING, seen.key, seen.binding.metadata.uid, desired, current)


def _warning(seen: BindingSeen, obstacle: Blocked) -> tuple[Note, ...]:
    """An event when the obstacle is new."""
    before = find_condition(seen.binding.status.conditions, "Ready")
    if before is not None and before.reason == obstacle.reason:
        return ()
    return (Note(obstacle.reason, obstacle.message, EventType.WARNING),)
