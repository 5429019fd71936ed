"""The nouns of this controller: pods, units, groups, templates, and what a pass has seen of them.

Owns plain values and questions about them; decides nothing. A *group* is the unit of scaling and updating, a *unit*
is one role replica (an entry pod and its workers). The trap: a group is never an object in the API server. Whatever
must outlive this process (being removed, rebuilt how often, of which revision) is read from pods and status, and
nothing is remembered between passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from matrixinfer.api import names
from matrixinfer.api.conditions import Condition, format_time, parse_time
from matrixinfer.api.v1alpha1.modelinfer import RecoveryPolicy, RecoveryRecord, RolloutStrategyType
from matrixinfer.kube.resource import Key, Manifest

__all__ = [
    "Cause",
    "Failure",
    "Fleet",
    "Group",
    "HeadlessService",
    "Infer",
    "JsonObject",
    "Pod",
    "Removal",
    "Role",
    "Scope",
    "Seen",
    "StoredRevision",
    "Template",
    "Timing",
    "Unit",
    "UnitId",
    "is_current",
]

JsonObject: TypeAlias = Mapping[str, Any]
"""Part of a pod template: decoded JSON that is passed through unread."""


class Scope(StrEnum):
    """What is removed as one."""

    GROUP = "group"
    UNIT = "unit"
    POD = "pod"


class Cause(StrEnum):
    """Why something is removed."""

    SCALE_DOWN = "ScaleDown"
    ROLLOUT = "Rollout"
    RECOVERY = "Recovery"


@dataclass(frozen=True, slots=True)
class Removal:
    """The intent to remove a pod, as it stands in the pod's annotations. It is never taken back."""

    scope: Scope
    cause: Cause
    since: datetime
    attempt: int = 0
    reason: str = ""

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations that say it."""
        text = f"{self.scope}/{self.cause}"
        if self.cause is Cause.RECOVERY:
            text += f"/{self.attempt}/{self.reason}"
        return {names.INFER_DRAINING_SINCE: format_time(self.since), names.INFER_REMOVAL: text}

    @staticmethod
    def read(annotations: Mapping[str, str]) -> "Removal | None":
        """Return the removal that the annotations tell of; None when they tell of none, or make no sense."""
        text = annotations.get(names.INFER_REMOVAL)
        if text is None:
            return None
        scope, _, rest = text.partition("/")
        cause, _, rest = rest.partition("/")
        attempt, _, reason = rest.partition("/")
        try:
            since = parse_time(annotations.get(names.INFER_DRAINING_SINCE, ""))
            return Removal(Scope(scope), Cause(cause), since, int(attempt or 0), reason)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, order=True)
class UnitId:
    """Which role replica of which group."""

    ordinal: int
    role: str
    replica: int


class Pod(msgspec.Struct, frozen=True):
    """What we keep of a pod. `unit` and `index` come from its labels and name; foreign pods are dropped before."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    owner_uid: str
    infer: str
    unit: UnitId
    index: int
    revision: str
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    ready: bool = False
    ready_changed: datetime | None = None
    """When Ready last turned true or false."""
    created: datetime | None = None
    delete_by: datetime | None = None
    """The deletion timestamp: when its grace period is over."""
    restarts: int = 0
    last_exit: datetime | None = None
    exit_reason: str = ""
    waiting: str = ""
    """Why a container waits, e.g. `ImagePullBackOff: no such image`."""
    unscheduled: str = ""
    node: str = ""
    address: str = ""
    port: int = 0
    """Port of the engine's API; 0 when no container names one `http`."""
    deletion_cost: int = 0
    removal: Removal | None = None

    @property
    def key(self) -> Key:
        """Where it lives."""
        return Key(self.namespace, self.name)

    @property
    def is_terminating(self) -> bool:
        """True once a deletion was asked for, by us or by others."""
        return self.delete_by is not None

    @property
    def is_live(self) -> bool:
        """True unless it is going away."""
        return self.removal is None and self.delete_by is None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit needs help. `is_final` failures cannot heal by waiting."""

    reason: str
    message: str
    since: datetime
    pod: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Role:
    """One role of a template."""

    name: str
    replicas: int
    worker_replicas: int
    entry: JsonObject
    worker: JsonObject | None = None

    @property
    def size(self) -> int:
        """Pods of one unit."""
        return 1 + self.worker_replicas


@dataclass(frozen=True, slots=True)
class Template:
    """What a group is made from. `revision` names everything in it but the counts of role replicas."""

    revision: str
    roles: tuple[Role, ...]
    role_revisions: Mapping[str, str]
    scheduler_name: str = ""
    spread: tuple[JsonObject, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True when a group of it has no pod at all."""
        return not any(role.replicas for role in self.roles)

    def role(self, name: str) -> Role | None:
        """Return the role of that name."""
        return next((role for role in self.roles if role.name == name), None)


@dataclass(frozen=True, slots=True)
class Infer:
    """A ModelInfer as this controller reads it. With a `problem` nothing else but its identity can be relied on."""

    key: Key
    uid: str
    resource_version: str
    generation: int
    template: Template
    replicas: int = 1
    is_deleting: bool = False
    restart_grace: timedelta = timedelta()
    policy: RecoveryPolicy = RecoveryPolicy.ROLE_RECREATE
    strategy: RolloutStrategyType = RolloutStrategyType.INFER_GROUP_ROLLING_UPDATE
    max_unavailable: int | str = 1
    max_surge: int | str = 0
    partition: int = 0
    backoff_limit: int | None = None
    wants_gang: bool = False
    current_revision: str = ""
    conditions: tuple[Condition, ...] = ()
    recoveries: tuple[RecoveryRecord, ...] = ()
    status: Manifest = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A ControllerRevision. `template` is None when its data makes no sense."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    owner_uid: str
    infer: str
    revision: str
    number: int
    template: Template | None

    @property
    def key(self) -> Key:
        """Where it lives."""
        return Key(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class HeadlessService:
    """What we keep of a Service of ours."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    owner_uid: str
    infer: str
    selector: Mapping[str, str]
    publishes_not_ready: bool
    is_deleting: bool = False

    @property
    def key(self) -> Key:
        """Where it lives."""
        return Key(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Timing:
    """Every span this controller waits; all of them are settings."""

    settle: timedelta = timedelta(seconds=5)
    """A removed unit whose load is unknown is deleted after this."""
    drain: timedelta = timedelta(seconds=60)
    """A removed unit that still works is deleted after this."""
    notice: timedelta = timedelta(seconds=1)
    """Time the gateway gets to hear of a removal before an idle unit goes."""
    backoff_base: timedelta = timedelta(seconds=10)
    backoff_cap: timedelta = timedelta(seconds=300)
    backoff_reset: timedelta = timedelta(seconds=600)
    """A unit that held this long after a rebuild starts counting afresh."""
    node_lost: timedelta = timedelta(seconds=30)
    """A node may be not ready for this long before its pods count as failed."""
    force_delete: timedelta = timedelta(seconds=60)
    """A pod on a lost node is removed without its kubelet this long after its grace period."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One consistent look at a ModelInfer and all that is its own."""

    infer: Infer
    pods: tuple[Pod, ...] = ()
    services: tuple[HeadlessService, ...] = ()
    revisions: tuple[StoredRevision, ...] = ()
    lost_nodes: Mapping[str, datetime] = field(default_factory=dict)
    """Nodes that do not answer, and since when; empty while too many seem lost to believe it."""
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Requests running and waiting in an entry pod, by uid, where that is known."""
    timing: Timing = Timing()
    history_limit: int = 10


@dataclass(frozen=True, slots=True)
class Unit:
    """One role replica with the pods that there are of it, by index. Made by `of`, which works out the rest once."""

    id: UnitId
    pods: tuple[Pod, ...]
    size: int
    failure: Failure | None
    removal: Removal | None
    """The intent to remove all of it."""
    live: tuple[Pod, ...]
    """The pods that are not going away."""
    is_serving: bool
    """True when every pod is there and ready, even if it is about to be removed."""
    is_available: bool
    """True when it serves and will go on serving."""

    @staticmethod
    def of(id_: UnitId, pods: tuple[Pod, ...], size: int, failure: Failure | None) -> "Unit":
        """Return the unit that these pods make up, given what is wrong with it."""
        marks = [pod.removal for pod in pods if pod.removal is not None]
        removal = next((mark for mark in marks if mark.scope is not Scope.POD), None)
        live = tuple(pod for pod in pods if pod.removal is None and pod.delete_by is None)
        serving = failure is None and len(pods) >= size and all(pod.ready and pod.delete_by is None for pod in pods)
        return Unit(id_, pods, size, failure, removal, live, serving, serving and not marks)

    @property
    def is_live(self) -> bool:
        """True when it is meant to stay and something of it is there."""
        return self.removal is None and bool(self.live)

    @property
    def deletion_cost(self) -> int:
        """Sum of the pods' deletion costs."""
        return sum(pod.deletion_cost for pod in self.pods)


@dataclass(frozen=True, slots=True)
class Group:
    """One group with the units that there are of it. Made by `of`, which works out the rest once."""

    ordinal: int
    units: tuple[Unit, ...]
    base: Template | None
    """What missing units are made from; None when that revision was lost."""
    wanted: Mapping[str, int]
    """Units wanted of each role."""
    is_outdated: bool
    is_protected: bool
    removal: Removal | None
    """The intent to remove all of it."""
    is_ready: bool
    """True when every wanted unit serves, even if the group is about to be removed."""
    is_available: bool
    """True when every wanted unit serves and will go on serving."""

    @staticmethod
    def of(
        ordinal: int,
        units: tuple[Unit, ...],
        base: Template | None,
        wanted: Mapping[str, int],
        *,
        is_outdated: bool,
        is_protected: bool,
    ) -> "Group":
        """Return the group that these units make up."""
        marks = (pod.removal for unit in units if unit.removal is not None for pod in unit.pods)
        removal = next((mark for mark in marks if mark is not None and mark.scope is Scope.GROUP), None)
        ready = _have(wanted, [unit.id.role for unit in units if unit.is_serving])
        available = removal is None and ready and _have(wanted, [unit.id.role for unit in units if unit.is_available])
        return Group(ordinal, units, base, wanted, is_outdated, is_protected, removal, ready, available)

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All its pods."""
        return tuple(pod for unit in self.units for pod in unit.pods)

    @property
    def is_kept(self) -> bool:
        """True unless the whole group is being removed."""
        return self.removal is None

    @property
    def deletion_cost(self) -> int:
        """Sum of the pods' deletion costs."""
        return sum(unit.deletion_cost for unit in self.units)

    def of_role(self, role: str) -> tuple[Unit, ...]:
        """Return the units of one role."""
        return tuple(unit for unit in self.units if unit.id.role == role)


def _have(wanted: Mapping[str, int], roles: Sequence[str]) -> bool:
    """True when each role occurs as often as it is wanted."""
    return all(count == 0 or roles.count(role) >= count for role, count in wanted.items())


@dataclass(frozen=True, slots=True)
class Fleet:
    """All groups of a ModelInfer and the templates they are made from. `kept` are those not being removed, in order."""

    infer: Infer
    update: Template
    templates: Mapping[str, Template]
    groups: Mapping[int, Group]
    kept: Sequence[Group]

    @property
    def replicas(self) -> int:
        """Groups wanted; a template without pods has none."""
        return 0 if self.update.is_empty else self.infer.replicas

    def is_current(self, pod: Pod) -> bool:
        """True when an update would leave the pod alone."""
        return is_current(pod, self.infer, self.templates)


def is_current(pod: Pod, infer: Infer, templates: Mapping[str, Template]) -> bool:
    """True when an update to the template of `infer` would leave the pod alone."""
    update = infer.template
    if pod.revision == update.revision:
        return True
    if infer.strategy is not RolloutStrategyType.ROLE_ROLLING_UPDATE:
        return False
    made_from, role = templates.get(pod.revision), pod.unit.role
    if made_from is None or role not in update.role_revisions:
        return False
    return made_from.role_revisions.get(role) == update.role_revisions[role]
