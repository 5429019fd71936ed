"""The cache of a simulated controller process: real stores that lag behind the API server by as much as a test says.

`View.watch` has the signature of `matrixinfer.kube.cache.Cache.watch`, so the function of a service that declares its
watches runs on either. Decoded values are shared between views, as readers promise not to change them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

import orjson

from matrixinfer.kube.codec import MANIFESTS, Projection
from matrixinfer.kube.resource import Manifest, Resource
from matrixinfer.kube.store import IndexFunction, Store
from matrixinfer.testkit.memory import MemoryApi

__all__ = ["View"]

T = TypeVar("T")


@dataclass(slots=True)
class _Watch:
    store: Store[Any]
    field_selector: str
    version: int = 0


class View:
    """What one controller process has seen of the API server."""

    def __init__(self, api: MemoryApi) -> None:
        self._api = api
        self._watches: list[_Watch] = []
        self._decoded: dict[tuple[int, str, str], Any] = {}

    @overload
    def watch(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        indexes: Mapping[str, IndexFunction[Manifest]] | None = None,
        optional: bool = False,
    ) -> Store[Manifest]: ...

    @overload
    def watch(
        self,
        resource: Resource,
        *,
        project: Projection[T],
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        indexes: Mapping[str, IndexFunction[T]] | None = None,
        optional: bool = False,
    ) -> Store[T]: ...

    def watch(
        self,
        resource: Resource,
        *,
        project: Projection[Any] = MANIFESTS,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        indexes: Mapping[str, IndexFunction[Any]] | None = None,
        optional: bool = False,
    ) -> Store[Any]:
        """Declare a watch and return its store, already listed."""
        store: Store[Any] = Store(
            resource, project, indexes=indexes, namespace=namespace, label_selector=label_selector
        )
        watch = _Watch(store, field_selector)
        self._watches.append(watch)
        if not optional or self._serves(resource):
            self._relist(watch)
        else:
            store.synced = True
        return store

    def _serves(self, resource: Resource) -> bool:
        return any(kind.resource == resource for kind in self._api.kinds)

    def _decode(self, store: Store[Any], manifest: Mapping[str, Any]) -> Any:
        meta = manifest["metadata"]
        key = (id(store.projection), str(meta["uid"]), str(meta["resourceVersion"]))
        if key not in self._decoded:
            self._decoded[key] = store.projection.decode(orjson.dumps(manifest))
        return self._decoded[key]

    def _relist(self, watch: _Watch) -> None:
        store = watch.store
        page = self._api.page(
            store.resource,
            store.namespace,
            label_selector=store.label_selector,
            field_selector=watch.field_selector,
        )
        values = [self._decode(store, record.manifest) for record in page.records]
        store.replace(values, str(page.resource_version))
        watch.version = page.resource_version

    @property
    def watched(self) -> Sequence[Resource]:
        """The resources with a watch, each once, in the order of declaration."""
        return tuple(dict.fromkeys(watch.store.resource for watch in self._watches))

    def stores_of(self, resource: Resource) -> Sequence[Store[Any]]:
        """The stores that watch this resource."""
        return [watch.store for watch in self._watches if watch.store.resource == resource]

    def manifests(self, resource: Resource) -> Sequence[Manifest]:
        """Decoded JSON of everything a plain watch (one without projection) of the resource has seen."""
        store = next(w.store for w in self._watches if w.store.resource == resource and w.store.projection is MANIFESTS)
        return cast("Store[Manifest]", store).values()

    def lag(self, resource: Resource) -> int:
        """How many changes of the kind the view has not seen."""
        return max(
            (len(self._pending(watch)) for watch in self._watches if watch.store.resource == resource), default=0
        )

    @property
    def is_fresh(self) -> bool:
        """True when every change of every watched kind has been seen."""
        return not any(self.lag(resource) for resource in self.watched)

    def _pending(self, watch: _Watch) -> Sequence[Any]:
        store = watch.store
        if not self._serves(store.resource):
            return ()
        return self._api.changes(
            store.resource,
            watch.version,
            store.namespace,
            label_selector=store.label_selector,
            field_selector=watch.field_selector,
        )

    def catch_up(self, resource: Resource, changes: int | None = None) -> None:
        """See the next `changes` changes of one kind, or all of them."""
        for watch in self._watches:
            if watch.store.resource != resource or not self._serves(resource):
                continue
            pending = self._pending(watch)
            chosen = pending if changes is None else pending[:changes]
            for change in chosen:
                if change.type == "DELETED":
                    watch.store.remove(change.key)
                    watch.store.advance(str(change.resource_version))
                else:
                    watch.store.put(self._decode(watch.store, change.after.manifest))
                watch.version = change.resource_version
            if len(chosen) == len(pending):
                watch.version = self._api.resource_version
                watch.store.advance(str(watch.version))

    def catch_up_all(self) -> None:
        """See everything."""
        for resource in self.watched:
            self.catch_up(resource)
