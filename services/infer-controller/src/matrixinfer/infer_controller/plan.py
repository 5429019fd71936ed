"""The plan of one pass: what to mark, delete and make so that a ModelInfer comes one step nearer to its spec.

Owns the order of decisions and is the only place that knows all of them: count groups, update, rebuild, trim roles,
then fill what is left. Each decision sees what the ones before took away, so no group is touched twice in a pass. The
trap is a second opinion: nothing here may look at the pods again, only at the one `Fleet`, or budgets stop adding up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from matrixinfer.api.v1alpha1.kinds import MODEL_INFER
from matrixinfer.api.v1alpha1.modelinfer import RecoveryPolicy
from matrixinfer.infer_controller import drain, recovery, revisions, rollout, scaling
from matrixinfer.infer_controller.fleet import (
    Cause,
    Fleet,
    Group,
    Infer,
    Pod,
    Removal,
    Role,
    Scope,
    Seen,
    Template,
    Unit,
    UnitId,
)
from matrixinfer.infer_controller.groups import muster, new_group
from matrixinfer.infer_controller.render import pods as render_pods
from matrixinfer.infer_controller.render import services as render_services
from matrixinfer.infer_controller.status import comparable, desired_status, unreadable_status
from matrixinfer.kube.plan import Apply, Create, Delete, EventType, Merge, Note, Plan, Step, WriteStatus
from matrixinfer.kube.resource import PODS, SERVICES, Manifest, Resource, owner_reference

__all__ = ["MODEL_INFERS", "plan", "write_status"]

MODEL_INFERS: Final = Resource.of(MODEL_INFER)
"""The resource this controller reconciles."""


@dataclass(slots=True)
class _Draft:
    """The decisions of a pass as they are made."""

    marks: dict[str, Merge] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    touched: set[UnitId] = field(default_factory=set)
    updating: set[int] = field(default_factory=set)
    services: list[Step] = field(default_factory=list)
    entries: list[Step] = field(default_factory=list)
    workers: list[Step] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def mark(self, pods: Iterable[Pod], removal: Removal) -> None:
        pods = tuple(pods)
        for step in drain.marks(pods, removal):
            self.marks.setdefault(step.uid, step)
        if removal.scope is Scope.GROUP:
            self.leaving |= {pod.unit.ordinal for pod in pods}
        self.touched |= {pod.unit for pod in pods}

    def tell(self, reason: str, message: str, type_: EventType = EventType.NORMAL) -> None:
        self.notes.append(Note(reason, message, type_))
        self.reasons.append(message)


def plan(seen: Seen, now: datetime) -> Plan:
    """Return the next step of a ModelInfer; empty when it is as it should be."""
    infer = seen.infer
    if infer.is_deleting:
        return Plan(why="it is being deleted; garbage collection removes what it owns")
    if infer.problem:
        status = write_status(infer, unreadable_status(seen, now))
        return Plan(why=infer.problem, status=(status,), error=infer.problem)
    fleet = muster(seen, now)
    draft = _Draft()
    count = scaling.group_count(fleet)
    _remove_groups(draft, count.remove, now)
    _finish_begun(draft, fleet)
    _update_groups(draft, fleet, now)
    waiting = _rebuild(draft, seen, fleet, now)
    _trim_roles(draft, fleet, now)
    _fill(draft, seen, fleet, count.create)
    gone = drain.deletions(seen, fleet, now)
    if gone.steps:
        draft.reasons.append(f"deleting {len(gone.steps)} pods that are done")
    _tell_cut(draft, gone.cut)
    owner = owner_reference(MODEL_INFERS, infer.key.name, infer.uid)
    first = (
        *gone.steps,
        *draft.marks.values(),
        *revisions.missing(seen, owner),
        *revisions.expired(seen, fleet, rollout.current_revision(fleet)),
        *draft.services,
    )
    waves: tuple[Sequence[Step], ...] = (first, tuple(draft.entries), tuple(draft.workers))
    return Plan(
        why="; ".join(draft.reasons),
        waves=tuple(wave for wave in waves if wave),
        status=(write_status(infer, desired_status(seen, fleet, waiting, now)),),
        notes=tuple(draft.notes),
        again_after=_again(
            now,
            [wait.until for wait in waiting if wait.until],
            gone.moments,
            _lost(seen, now),
            recovery.expiries(seen, fleet, now),
        ),
    )


def write_status(infer: Infer, desired: Manifest) -> WriteStatus:
    """Return the write that makes `desired` the status; it costs nothing when the status is that already."""
    return WriteStatus(MODEL_INFERS, infer.key, infer.uid, comparable(desired), comparable(infer.status))


def _finish_begun(draft: _Draft, fleet: Fleet) -> None:
    for pods, removal in drain.unfinished(fleet):
        draft.mark(pods, removal)


def _remove_groups(draft: _Draft, groups: Sequence[Group], now: datetime) -> None:
    for group in groups:
        draft.mark(group.pods, Removal(Scope.GROUP, Cause.SCALE_DOWN, now))
        draft.leaving.add(group.ordinal)
    if draft.marks:
        draft.tell("ScalingDown", f"removing {_named(groups)}: more groups than wanted")


def _update_groups(draft: _Draft, fleet: Fleet, now: datetime) -> None:
    staying = [group for group in fleet.kept if group.ordinal not in draft.leaving]
    chosen = rollout.next_step(fleet, staying)
    before = len(draft.marks)
    draft.updating |= {group.ordinal for group in chosen}
    for group in chosen:
        pods = rollout.replaced_pods(group, fleet)
        draft.mark(pods, Removal(rollout.replacement_scope(fleet), Cause.ROLLOUT, now))
    if len(draft.marks) > before:
        draft.tell("Updating", f"replacing {_named(chosen)} by revision {fleet.update.revision}")


def _rebuild(draft: _Draft, seen: Seen, fleet: Fleet, now: datetime) -> Sequence[recovery.Waiting]:
    staying = [group for group in fleet.kept if group.ordinal not in draft.leaving]
    due, waiting = recovery.due_rebuilds(seen, fleet, staying, now)
    for rebuild in due:
        if {pod.unit for pod in rebuild.pods} & draft.touched:
            continue
        draft.mark(rebuild.pods, rebuild.removal)
        target = recovery.target_name(seen.infer.key.name, rebuild.removal.scope, rebuild.pods[0])
        draft.tell("Rebuilding", f"rebuilding {target}: {rebuild.message}", EventType.WARNING)
    return waiting


def _trim_roles(draft: _Draft, fleet: Fleet, now: datetime) -> None:
    for group in fleet.kept:
        if group.ordinal in draft.leaving:
            continue
        surplus = [unit for unit in scaling.surplus_units(group) if unit.id not in draft.touched]
        for unit in surplus:
            draft.mark(unit.pods, Removal(Scope.UNIT, Cause.SCALE_DOWN, now))
            draft.touched.add(unit.id)
        if surplus:
            told = ", ".join(f"{unit.id.role}-{unit.id.replica}" for unit in surplus)
            draft.tell("ScalingDown", f"removing {told} of group {group.ordinal}: more role replicas than wanted")


def _fill(draft: _Draft, seen: Seen, fleet: Fleet, ordinals: Sequence[int]) -> None:
    staying = [group for group in fleet.kept if group.ordinal not in draft.leaving]
    made = [new_group(ordinal, fleet) for ordinal in ordinals]
    needed: set[str] = set()
    for group in (*staying, *made):
        for unit in group.units:
            needed |= _complete(draft, seen, fleet, unit)
        # Until its outdated units are marked, a group would still be given new ones of the old revision.
        if group.ordinal not in draft.updating:
            for unit_id in scaling.missing_units(group):
                needed |= _make_unit(draft, seen, group, unit_id)
    _drop_services(draft, seen, fleet, needed)
    if made:
        draft.tell("CreatingGroups", f"making {_named(made)} of revision {_revisions(made)}")


def _complete(draft: _Draft, seen: Seen, fleet: Fleet, unit: Unit) -> set[str]:
    """Make the pods that a unit lacks, from the revision it has; leave it alone when it is about to be rebuilt."""
    template = fleet.templates.get(unit.pods[0].revision)
    role = template.role(unit.id.role) if template else None
    if template is None or role is None:
        return {render_services.service_name(seen.infer, unit.id)}
    hurt = unit.failure is not None and unit.failure.is_final and seen.infer.policy is not RecoveryPolicy.NONE
    if unit.is_live and not hurt and unit.id not in draft.touched:
        there = {pod.index for pod in unit.pods}
        _make_pods(draft, seen, template, role, unit.id, [i for i in range(role.size) if i not in there])
    return _ensure_service(draft, seen, role, unit.id)


def _make_unit(draft: _Draft, seen: Seen, group: Group, unit: UnitId) -> set[str]:
    role = group.base.role(unit.role) if group.base else None
    if group.base is None or role is None:
        return set()
    _make_pods(draft, seen, group.base, role, unit, range(role.size))
    return _ensure_service(draft, seen, role, unit)


def _make_pods(draft: _Draft, seen: Seen, template: Template, role: Role, unit: UnitId, indexes: Iterable[int]) -> None:
    owner = owner_reference(MODEL_INFERS, seen.infer.key.name, seen.infer.uid)
    for index in indexes:
        step = Create(PODS, render_pods.pod(seen.infer, template, role, unit, index, owner))
        # Workers come after their entry pod, so that workers without one tell that it vanished.
        (draft.workers if index else draft.entries).append(step)


def _ensure_service(draft: _Draft, seen: Seen, role: Role, unit: UnitId) -> set[str]:
    if role.worker_replicas == 0:
        return set()
    infer = seen.infer
    name = render_services.service_name(infer, unit)
    found = next((service for service in seen.services if service.name == name), None)
    if found is None or not (found.is_deleting or render_services.is_as_rendered(found, infer, unit)):
        owner = owner_reference(MODEL_INFERS, infer.key.name, infer.uid)
        manifest = render_services.headless_service(infer, unit, owner)
        draft.services.append(Create(SERVICES, manifest) if found is None else Apply(SERVICES, manifest))
    return {name}


def _drop_services(draft: _Draft, seen: Seen, fleet: Fleet, needed: set[str]) -> None:
    """Remove the services of units that are gone; a unit that drains keeps its own to the end."""
    there = {
        render_services.service_name(seen.infer, unit.id) for group in fleet.groups.values() for unit in group.units
    }
    draft.services += [
        Delete(SERVICES, service.key, service.uid)
        for service in seen.services
        if service.name not in needed | there and not service.is_deleting
    ]


def _tell_cut(draft: _Draft, cut: Sequence[Pod]) -> None:
    for pod in cut:
        draft.tell("DrainCut", f"pod {pod.name} still had requests when its drain time was over", EventType.WARNING)


def _lost(seen: Seen, now: datetime) -> list[datetime]:
    """Return when pods on nodes that do not answer begin to count as failed."""
    nodes = {pod.node for pod in seen.pods}
    begins = (since + seen.timing.node_lost for node, since in seen.lost_nodes.items() if node in nodes)
    return [moment for moment in begins if moment > now]


def _again(now: datetime, *moments: Iterable[datetime]) -> timedelta | None:
    return min((moment - now for several in moments for moment in several), default=None)


def _named(groups: Sequence[Group]) -> str:
    numbers = ", ".join(str(group.ordinal) for group in groups[:10])
    more = f" and {len(groups) - 10} more" if len(groups) > 10 else ""
    return f"{'group' if len(groups) == 1 else 'groups'} {numbers}{more}"


def _revisions(groups: Sequence[Group]) -> str:
    return ", ".join(sorted({group.base.revision for group in groups if group.base}))
