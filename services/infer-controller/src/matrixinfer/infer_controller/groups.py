"""From a heap of pods to groups: which units there are, what each is made from, and how many there should be.

Owns the reading of one consistent look. It decides nothing, but every decision stands on it: all budgets, counts and
conditions of a pass come from the one `Fleet` made here. The trap: a group that waits for its update keeps the shape
it has; giving it the new counts would load models that are thrown away a moment later.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from matrixinfer.infer_controller.fleet import Fleet, Group, Infer, Pod, Role, Seen, Template, Unit, UnitId, is_current
from matrixinfer.infer_controller.recovery import failure_of

__all__ = ["muster", "new_group"]


def muster(seen: Seen, now: datetime) -> Fleet:
    """Return the groups that the pods make up."""
    update = seen.infer.template
    stored = {found.revision: found.template for found in seen.revisions if found.template is not None}
    shaper = _Shaper(seen.infer, {**stored, update.revision: update})
    by_ordinal: defaultdict[int, list[Pod]] = defaultdict(list)
    for pod in seen.pods:
        by_ordinal[pod.unit.ordinal].append(pod)
    groups = {
        ordinal: shaper.group(ordinal, _units(pods, shaper.templates, seen, now))
        for ordinal, pods in sorted(by_ordinal.items())
    }
    kept = tuple(group for group in groups.values() if group.is_kept)
    return Fleet(seen.infer, update, shaper.templates, groups, kept)


def new_group(ordinal: int, fleet: Fleet) -> Group:
    """Return the group of an ordinal that has no pod yet."""
    return _Shaper(fleet.infer, fleet.templates).group(ordinal, ())


def _units(pods: Iterable[Pod], templates: Mapping[str, Template], seen: Seen, now: datetime) -> tuple[Unit, ...]:
    by_unit: defaultdict[UnitId, list[Pod]] = defaultdict(list)
    for pod in pods:
        by_unit[pod.unit].append(pod)
    return tuple(_unit(id_, members, templates, seen, now) for id_, members in sorted(by_unit.items()))


def _unit(id_: UnitId, pods: list[Pod], templates: Mapping[str, Template], seen: Seen, now: datetime) -> Unit:
    pods.sort(key=lambda pod: pod.index)
    made_from = templates.get(pods[0].revision)
    role = made_from.role(id_.role) if made_from else None
    size = role.size if role else len(pods)
    return Unit.of(id_, tuple(pods), size, failure_of(pods, size, seen, now))


class _Shaper:
    """Works out what a group is made from and how many units it should have."""

    def __init__(self, infer: Infer, templates: Mapping[str, Template]) -> None:
        self.templates = templates
        self._infer = infer
        self._update = infer.template
        self._newest = {role.name: role.replicas for role in infer.template.roles}

    def group(self, ordinal: int, units: tuple[Unit, ...]) -> Group:
        protected = ordinal < self._infer.partition
        live = [pod for unit in units for pod in unit.live]
        outdated = [pod for pod in live if not is_current(pod, self._infer, self.templates)]
        base = self._base(live, outdated, protected)
        wanted = self._newest if base is self._update else self._shape(base, units, protected)
        return Group.of(ordinal, units, base, wanted, is_outdated=bool(outdated), is_protected=protected)

    def _base(self, live: Sequence[Pod], outdated: Sequence[Pod], protected: bool) -> Template | None:
        if outdated:
            count = Counter(pod.revision for pod in outdated)
            return self.templates.get(max(count, key=lambda revision: (count[revision], revision)))
        if not live and protected:
            return self.templates.get(self._infer.current_revision, self._update)
        return self._update

    def _shape(self, base: Template | None, units: Iterable[Unit], protected: bool) -> Mapping[str, int]:
        """Return the units wanted of a group that is not of the newest revision."""
        live = Counter(unit.id.role for unit in units if unit.is_live)
        if base is None:
            # What it was made from is lost: the best guess is the shape that it has and the roles that there are now.
            return {
                **live,
                **{role.name: self._frozen(role, live[role.name], protected) for role in self._update.roles},
            }
        return {role.name: self._frozen(role, live[role.name], protected) for role in base.roles}

    def _frozen(self, role: Role, live: int, protected: bool) -> int:
        """Return the units of a role: a protected group follows the spec, another waits as it is."""
        counted = self._newest.get(role.name, role.replicas)
        return counted if protected else max(live, min(role.replicas, counted))
