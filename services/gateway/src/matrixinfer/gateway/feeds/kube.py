"""The supervisor's view of the cluster: routes, servers and pods in memory, and the snapshots made of them.

Owns which objects are watched and when a change becomes a new snapshot. The trap: a change storm (a rollout of
hundreds of pods) must not become a snapshot per event, so changes are gathered for a moment; a lost API server
changes nothing, the last snapshot stays.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from matrixinfer.api.v1alpha1.kinds import MODEL_ROUTE, MODEL_SERVER
from matrixinfer.api.v1alpha1.modelroute import ModelRoute
from matrixinfer.api.v1alpha1.modelserver import ModelServer
from matrixinfer.gateway.core.claims import claimed_names
from matrixinfer.gateway.core.selection import is_over, selected
from matrixinfer.gateway.core.slots import SlotBook
from matrixinfer.gateway.core.snapshot import build_snapshot, referenced_servers
from matrixinfer.gateway.core.types import Snapshot
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.codec import PODS_SLIM, PodView, typed
from matrixinfer.kube.resource import PODS, Key, Resource
from matrixinfer.kube.store import Change, Store
from matrixinfer.service.logging import get_logger

__all__ = ["ROUTES", "SERVERS", "ClusterView", "SnapshotFeed"]

log = get_logger("feed")

ROUTES = Resource.of(MODEL_ROUTE)
SERVERS = Resource.of(MODEL_SERVER)


class ClusterView:
    """The watched objects and the questions asked of them."""

    def __init__(self, cache: Cache, namespace: str | None) -> None:
        """Declare the watches; `namespace` None spans the cluster."""
        self.routes: Store[ModelRoute] = cache.watch(
            ROUTES,
            namespace=namespace,
            project=typed(ModelRoute.model_validate_json),
            indexes={"namespace": _namespace_of, "name": claimed_names},
        )
        self.servers: Store[ModelServer] = cache.watch(
            SERVERS,
            namespace=namespace,
            project=typed(ModelServer.model_validate_json),
            indexes={"namespace": _namespace_of},
        )
        self.pods: Store[PodView] = cache.watch(
            PODS, namespace=namespace, project=PODS_SLIM, indexes={"label": _label_entries, "uid": lambda p: (p.uid,)}
        )

    def pods_of(self, server: ModelServer) -> Sequence[PodView]:
        """Return the pods that a server selects, found by its rarest label."""
        namespace = server.metadata.namespace
        labels = server.spec.workload_selector.match_labels
        buckets = [self.pods.by_index("label", _entry(namespace, key, value)) for key, value in labels.items()]
        rarest = min(buckets, key=len, default=())
        return selected(server, rarest)

    def serving(self) -> list[tuple[ModelServer, Sequence[PodView]]]:
        """Return the servers that routes name, with their pods."""
        found = (self.servers.get(key) for key in sorted(referenced_servers(self.routes.values())))
        return [(server, self.pods_of(server)) for server in found if server is not None]

    def has_ended(self, uid: str) -> bool:
        """Whether no byte can come from the pod any more: it is deleted, or its containers have ended."""
        return all(is_over(pod) for pod in self.pods.by_index("uid", uid))

    def servers_of_pod(self, pod: PodView) -> Iterable[Key]:
        """Return the keys of the servers in the pod's namespace whose labels it has, whatever state it is in."""
        for server in self.servers.by_index("namespace", pod.namespace):
            labels = server.spec.workload_selector.match_labels
            if labels and all(pod.labels.get(key) == value for key, value in labels.items()):
                yield Key(pod.namespace, server.metadata.name)


class SnapshotFeed:
    """Turns changes of the view into snapshots."""

    def __init__(
        self,
        view: ClusterView,
        slots: SlotBook,
        gather_seconds: float,
        adapters_of: Callable[[str], tuple[str, ...]] = lambda _uid: (),
    ) -> None:
        """Changes are gathered for `gather_seconds` before they become a snapshot.

        `adapters_of` a pod's uid are those that it has loaded; call `look_again` when they have changed.
        """
        self._adapters_of = adapters_of
        self._view = view
        self._slots = slots
        self._gather_seconds = gather_seconds
        self._changed = asyncio.Event()
        self._crowded_out: set[str] = set()
        self.current = Snapshot(0)
        view.routes.subscribe(self._wake)
        view.servers.subscribe(self._wake)
        view.pods.subscribe(self._wake)

    # Only that something changed matters, whatever it was: a key is a hint to look.
    def _wake(self, _change: Change[Any]) -> None:
        self._changed.set()

    def look_again(self) -> None:
        """Something has changed that no watch tells of."""
        self._changed.set()

    async def next(self) -> Snapshot:
        """Wait for a change that makes a difference; return the new snapshot."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._gather_seconds)
            self._changed.clear()
            if self._rebuild():
                return self.current

    def settle(self) -> bool:
        """Look again without a change, because slots were freed; True when that made a new snapshot."""
        return self._rebuild()

    def _rebuild(self) -> bool:
        view, revision = self._view, self.current.revision + 1
        serving = view.serving()
        uids = {pod.uid for _, pods in serving for pod in pods}
        self._report_crowded_out(self._slots.assign(uids, revision))
        gone = [uid for uid in self._slots.resting if view.has_ended(uid)]
        slots = self._slots
        adapters = {uid: self._adapters_of(uid) for uid in uids}
        snapshot = build_snapshot(revision, view.routes.values(), serving, slots.held, gone, slots.marks, adapters)
        # Revision 1 is published even when it is empty: it tells workers that there is nothing, which is something.
        if self.current.revision and msgspec.structs.replace(snapshot, revision=self.current.revision) == self.current:
            return False
        self.current = snapshot
        return True

    def _report_crowded_out(self, uids: Sequence[str]) -> None:
        if uids and self._crowded_out != set(uids):
            log.error("load_board_full", pods_left_out=len(uids))
        self._crowded_out = set(uids)


def _namespace_of(value: ModelRoute | ModelServer) -> Iterable[str]:
    return (value.metadata.namespace,)


def _entry(namespace: str, key: str, value: str) -> str:
    return f"{namespace}/{key}={value}"


def _label_entries(pod: PodView) -> Iterable[str]:
    return (_entry(pod.namespace, key, value) for key, value in pod.labels.items())
