"""How planned removals happen: mark, let the gateway turn away, wait until the unit is idle or time is up, delete.

Owns the protocol from the mark on. A mark is the intent itself: it survives this process, is completed by whoever
comes next, and is never taken back. A unit drains as one, because requests enter it through its entry pod only. The
trap: `in_flight` of a pod that nobody could ask is unknown, not zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from matrixinfer.infer_controller.fleet import Cause, Fleet, Pod, Removal, Scope, Seen, Unit
from matrixinfer.infer_controller.recovery import is_recorded
from matrixinfer.kube.plan import Delete, Merge
from matrixinfer.kube.resource import PODS

__all__ = ["Deletions", "deletions", "marks", "unfinished"]

_RECORD_POLL: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Deletions:
    """Pods to delete now, when to look again, and the entry pods whose requests are cut because time is up."""

    steps: tuple[Delete, ...] = ()
    moments: tuple[datetime, ...] = ()
    cut: tuple[Pod, ...] = ()


def marks(pods: Iterable[Pod], removal: Removal) -> tuple[Merge, ...]:
    """Return the steps that write the intent on those pods that do not carry it yet."""
    return tuple(
        Merge(PODS, pod.key, pod.uid, {"metadata": {"annotations": dict(removal.annotations)}})
        for pod in pods
        if not pod.is_terminating and not _carries(pod, removal.scope)
    )


def unfinished(fleet: Fleet) -> Sequence[tuple[tuple[Pod, ...], Removal]]:
    """Return the removals that were begun and whose marks are not on all pods: a controller died in between."""
    found: list[tuple[tuple[Pod, ...], Removal]] = []
    for group in fleet.groups.values():
        if group.removal is not None:
            found.append((group.pods, group.removal))
            continue
        found += [(unit.pods, unit.removal) for unit in group.units if unit.removal is not None]
    return found


def deletions(seen: Seen, fleet: Fleet, now: datetime) -> Deletions:
    """Return which marked pods go now, and when the next may."""
    steps: list[Delete] = []
    moments: list[datetime] = []
    cut: list[Pod] = []
    for group in fleet.groups.values():
        for unit in group.units:
            due = _due(seen, unit, now)
            if due is not None and due > now:
                moments.append(due)
            if due is not None and due <= now:
                leaving = [pod for pod in unit.pods if pod.removal is not None and not pod.is_terminating]
                steps += [Delete(PODS, pod.key, pod.uid) for pod in leaving]
                cut += [pod for pod in leaving if pod.index == 0 and seen.in_flight.get(pod.uid, 0) > 0]
            forced = _overdue(seen, unit)
            steps += [Delete(PODS, pod.key, pod.uid, grace_seconds=0) for pod, at in forced if at <= now]
            moments += [at for _, at in forced if at > now]
    return Deletions(tuple(steps), tuple(moments), tuple(cut))


def _carries(pod: Pod, scope: Scope) -> bool:
    """True when the pod's mark says at least as much: a whole group says more than a unit, a unit more than a pod."""
    if pod.removal is None:
        return False
    rank = (Scope.POD, Scope.UNIT, Scope.GROUP)
    return rank.index(pod.removal.scope) >= rank.index(scope)


def _due(seen: Seen, unit: Unit, now: datetime) -> datetime | None:
    """Return when the marked pods of a unit may be deleted; None when none is marked or all are on their way."""
    leaving = [(pod, pod.removal) for pod in unit.pods if pod.removal is not None and not pod.is_terminating]
    if not leaving:
        return None
    recorded = [
        removal.since if removal.cause is not Cause.RECOVERY or is_recorded(seen, pod, removal, now) else None
        for pod, removal in leaving
    ]
    if None in recorded:
        # The status write that records the attempt wakes this key; the timer is for a write that never succeeds.
        return now + _RECORD_POLL
    since = min(removal.since for _, removal in leaving)
    return since if not unit.is_serving else _drained_by(seen, unit, since)


def _drained_by(seen: Seen, unit: Unit, since: datetime) -> datetime:
    timing = seen.timing
    load = seen.in_flight.get(unit.pods[0].uid)
    if load is None:
        return since + timing.settle
    return since + (timing.notice if load == 0 else timing.drain)


def _overdue(seen: Seen, unit: Unit) -> list[tuple[Pod, datetime]]:
    """Return pods that no kubelet will ever report gone, and when to take them away."""
    return [
        (pod, pod.delete_by + seen.timing.force_delete)
        for pod in unit.pods
        if pod.delete_by is not None and pod.node in seen.lost_nodes
    ]
