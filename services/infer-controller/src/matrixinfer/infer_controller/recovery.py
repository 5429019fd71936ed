"""What counts as a failure, what is rebuilt because of it, and when.

Owns the recovery policies and their back-off. The count of rebuilds is kept in `status.recoveries`; a rebuild starts
with marks on the pods and goes on only when the count is recorded, so a controller that dies in between neither
forgets the attempt nor counts it twice. The trap: a restart count never falls, so a restart is a failure only while
the pod has not been ready since, or while its peers go on as if nothing had happened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from matrixinfer.api import names
from matrixinfer.api.conditions import Condition, ConditionStatus, find_condition, format_time
from matrixinfer.api.v1alpha1.modelinfer import RecoveryPolicy, RecoveryRecord
from matrixinfer.infer_controller.fleet import (
    Cause,
    Failure,
    Fleet,
    Group,
    Infer,
    Pod,
    Removal,
    Scope,
    Seen,
    Timing,
    Unit,
)

__all__ = [
    "SETTLED",
    "Rebuild",
    "Waiting",
    "backoff",
    "due_rebuilds",
    "expiries",
    "failure_of",
    "is_recorded",
    "records",
    "target_name",
]

SETTLED: Final = "Settled"
"""Reason of the condition `Progressing` when every group is as it should be."""
_SLACK: Final = timedelta(seconds=2)
"""The kubelet writes an exit and the Ready condition it causes up to this far apart, in whole seconds."""
_FORMED: Final = timedelta(minutes=10)
"""An entry pod that was ready for this long had all its workers once, however slowly they were made."""
_VANISHED: Final = "PodVanished"
_CRASH_LOOP: Final = "CrashLoopBackOff"
_PATIENCE: Final = timedelta(seconds=60)
"""An attempt that cannot be recorded for this long is carried out all the same."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Pods to mark now, and the removal to mark them with."""

    pods: tuple[Pod, ...]
    removal: Removal
    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A failure that is not acted on yet: `until` is None when the limit of attempts is reached."""

    target: str
    failure: Failure
    attempts: int
    until: datetime | None
    is_backoff: bool


def failure_of(pods: Sequence[Pod], size: int, seen: Seen, now: datetime) -> Failure | None:
    """Return what is wrong with a unit; None while it is well, or merely starting.

    The worst is told: what cannot heal before what may, then the oldest.
    """
    found = [failure for pod in pods if (failure := _pod_failure(pod, seen, now)) is not None]
    found += _peer_failures(pods, size, seen, now)
    return min(found, key=_severity, default=None)


def _pod_failure(pod: Pod, seen: Seen, now: datetime) -> Failure | None:
    if pod.is_terminating:
        return None if pod.removal is not None else _deleted(pod, now)
    if pod.phase in ("Failed", "Succeeded"):
        reason = pod.reason or pod.exit_reason or "PodFailed"
        told = f": {pod.message}" if pod.message else ""
        return Failure(reason, f"pod {pod.name} ended ({reason}){told}", _since(pod, now), pod.name, is_final=True)
    lost = seen.lost_nodes.get(pod.node)
    if lost is not None and now - lost >= seen.timing.node_lost:
        message = f"node {pod.node} of pod {pod.name} has not answered since {format_time(lost)}"
        return Failure("NodeLost", message, lost, pod.name, is_final=True)
    return _restarted(pod)


def _deleted(pod: Pod, now: datetime) -> Failure:
    return Failure("PodDeleted", f"pod {pod.name} is being deleted by somebody else", now, pod.name, is_final=True)


def _restarted(pod: Pod) -> Failure | None:
    if pod.ready:
        return None
    turned = pod.ready_changed or pod.created
    if pod.last_exit is None:
        # The kubelet forgets the last exit when it cleans up, but still says that it waits because of it.
        return _exited(pod, turned) if turned is not None and pod.waiting == _CRASH_LOOP else None
    if turned is not None and pod.last_exit < turned - _SLACK and pod.waiting != _CRASH_LOOP:
        return None
    # A second exit must not wind the grace period back: the pod has not been ready since before the first.
    return _exited(pod, pod.last_exit if turned is None or pod.restarts <= 1 else turned)


def _exited(pod: Pod, since: datetime) -> Failure:
    reason = pod.exit_reason or pod.waiting or "ContainerExited"
    return Failure(reason, f"a container of pod {pod.name} exited ({reason})", since, pod.name)


def _peer_failures(pods: Sequence[Pod], size: int, seen: Seen, now: datetime) -> Iterable[Failure]:
    """Tell what only a look at all pods of a unit of several shows: peers of a broken engine are broken too."""
    if size < 2:
        return
    entry = next((pod for pod in pods if pod.index == 0), None)
    if entry is None:
        if pods:
            message = f"the entry pod of {pods[0].unit.role}-{pods[0].unit.replica} is gone while its workers are there"
            yield Failure(_VANISHED, message, now, pods[0].name, is_final=True)
        return
    if not entry.ready or entry.ready_changed is None:
        return
    if len(pods) < size and _was_formed(entry, entry.ready_changed, seen.infer, now):
        yield Failure(_VANISHED, f"a worker of {entry.name} is gone", now, entry.name, is_final=True)
    if seen.infer.policy is RecoveryPolicy.NONE:
        # Nothing would ever mend it, so the word of the pods' own readiness must do.
        return
    yield from (
        _exited(pod, pod.last_exit)
        for pod in pods
        if pod.last_exit is not None and pod.last_exit > entry.ready_changed + _SLACK
    )


def _was_formed(entry: Pod, ready_since: datetime, infer: Infer, now: datetime) -> bool:
    """True when the unit had all its pods once; until then a missing one is merely not made yet."""
    if now - ready_since >= _FORMED:
        return True
    return entry.created is not None and any(entry.created <= moment for moment in _whole_at(infer.conditions))


def _whole_at(conditions: Sequence[Condition]) -> Iterable[datetime]:
    """Yield moments at which every group had all its pods.

    A rollout within its budget leaves `Available` true all along, so the moment that it settled counts as well.
    """
    available, progressing = (find_condition(conditions, type_) for type_ in ("Available", "Progressing"))
    if available is not None and available.status is ConditionStatus.TRUE:
        yield available.last_transition_time
    if progressing is not None and progressing.reason == SETTLED:
        yield progressing.last_transition_time


def _since(pod: Pod, now: datetime) -> datetime:
    return pod.last_exit or pod.ready_changed or pod.created or now


def backoff(attempts: int, timing: Timing) -> timedelta:
    """Return the time between rebuild number `attempts` and the next; the first one comes at once."""
    if attempts == 0:
        return timedelta()
    doublings = min(attempts - 1, 30)
    return min(timing.backoff_base * (1 << doublings), timing.backoff_cap)


def target_name(infer: str, scope: Scope, pod: Pod) -> str:
    """Return the name under which rebuilds of a group, a unit or a pod are counted."""
    group = names.group_name(infer, pod.unit.ordinal)
    match scope:
        case Scope.GROUP:
            return group
        case Scope.UNIT:
            return f"{group}/{names.role_id(pod.unit.role, pod.unit.replica)}"
        case Scope.POD:
            return pod.name


def due_rebuilds(
    seen: Seen, fleet: Fleet, groups: Iterable[Group], now: datetime
) -> tuple[list[Rebuild], list[Waiting]]:
    """Return what to rebuild now, and which failures wait for their grace period, back-off or limit."""
    rebuilds: list[Rebuild] = []
    waiting: list[Waiting] = []
    for failure, scope, pods in _targets(fleet, groups):
        verdict = _judge(seen, failure, scope, pods, now)
        if isinstance(verdict, Rebuild):
            rebuilds.append(verdict)
        else:
            waiting.append(verdict)
    return rebuilds, waiting


def _targets(fleet: Fleet, groups: Iterable[Group]) -> Iterable[tuple[Failure, Scope, tuple[Pod, ...]]]:
    """Yield each failure with the pods that its policy rebuilds; those that are going anyway are left out."""
    for group in groups:
        failed = [(unit, unit.failure) for unit in group.units if unit.failure is not None and unit.removal is None]
        if not failed:
            continue
        match fleet.infer.policy:
            case RecoveryPolicy.INFER_GROUP_RECREATE:
                worst = min((failure for _, failure in failed), key=_severity)
                candidates = [(worst, Scope.GROUP, _staying(group.pods))]
            case RecoveryPolicy.ROLE_RECREATE:
                candidates = [(failure, Scope.UNIT, _staying(unit.pods)) for unit, failure in failed]
            case RecoveryPolicy.NONE:
                candidates = [(failure, Scope.POD, _ended(unit, failure)) for unit, failure in failed]
        yield from ((failure, scope, pods) for failure, scope, pods in candidates if pods)


def _severity(failure: Failure) -> tuple[bool, datetime]:
    return (not failure.is_final, failure.since)


def _staying(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if not pod.is_terminating)


def _ended(unit: Unit, failure: Failure) -> tuple[Pod, ...]:
    """Return the one pod that the kubelet can do nothing for any more; its peers are none of its business."""
    if not failure.is_final or failure.reason == _VANISHED:
        return ()
    return tuple(pod for pod in unit.live if pod.name == failure.pod)


def _judge(seen: Seen, failure: Failure, scope: Scope, pods: tuple[Pod, ...], now: datetime) -> Rebuild | Waiting:
    infer, timing = seen.infer, seen.timing
    target = target_name(infer.key.name, scope, pods[0])
    record = _valid_record(infer.recoveries, target, pods[0].revision, failure, timing)
    attempts = record.attempts if record else 0
    if infer.backoff_limit is not None and attempts >= infer.backoff_limit:
        return Waiting(target, failure, attempts, None, is_backoff=True)
    healed_by = failure.since if failure.is_final else failure.since + infer.restart_grace
    rested_by = record.last_time + backoff(attempts, timing) if record and record.last_time else healed_by
    until = max(healed_by, rested_by)
    if now < until:
        return Waiting(target, failure, attempts, until, is_backoff=rested_by > healed_by)
    removal = Removal(scope, Cause.RECOVERY, now, attempts + 1, failure.reason)
    return Rebuild(pods, removal, failure.message)


def _valid_record(
    recorded: Iterable[RecoveryRecord], target: str, revision: str, failure: Failure, timing: Timing
) -> RecoveryRecord | None:
    found = next((record for record in recorded if record.name == target), None)
    if found is None or found.revision != revision or found.last_time is None:
        return None
    # A target that failed again long after its last rebuild has proved itself in between.
    longest = max(timing.backoff_reset, 2 * backoff(found.attempts, timing))
    return found if failure.since - found.last_time < longest else None


def is_recorded(seen: Seen, pod: Pod, removal: Removal, now: datetime) -> bool:
    """True when the attempt that a rebuild makes is in the status, so that deleting its pods forgets nothing."""
    if now - removal.since >= _PATIENCE:
        return True
    target = target_name(seen.infer.key.name, removal.scope, pod)
    return any(
        record.name == target and record.attempts >= removal.attempt and record.revision == pod.revision
        for record in seen.infer.recoveries
    )


def records(seen: Seen, fleet: Fleet, now: datetime) -> tuple[RecoveryRecord, ...]:
    """Return `status.recoveries` as it must be: what is recorded and still matters, and what the marked pods tell."""
    unwell = _unwell(fleet)
    kept = {
        record.name: record
        for record in seen.infer.recoveries
        if record.name in unwell or _is_recent(record, fleet, seen.timing, now)
    }
    return tuple(record for _, record in sorted((kept | _marked(seen, kept)).items()))


def expiries(seen: Seen, fleet: Fleet, now: datetime) -> tuple[datetime, ...]:
    """When records lapse that are kept only because they are recent: the status changes then without an event."""
    return tuple(
        record.last_time + seen.timing.backoff_reset
        for record in seen.infer.recoveries
        if record.last_time is not None and _is_recent(record, fleet, seen.timing, now)
    )


def _unwell(fleet: Fleet) -> frozenset[str]:
    """Return the names of all targets that do not serve, under each name they may be counted by."""
    return frozenset(
        target_name(fleet.infer.key.name, scope, pod)
        for group in fleet.groups.values()
        for unit in group.units
        if not unit.is_serving
        for pod in unit.pods
        for scope in Scope
    )


def _is_recent(record: RecoveryRecord, fleet: Fleet, timing: Timing, now: datetime) -> bool:
    if record.revision not in fleet.templates or record.last_time is None:
        return False
    return now - record.last_time < timing.backoff_reset


def _marked(seen: Seen, kept: Mapping[str, RecoveryRecord]) -> dict[str, RecoveryRecord]:
    made: dict[str, RecoveryRecord] = {}
    for pod in seen.pods:
        removal = pod.removal
        if removal is None or removal.cause is not Cause.RECOVERY:
            continue
        target = target_name(seen.infer.key.name, removal.scope, pod)
        before = made.get(target) or kept.get(target)
        if before is not None and before.revision == pod.revision and before.attempts >= removal.attempt:
            continue
        made[target] = RecoveryRecord(
            name=target,
            revision=pod.revision,
            attempts=removal.attempt,
            last_time=removal.since,
            reason=removal.reason,
        )
    return made
