"""What the status of a ModelInfer says, and which changes of it may wait a moment.

Owns counts, conditions and their sentences. Everything comes from the pass's one look, so the status never
contradicts what the same pass does. The trap: a sentence must be the same as long as the facts are, or a steady
object is written for ever; so no sentence holds a count of restarts, a countdown or the text of an error that
alternates.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from matrixinfer.api import names
from matrixinfer.api.conditions import Condition, find_condition, format_time, set_condition
from matrixinfer.infer_controller.fleet import Fleet, Group, Infer, Pod, Seen, Unit
from matrixinfer.infer_controller.gang import unmet_wish
from matrixinfer.infer_controller.recovery import SETTLED, Waiting, records
from matrixinfer.infer_controller.rollout import budget, current_revision, is_rolling
from matrixinfer.kube.resource import Json, Manifest

__all__ = ["comparable", "desired_status", "is_urgent", "refused_status", "unreadable_status"]

_TOLD: Final = 3
"""Groups that a sentence names before it only counts."""

_WAITING: Final[Mapping[str, str]] = {
    "ImagePullBackOff": "cannot pull its image; check the image name and the pull secret",
    "InvalidImageName": "has an image name that is not valid; correct it in the template",
    "CreateContainerConfigError": "refers to a ConfigMap or Secret that is not there, or to a key that it lacks",
    "CrashLoopBackOff": "keeps crashing; see its log with kubectl logs --previous",
    "RunContainerError": "cannot start its command; check command and args in the template",
}
_URGENT: Final = ("Available", "NotOwned", "RecoveryBackoff")


@dataclass(frozen=True, slots=True)
class _Claim:
    """One condition without its bookkeeping."""

    type: str
    status: bool
    reason: str
    message: str


def desired_status(seen: Seen, fleet: Fleet, waiting: Sequence[Waiting], now: datetime) -> Manifest:
    """Return the whole status for this look."""
    infer, kept = seen.infer, fleet.kept
    available = [group for group in kept if group.is_available]
    updated = [group for group in kept if not group.is_outdated]
    outdated = len(fleet.groups) - len(updated)
    settled = len(available) == len(updated) == len(fleet.groups) == fleet.replicas and infer.partition == 0
    recoveries: list[Json] = [
        {
            "name": record.name,
            "revision": record.revision,
            "attempts": record.attempts,
            "lastTime": format_time(record.last_time or now),
            "reason": record.reason,
        }
        for record in records(seen, fleet, now)
    ]
    return {
        "observedGeneration": infer.generation,
        "replicas": len(fleet.groups),
        "readyReplicas": sum(1 for group in fleet.groups.values() if group.is_ready),
        "currentReplicas": len(updated) if settled else outdated,
        "updatedReplicas": len(updated),
        "availableReplicas": len(available),
        "currentRevision": current_revision(fleet),
        "updateRevision": fleet.update.revision,
        "labelSelector": _selector(infer),
        "roles": _role_counts(fleet),
        **({"recoveries": recoveries} if recoveries else {}),
        "conditions": _conditions(infer, _claims(fleet, waiting), now),
    }


def refused_status(
    seen: Seen, desired: Manifest, claim_type: str, reason: str, message: str, now: datetime
) -> Manifest:
    """Return `desired` with one more condition: why the API server did not let us do what we wanted."""
    told = [Condition.model_validate(found) for found in _items(desired.get("conditions"))]
    before = find_condition(seen.infer.conditions, claim_type)
    told = [found for found in told if found.type != claim_type] + ([before] if before else [])
    status = claim_type == "NotOwned"
    made = set_condition(told, claim_type, status, reason, message, seen.infer.generation, now)
    return {**desired, "conditions": _rendered(made)}


def unreadable_status(seen: Seen, now: datetime) -> Manifest:
    """Return the status of a ModelInfer that cannot be carried out: all as it was, and the reason."""
    infer = seen.infer
    claims = [_Claim("Progressing", False, "InvalidSpec", infer.problem)]
    before = {key: value for key, value in infer.status.items() if key not in ("conditions", "observedGeneration")}
    told = [found for found in infer.conditions if found.type != "Progressing"]
    return {
        **before,
        "observedGeneration": infer.generation,
        "conditions": _rendered([*told, *_set(infer, claims, now)]),
    }


def comparable(status: Manifest) -> Manifest:
    """Return a status in the order in which we write it, whatever order the API server gave its lists."""
    ordered = dict(status)
    for key, by in (("conditions", "type"), ("roles", "name"), ("recoveries", "name")):
        if key in ordered:
            ordered[key] = sorted(_items(ordered[key]), key=lambda item, by=by: str(item.get(by)))  # type: ignore[misc]
    return ordered


def is_urgent(current: Manifest, desired: Manifest) -> bool:
    """True unless only counts and sentences changed, which many pods may do in the same second."""
    if current.get("recoveries") != desired.get("recoveries"):
        return True
    before, after = _verdicts(current), _verdicts(desired)
    return any(before.get(type_, _quiet(type_)) != after.get(type_, _quiet(type_)) for type_ in _URGENT)


def _quiet(type_: str) -> str:
    """Return the verdict that nobody has to be told of at once: an object that is new is not available."""
    return "False" if type_ in _URGENT else ""


def _verdicts(status: Manifest) -> dict[str, str]:
    return {str(item.get("type")): str(item.get("status")) for item in _items(status.get("conditions"))}


def _items(value: Any) -> list[dict[str, Any]]:
    return list(value or ())


def _selector(infer: Infer) -> str:
    """Return the selector of one pod per group, so that averages over pods are averages over groups."""
    labels = {names.INFER_NAME: infer.key.name, names.INFER_ENTRY: "true"}
    if infer.template.roles:
        first = infer.template.roles[0].name
        labels |= {names.INFER_ROLE: first, names.INFER_ROLE_ID: names.role_id(first, 0)}
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _role_counts(fleet: Fleet) -> list[Json]:
    units = [unit for group in fleet.groups.values() for unit in group.units]
    roles = sorted({role.name for role in fleet.update.roles} | {unit.id.role for unit in units})
    return [
        {
            "name": role,
            "replicas": sum(1 for unit in units if unit.id.role == role),
            "readyReplicas": sum(1 for unit in units if unit.id.role == role and unit.is_serving),
            "updatedReplicas": sum(1 for unit in units if unit.id.role == role and _is_updated(unit, fleet)),
        }
        for role in roles
    ]


def _is_updated(unit: Unit, fleet: Fleet) -> bool:
    return unit.is_live and all(fleet.is_current(pod) for pod in unit.live)


def _conditions(infer: Infer, claims: Sequence[_Claim], now: datetime) -> list[Json]:
    written = {str(item.get("type")): item for item in _items(infer.status.get("conditions"))}
    if all(_is_told(claim, written.get(claim.type), infer.generation) for claim in claims):
        # The usual case by far, and much cheaper than making the same conditions again.
        return [written[type_] for type_ in sorted(claim.type for claim in claims)]
    return _rendered(_set(infer, claims, now))


def _is_told(claim: _Claim, written: Mapping[str, Any] | None, generation: int) -> bool:
    return (
        written is not None
        and written.get("status") == str(claim.status)
        and written.get("reason") == claim.reason
        and written.get("message") == claim.message
        and written.get("observedGeneration") == generation
    )


def _set(infer: Infer, claims: Sequence[_Claim], now: datetime) -> list[Condition]:
    told = [found for claim in claims if (found := find_condition(infer.conditions, claim.type)) is not None]
    for claim in claims:
        told = set_condition(told, claim.type, claim.status, claim.reason, claim.message, infer.generation, now)
    return told


def _rendered(conditions: Iterable[Condition]) -> list[Json]:
    return [condition.to_manifest() for condition in sorted(conditions, key=lambda found: found.type)]


def _claims(fleet: Fleet, waiting: Sequence[Waiting]) -> list[_Claim]:
    claims = [_available(fleet), _progressing(fleet, waiting), _updating(fleet)]
    makers: Sequence[Callable[[], _Claim | None]] = (lambda: _resting(fleet, waiting), lambda: _gang(fleet))
    return claims + [claim for make in makers if (claim := make()) is not None]


def _available(fleet: Fleet) -> _Claim:
    wanted, there = fleet.replicas, sum(1 for group in fleet.kept if group.is_available)
    if there >= wanted:
        told = f"all {wanted} groups are available" if wanted else "no group is wanted"
        return _Claim("Available", True, "AllGroupsReady", told)
    count = f"{there} of {wanted} groups {'is' if there == 1 else 'are'} available"
    if is_rolling(fleet) and there >= max(wanted - budget(fleet).unavailable, 1):
        told = f"{count} while revision {fleet.update.revision} is rolled out"
        return _Claim("Available", True, "MinimumGroupsReady", told)
    return _Claim("Available", False, "GroupsNotReady", f"{count}; {_blockers(fleet)}")


def _progressing(fleet: Fleet, waiting: Sequence[Waiting]) -> _Claim:
    stuck = [wait for wait in waiting if wait.until is None]
    if stuck:
        return _Claim("Progressing", False, "BackoffLimitExceeded", _given_up(fleet, stuck))
    busy = [group for group in fleet.groups.values() if not group.is_available]
    if not busy and len(fleet.groups) == fleet.replicas and not _behind(fleet):
        return _Claim("Progressing", False, SETTLED, "every group is as it should be")
    missing = max(fleet.replicas - len(fleet.groups), 0)
    leaving = sum(1 for group in fleet.groups.values() if not group.is_kept)
    starting = len(busy) - leaving
    parts = [
        f"{count} {'group is' if count == 1 else 'groups are'} {word}"
        for count, word in ((missing, "still to be made"), (starting, "not available yet"), (leaving, "being removed"))
        if count
    ]
    return _Claim(
        "Progressing", True, "GroupProgressing", ", ".join(parts) or "the next groups are about to be updated"
    )


def _updating(fleet: Fleet) -> _Claim:
    behind = _behind(fleet)
    revision = fleet.update.revision
    if behind:
        told = f"groups {_numbers(behind)} still have to get revision {revision}"
        return _Claim("UpdateInProgress", True, "GroupsUpdating", told)
    held = [group for group in fleet.kept if group.is_outdated]
    if held:
        told = f"groups {_numbers(held)} keep their revision because the partition is {fleet.infer.partition}"
        return _Claim("UpdateInProgress", False, "HeldByPartition", told)
    # With no replicas there is no group to wait for, whatever revision a partition keeps for those to come.
    if is_rolling(fleet) and fleet.replicas > 0:
        told = f"the last groups of revision {revision} are not available yet"
        return _Claim("UpdateInProgress", True, "GroupsUpdating", told)
    return _Claim("UpdateInProgress", False, "UpdateComplete", f"every group has revision {revision}")


def _behind(fleet: Fleet) -> list[Group]:
    return [group for group in fleet.kept if group.is_outdated and not group.is_protected]


def _resting(fleet: Fleet, waiting: Sequence[Waiting]) -> _Claim | None:
    resting = [wait for wait in waiting if wait.is_backoff]
    stuck = [wait for wait in resting if wait.until is None]
    if stuck:
        return _Claim("RecoveryBackoff", True, "BackoffLimitExceeded", _given_up(fleet, stuck))
    if resting:
        first = min(resting, key=lambda wait: (wait.until is None, wait.until, wait.target))
        until = format_time(first.until) if first.until else "never"
        told = f"{first.target} was rebuilt {_times(first.attempts)} and failed again: {first.failure.message}"
        return _Claim("RecoveryBackoff", True, "BackingOff", f"{told}; the next rebuild is at {until}")
    if find_condition(fleet.infer.conditions, "RecoveryBackoff") is None:
        return None
    return _Claim("RecoveryBackoff", False, "NothingWaits", "no rebuild waits for its back-off")


def _given_up(fleet: Fleet, stuck: Sequence[Waiting]) -> str:
    first = min(stuck, key=lambda wait: wait.target)
    return (
        f"{first.target} was rebuilt {_times(first.attempts)} and failed again: {first.failure.message}; "
        f"it is left alone because backoffLimit is {fleet.infer.backoff_limit}; correct the template or delete its pods"
    )


def _gang(fleet: Fleet) -> _Claim | None:
    told = unmet_wish(fleet.infer)
    return _Claim("GangScheduled", False, "NotSupported", told) if told else None


def _blockers(fleet: Fleet) -> str:
    waiting = [group for group in fleet.kept if not group.is_available]
    told = [f"group {group.ordinal}: {_blocker(group)}" for group in waiting[:_TOLD]]
    more = len(waiting) - len(told)
    if more > 0:
        told.append(f"and {more} more")
    return "; ".join(told) or "the missing groups are about to be made"


def _blocker(group: Group) -> str:
    if group.base is None:
        return "its revision was lost, so missing pods cannot be made; it is replaced when the partition allows"
    failure = next((unit.failure for unit in group.units if unit.failure is not None), None)
    if failure is not None:
        return failure.message
    pods = sorted(group.pods, key=lambda pod: (not pod.unscheduled, not pod.waiting, pod.name))
    # No name of a pod that merely starts: the sentence would change with each that becomes ready.
    return next((told for pod in pods if (told := _late(pod))), "its pods are starting")


def _late(pod: Pod) -> str:
    if pod.is_terminating or pod.removal is not None:
        return f"pod {pod.name} is being replaced"
    if pod.unscheduled:
        return f"pod {pod.name} cannot be scheduled: {pod.unscheduled}"
    return f"pod {pod.name} {_WAITING[pod.waiting]}" if pod.waiting in _WAITING else ""


def _numbers(groups: Sequence[Group]) -> str:
    told = ", ".join(str(group.ordinal) for group in groups[:10])
    return f"{told} and {len(groups) - 10} more" if len(groups) > 10 else told


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
