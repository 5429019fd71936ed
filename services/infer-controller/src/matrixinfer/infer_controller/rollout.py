"""How a new template reaches the groups: which are replaced next, how many may be missing, how many may be too many.

Owns `next_step` and the two budgets. Everything is counted from one look: a group that is missing, going, starting or
broken is unavailable, whatever the reason. The partition is an ordinal, not a position: groups below it keep their
revision even when others are missing. The trap: an update must not stop because the template that it replaces is
broken, and must stop when the new one is; so outdated groups that serve nobody are replaced first, within the same
budget.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matrixinfer.api import intstr
from matrixinfer.api.v1alpha1.modelinfer import RolloutStrategyType
from matrixinfer.infer_controller.fleet import Cause, Fleet, Group, Pod, Scope

__all__ = [
    "Budget",
    "budget",
    "current_revision",
    "is_rolling",
    "next_step",
    "replaced_pods",
    "replacement_scope",
    "surge",
    "unsettled",
]


@dataclass(frozen=True, slots=True)
class Budget:
    """Groups that may be unavailable, and groups that may exist above the wanted number, during an update."""

    unavailable: int
    surge: int


def budget(fleet: Fleet) -> Budget:
    """Return the budgets in groups; with neither an update could never go on, so one group may then be missing."""
    most = intstr.resolve(fleet.infer.max_surge, fleet.replicas, round_up=True)
    missing = intstr.resolve(fleet.infer.max_unavailable, fleet.replicas, round_up=False)
    return Budget(max(missing, 0 if most > 0 else 1), max(most, 0))


def is_rolling(fleet: Fleet) -> bool:
    """True from the change of a template until every group that may follow has followed."""
    recorded = fleet.infer.current_revision
    return (recorded != "" and recorded != fleet.update.revision) or any(group.is_outdated for group in fleet.kept)


def unsettled(fleet: Fleet) -> int:
    """Return how many ordinals below `replicas` have no available group of the revision they should have."""
    settled = {
        group.ordinal for group in fleet.kept if group.is_available and (group.is_protected or not group.is_outdated)
    }
    return sum(1 for ordinal in range(fleet.replicas) if ordinal not in settled)


def surge(fleet: Fleet) -> int:
    """Return how many groups above `replicas` the update needs now.

    New ones come while outdated groups wait; those that are there stay until their help is no longer needed.
    """
    most = budget(fleet).surge
    if most == 0 or not is_rolling(fleet):
        return 0
    waiting = sum(1 for group in fleet.kept if group.is_outdated and not group.is_protected)
    return min(most, max(waiting, min(unsettled(fleet), _above(fleet))))


def next_step(fleet: Fleet, staying: Sequence[Group]) -> tuple[Group, ...]:
    """Return the groups to replace now, broken ones first, then from the highest ordinal down.

    `staying` are the groups that scaling leaves alone. Never makes fewer than `replicas - maxUnavailable` available.
    """
    begun = [group for group in staying if group.is_outdated and _is_begun(group)]
    waiting = [g for g in staying if g.is_outdated and not g.is_protected and not _is_begun(g) and _has_live(g)]
    waiting.sort(key=lambda group: group.ordinal, reverse=True)
    broken = [group for group in waiting if not _goes_on(group)]
    serving = [group for group in waiting if _goes_on(group)]
    allowed = budget(fleet).unavailable
    available = sum(1 for group in staying if _goes_on(group))
    excused = sum(1 for group in staying if group.is_outdated and not _goes_on(group) and not _is_begun(group))
    disrupted = fleet.replicas - available - excused
    spare = available - (fleet.replicas - allowed)
    return (*begun, *broken[: max(allowed - disrupted, 0)], *serving[: max(spare, 0)])


def _goes_on(group: Group) -> bool:
    """True when it is available and recovery leaves it alone: a surplus unit that failed may take all of it down."""
    return group.is_available and not any(unit.failure for unit in group.units)


def replacement_scope(fleet: Fleet) -> Scope:
    """Return what an update removes as one."""
    by_role = fleet.infer.strategy is RolloutStrategyType.ROLE_ROLLING_UPDATE
    return Scope.UNIT if by_role else Scope.GROUP


def replaced_pods(group: Group, fleet: Fleet) -> tuple[Pod, ...]:
    """Return the pods that an update of the group removes: all of them, or the units of the roles that changed."""
    if replacement_scope(fleet) is Scope.GROUP:
        return group.pods
    stale = [unit for unit in group.units if not all(fleet.is_current(pod) for pod in unit.pods)]
    return tuple(pod for unit in stale for pod in unit.pods)


def current_revision(fleet: Fleet) -> str:
    """Return the revision that groups had before the update, or the newest when the update is over."""
    recorded, newest = fleet.infer.current_revision, fleet.update.revision
    if recorded == newest or _is_complete(fleet):
        return newest
    if recorded in fleet.templates:
        return recorded
    old = Counter(pod.revision for group in fleet.kept if group.is_outdated for pod in group.pods)
    return max(old, key=lambda revision: (old[revision], revision)) if old else newest


def _is_complete(fleet: Fleet) -> bool:
    if any(group.is_outdated for group in fleet.kept) or (fleet.replicas == 0 and fleet.infer.partition > 0):
        return False
    if budget(fleet).surge > 0:
        return unsettled(fleet) == 0 and _above(fleet) == 0
    return sum(1 for group in fleet.kept if group.is_available) >= fleet.replicas


def _above(fleet: Fleet) -> int:
    return sum(1 for group in fleet.kept if group.ordinal >= fleet.replicas)


def _has_live(group: Group) -> bool:
    return any(pod.is_live for pod in group.pods)


def _is_begun(group: Group) -> bool:
    """True when some of it is marked for this update already; what was begun is finished whatever the budget says."""
    return any(pod.removal is not None and pod.removal.cause is Cause.ROLLOUT for pod in group.pods)
