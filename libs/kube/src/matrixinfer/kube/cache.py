"""All watches of one process.

Owns which resources are watched and when they count as synced. Watches are declared before `run`, so that "synced"
means the same thing from then on. Two controllers of one process that want the same objects share the store they are
handed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import MANIFESTS, Projection
from matrixinfer.kube.reflector import Reflector
from matrixinfer.kube.resource import Manifest, Resource
from matrixinfer.kube.store import IndexFunction, Store

__all__ = ["Cache"]

T = TypeVar("T")


class Cache:
    """Stores that follow the API server while `run` runs."""

    def __init__(self, client: Client, *, page_size: int = 500, inactivity_seconds: float = 120.0) -> None:
        self._client = client
        self._page_size = page_size
        self._inactivity_seconds = inactivity_seconds
        self._reflectors: list[Reflector[Any]] = []
        self._started = False

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
        """Declare a watch and return its store, empty until `run`. `namespace=None` spans all namespaces.

        With `optional`, a resource that the server does not serve counts as synced and empty, and is looked for again
        once a minute.
        """
        if self._started:
            raise RuntimeError("watches are declared before the cache runs")
        store: Store[Any] = Store(
            resource, project, indexes=indexes, namespace=namespace, label_selector=label_selector
        )
        self._reflectors.append(
            Reflector(
                self._client,
                store,
                field_selector=field_selector,
                optional=optional,
                page_size=self._page_size,
                inactivity_seconds=self._inactivity_seconds,
            )
        )
        return store

    @property
    def synced(self) -> bool:
        """True once every watch has had its first list."""
        return all(reflector.store.synced for reflector in self._reflectors)

    @property
    def unsynced(self) -> Sequence[str]:
        """Plurals of what is still missing, for readiness messages."""
        return [r.store.resource.plural for r in self._reflectors if not r.store.synced]

    def stores_of(self, resource: Resource) -> Sequence[Store[Any]]:
        """Return the stores that watch this resource: none, one, or several with different selectors."""
        return [r.store for r in self._reflectors if r.store.resource == resource]

    async def wait_synced(self) -> None:
        """Return once every watch has had its first list; give it a deadline with `asyncio.timeout`."""
        for reflector in self._reflectors:
            await reflector.listed.wait()

    async def run(self) -> None:
        """Follow the server until cancelled."""
        self._started = True
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run(), name=f"watch-{reflector.store.resource.plural}")
