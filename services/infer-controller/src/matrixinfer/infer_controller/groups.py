"""From a heap of pods to groups: which units there are, what each is made from, and how many there should be.

Owns the reading of one consistent look. It decides nothing, but every decision stands on it: all budgets, counts and
conditions of a pass come from the one `Fleet` made here. The trap: a group that waits for its update keeps the shape
it has; giving it the new counts would load models that are thrown away a moment later.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from matrixinfer.infer_controller.fleet import Fleet, Group, Pod, Role, Seen, Template, Unit, UnitId
from matrixinfer.infer_controller.recovery import failure_of

__all__ = ["muster", "new_group"]


def muster(seen: Seen, now: datetime) -> Fleet:
    """Return the groups that the pods make up."""
    update = seen.infer.template
    stored = {found.revision: found.template for found in seen.revisions if found.template is not None}
    empty = Fleet(seen.infer, update, {**stored, update.revision: update}, {})
    by_ordinal: defaultdict[int, list[Pod]] = defaultdict(list)
    for pod in seen.pods:
        by_ordinal[pod.unit.ordinal].append(pod)
    groups = {ordinal: _group(ordinal, pods, seen, empty, now) for ordinal, pods in by_ordinal.items()}
    return Fleet(seen.infer, update, empty.templates, groups)


def new_group(ordinal: int, fleet: Fleet) -> Group:
    """Return the group of an ordinal that has no pod yet."""
    return _shaped(ordinal, (), fleet)


def _group(ordinal: int, pods: Iterable[Pod], seen: Seen, fleet: Fleet, now: datetime) -> Group:
    by_unit: defaultdict[UnitId, list[Pod]] = defaultdict(list)
    for pod in pods:
        by_unit[pod.unit].append(pod)
    units = tuple(_unit(id_, members, seen, fleet, now) for id_, members in sorted(by_unit.items()))
    return _shaped(ordinal, units, fleet)


def _unit(id_: UnitId, pods: Sequence[Pod], seen: Seen, fleet: Fleet, now: datetime) -> Unit:
    ordered = tuple(sorted(pods, key=lambda pod: pod.index))
    made_from = fleet.templates.get(ordered[0].revision)
    role = made_from.role(id_.role) if made_from else None
    size = role.size if role else len(ordered)
    return Unit(id_, ordered, size, failure_of(ordered, size, seen, now))


def _shaped(ordinal: int, units: tuple[Unit, ...], fleet: Fleet) -> Group:
    protected = ordinal < fleet.infer.partition
    live = [pod for unit in units for pod in unit.live]
    outdated = [pod for pod in live if not fleet.is_current(pod)]
    base = _base(live, outdated, protected, fleet)
    wanted = _wanted(base, units, protected, fleet)
    return Group(ordinal, units, base, wanted, is_outdated=bool(outdated), is_protected=protected)


def _base(live: Sequence[Pod], outdated: Sequence[Pod], protected: bool, fleet: Fleet) -> Template | None:
    if outdated:
        count = Counter(pod.revision for pod in outdated)
        return fleet.templates.get(max(count, key=lambda revision: (count[revision], revision)))
    if not live and protected:
        return fleet.templates.get(fleet.infer.current_revision, fleet.update)
    return fleet.update


def _wanted(base: Template | None, units: Iterable[Unit], protected: bool, fleet: Fleet) -> Mapping[str, int]:
    live = Counter(unit.id.role for unit in units if unit.is_live)
    if base is None:
        return live
    if base.revision == fleet.update.revision:
        return {role.name: role.replicas for role in fleet.update.roles}
    return {role.name: _frozen(role, live[role.name], protected, fleet) for role in base.roles}


def _frozen(role: Role, live: int, protected: bool, fleet: Fleet) -> int:
    """Return the units of a role in an outdated group: a protected one follows the spec, another waits as it is."""
    now = fleet.update.role(role.name)
    counted = now.replicas if now else role.replicas
    return counted if protected else max(live, min(role.replicas, counted))
