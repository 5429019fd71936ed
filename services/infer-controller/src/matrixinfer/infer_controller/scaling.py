"""How many groups and role replicas there should be, which ordinals are made, and which ones go.

Owns counts and the order of removal: not protected by the partition, broken, cheap, highest ordinal. Nothing above
the wanted number ever exists but the surge of a rollout. The trap: a group that is being removed still holds its name
and its accelerators, so it counts until its last pod is gone; otherwise 4 → 0 → 4 would make eight groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from matrixinfer.infer_controller.fleet import Fleet, Group, Unit, UnitId
from matrixinfer.infer_controller.rollout import budget, is_rolling, surge, unsettled

__all__ = ["GroupCount", "group_count", "missing_units", "surplus_units"]


@dataclass(frozen=True, slots=True)
class GroupCount:
    """The ordinals of groups to make, and the groups to remove, in order."""

    create: tuple[int, ...] = ()
    remove: tuple[Group, ...] = ()


def group_count(fleet: Fleet) -> GroupCount:
    """Return what brings the number of groups to `replicas` plus the surge that a rollout needs now."""
    target, kept = fleet.replicas + surge(fleet), fleet.kept
    if len(kept) > target:
        return GroupCount(remove=_first_to_go(fleet, len(kept) - target))
    if len(kept) == target == len(fleet.groups) and is_rolling(fleet):
        return GroupCount(remove=_in_the_way(fleet))
    return GroupCount(create=tuple(islice(_free_ordinals(fleet), max(target - len(fleet.groups), 0))))


def surplus_units(group: Group) -> tuple[Unit, ...]:
    """Return the role replicas that are too many: broken ones first, then cheap, then the highest."""
    surplus: list[Unit] = []
    for role, wanted in group.wanted.items():
        there = [unit for unit in group.of_role(role) if unit.removal is None]
        there.sort(key=lambda unit: (unit.is_available, unit.deletion_cost, -unit.id.replica))
        surplus += there[: max(len(there) - wanted, 0)]
    return tuple(surplus)


def missing_units(group: Group) -> tuple[UnitId, ...]:
    """Return the role replicas to make, the lowest free ones; one that is going keeps its place until it is gone."""
    missing: list[UnitId] = []
    for role, wanted in group.wanted.items():
        taken = {unit.id.replica for unit in group.of_role(role)}
        free = (replica for replica in count() if replica not in taken)
        missing += [UnitId(group.ordinal, role, replica) for replica in islice(free, max(wanted - len(taken), 0))]
    return tuple(missing)


def _in_the_way(fleet: Fleet) -> tuple[Group, ...]:
    """Return the surge group that takes the place of one below `replicas`, when the numbers alone look right.

    Two surge groups and one ordinal still to be made are as many groups as one surge group and no gap.
    """
    if all(ordinal in fleet.groups for ordinal in range(fleet.replicas)):
        return ()
    helpers = sorted(
        (group for group in fleet.kept if group.ordinal >= fleet.replicas and not group.is_protected),
        key=lambda group: (group.is_available, -group.ordinal),
    )
    available = sum(1 for group in fleet.kept if group.is_available)
    spare = available > fleet.replicas - budget(fleet).unavailable
    return tuple(group for group in helpers[:1] if spare or not group.is_available)


def _first_to_go(fleet: Fleet, surplus: int) -> tuple[Group, ...]:
    # At the end of a rollout the surplus is its surge, whatever deletion costs say: ordinals must not drift upwards.
    is_surge = is_rolling(fleet) and unsettled(fleet) == 0

    def order(group: Group) -> tuple[bool, bool, bool, int, int]:
        helped = is_surge and group.ordinal >= fleet.replicas
        return group.is_protected, not helped, group.is_available, group.deletion_cost, -group.ordinal

    return tuple(sorted(fleet.kept, key=order)[:surplus])


def _free_ordinals(fleet: Fleet) -> Iterator[int]:
    """Yield ordinals without a pod: those below `replicas` first; above it none that the partition protects."""
    yield from (ordinal for ordinal in range(fleet.replicas) if ordinal not in fleet.groups)
    yield from (ordinal for ordinal in count(max(fleet.replicas, fleet.infer.partition)) if ordinal not in fleet.groups)
