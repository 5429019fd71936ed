"""Reads the caches: one consistent look at a ModelInfer and everything that is its own.

Owns indexes, ownership and which nodes are believed to be lost. No await and no API call, so nothing changes while it
looks. The trap: labels are written by anybody. Only the uid of the controller owner makes a child, or a namesake that
was deleted a moment ago would lend its pods to the new one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, TypeAlias, TypeVar

from matrixinfer.api import names
from matrixinfer.infer_controller import projections
from matrixinfer.infer_controller.fleet import HeadlessService, Infer, Pod, Seen, StoredRevision, Timing
from matrixinfer.infer_controller.plan import MODEL_INFERS
from matrixinfer.infer_controller.projections import Node
from matrixinfer.kube.codec import Projection
from matrixinfer.kube.resource import CONTROLLER_REVISIONS, NODES, PODS, SERVICES, Key, Resource
from matrixinfer.kube.sources import Source
from matrixinfer.kube.store import Change, IndexFunction, Store

__all__ = [
    "BY_DRAINING",
    "BY_INFER",
    "BY_NODE",
    "LostNodes",
    "Observer",
    "PodSource",
    "Stores",
    "Waker",
    "WatchSource",
    "infer_key",
]

BY_INFER: Final = "infer"
"""Index of children by the key of the ModelInfer that their label names."""
BY_NODE: Final = "node"
"""Index of pods by node."""
BY_DRAINING: Final = "draining"
"""Index of pods that are marked for removal and not yet being deleted, under the entry `yes`."""

T = TypeVar("T")
Child: TypeAlias = Pod | HeadlessService | StoredRevision


def infer_key(child: Child) -> Iterable[Key]:
    """Return the key of the ModelInfer that a child's label names."""
    return (Key(child.namespace, child.infer),) if child.infer else ()


def _by_infer(child: Child) -> Iterable[str]:
    return [str(key) for key in infer_key(child)]


SERVICE_INDEXES: Final[Mapping[str, IndexFunction[HeadlessService]]] = {BY_INFER: _by_infer}
REVISION_INDEXES: Final[Mapping[str, IndexFunction[StoredRevision]]] = {BY_INFER: _by_infer}
POD_INDEXES: Final[Mapping[str, IndexFunction[Pod]]] = {
    BY_INFER: _by_infer,
    BY_NODE: lambda pod: (pod.node,) if pod.node else (),
    BY_DRAINING: lambda pod: ("yes",) if pod.removal is not None and not pod.is_terminating else (),
}


@dataclass(frozen=True, slots=True)
class PodSource(Source[Pod]):
    """Wakes the ModelInfer of a pod only for changes that a plan could answer.

    A pod's start alone writes its status several times; each look costs as much as the ModelInfer has pods.
    """

    def woken_by(self, change: Change[Pod]) -> set[Key]:
        """Return the keys to look at after this change: none when nothing that matters changed."""
        if change.old is not None and change.new is not None and _concern(change.old) == _concern(change.new):
            return set()
        return Source.woken_by(self, change)


def _concern(pod: Pod) -> tuple[object, ...]:
    """Return everything of a pod that plans and sentences are made from."""
    return (
        pod.uid,
        pod.owner_uid,
        pod.infer,
        pod.unit,
        pod.revision,
        pod.phase in ("Failed", "Succeeded"),
        pod.reason,
        pod.message,
        pod.ready,
        pod.delete_by,
        pod.restarts,
        pod.last_exit,
        pod.waiting,
        pod.unscheduled,
        pod.deletion_cost,
        pod.removal,
    )


class Waker:
    """Passes keys on to a controller that is made later; until then they are dropped, and nothing runs yet."""

    def __init__(self) -> None:
        self.target: Callable[[Key], None] | None = None

    def __call__(self, key: Key) -> None:
        """Ask for a look at this key."""
        if self.target is not None:
            self.target(key)


class LostNodes:
    """Nodes that do not answer. `woken` is called for each pod's ModelInfer when a node's readiness changes."""

    def __init__(self, nodes: Store[Node], pods: Store[Pod], woken: Callable[[Key], None]) -> None:
        self._pods = pods
        self._woken = woken
        self._total = 0
        self._lost: dict[str, datetime] = {}
        nodes.subscribe(self._changed)

    @property
    def believed(self) -> Mapping[str, datetime]:
        """The lost nodes; none while half of all nodes or more seem lost, because then it is we who are cut off."""
        return self._lost if 2 * len(self._lost) < self._total or self._total == 0 else {}

    def _changed(self, change: Change[Node]) -> None:
        believed = set(self.believed)
        self._total += (change.new is not None) - (change.old is not None)
        before, after = _is_ready(change.old), _is_ready(change.new)
        name = change.key.name
        if change.new is not None and not change.new.ready and change.new.since is not None:
            self._lost[name] = change.new.since
        else:
            self._lost.pop(name, None)
        # One node more or less may turn what is believed of all the others.
        turned = believed ^ set(self.believed)
        if before != after:
            turned.add(name)
        for node in sorted(turned):
            for pod in self._pods.by_index(BY_NODE, node):
                for key in infer_key(pod):
                    self._woken(key)


def _is_ready(node: Node | None) -> bool:
    return node is None or node.ready


class WatchSource(Protocol):
    """Where watches are declared: a cache of a process, or a simulated one."""

    def watch(
        self,
        resource: Resource,
        *,
        project: Projection[T],
        label_selector: str = "",
        indexes: Mapping[str, IndexFunction[T]] | None = None,
    ) -> Store[T]:
        """Declare a watch and return its store."""
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that is watched."""

    infers: Store[Infer]
    pods: Store[Pod]
    services: Store[HeadlessService]
    revisions: Store[StoredRevision]
    nodes: Store[Node]

    @staticmethod
    def declared(source: WatchSource) -> "Stores":
        """Declare the watches. Children through a label: a cluster has many pods, and few of them are ours."""
        ours = names.INFER_NAME
        return Stores(
            source.watch(MODEL_INFERS, project=projections.INFERS),
            source.watch(PODS, project=projections.PODS, label_selector=ours, indexes=POD_INDEXES),
            source.watch(SERVICES, project=projections.SERVICES, label_selector=ours, indexes=SERVICE_INDEXES),
            source.watch(
                CONTROLLER_REVISIONS, project=projections.REVISIONS, label_selector=ours, indexes=REVISION_INDEXES
            ),
            source.watch(NODES, project=projections.NODES),
        )


class Observer:
    """Looks at one key."""

    def __init__(
        self,
        stores: Stores,
        *,
        lost_nodes: Callable[[], Mapping[str, datetime]],
        in_flight: Callable[[], Mapping[str, int]],
        timing: Timing,
        history_limit: int,
    ) -> None:
        self._stores = stores
        self._lost_nodes = lost_nodes
        self._in_flight = in_flight
        self._timing = timing
        self._history_limit = history_limit

    def observe(self, key: Key) -> Seen | None:
        """Return what there is of a ModelInfer; None when it is gone."""
        stores = self._stores
        infer = stores.infers.get(key)
        if infer is None:
            return None
        entry, uid = str(key), infer.uid
        return Seen(
            infer,
            pods=tuple(pod for pod in stores.pods.by_index(BY_INFER, entry) if pod.owner_uid == uid),
            services=tuple(found for found in stores.services.by_index(BY_INFER, entry) if found.owner_uid == uid),
            revisions=tuple(found for found in stores.revisions.by_index(BY_INFER, entry) if found.owner_uid == uid),
            lost_nodes=self._lost_nodes(),
            in_flight=self._in_flight(),
            timing=self._timing,
            history_limit=self._history_limit,
        )
