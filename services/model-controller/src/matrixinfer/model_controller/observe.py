"""Gathers what a plan for one Model needs, from memory.

Synchronous, no I/O. Children are found by the uid of their controller, never by name, so an object of ours that
somebody took over is not seen as ours. The trap: Models of one namespace share a ServiceAccount, so each sees the
names of its neighbours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.kube.resource import Key, Manifest, Resource, controller_uid
from matrixinfer.kube.sources import Source, mapped, owned_by
from matrixinfer.kube.store import Store
from matrixinfer.model_controller.render.download import ACCOUNT
from matrixinfer.model_controller.resources import ROLE_BINDINGS, SERVICE_ACCOUNTS

__all__ = [
    "BY_NAMESPACE",
    "BY_OWNER",
    "CHILD_INDEXES",
    "MODEL_INDEXES",
    "VERSION_INDEXES",
    "Observer",
    "Seen",
    "Stores",
]

BY_OWNER: Final = "owner"
BY_NAMESPACE: Final = "namespace"

CHILD_INDEXES: Final = {BY_OWNER: lambda child: [uid] if (uid := controller_uid(child)) else []}
VERSION_INDEXES: Final = {BY_OWNER: lambda version: [uid] if (uid := version.metadata.controller_uid) else []}
MODEL_INDEXES: Final = {BY_NAMESPACE: lambda model: [_metadata(model).get("namespace", "")]}


@dataclass(frozen=True, slots=True)
class Seen:
    """One Model and everything that belongs to it, as the caches have it."""

    model: Manifest
    owners: tuple[tuple[str, str], ...]
    """Name and uid of every Model of the namespace that stays."""
    versions: Mapping[str, ModelVersion]
    children: Mapping[tuple[Resource, str], Manifest]
    access: Mapping[Resource, Manifest]
    """The downloader's ServiceAccount and RoleBinding of the namespace."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that a look goes through."""

    models: Store[Manifest]
    versions: Store[ModelVersion]
    children: Mapping[Resource, Store[Manifest]]
    access: Mapping[Resource, Store[Manifest]]

    def sources(self) -> list[Source[Any]]:
        """Whose changes wake which Models: children their owner, shared objects all Models of the namespace."""
        return [
            owned_by(self.versions, "Model"),
            *(owned_by(store, "Model") for store in self.children.values()),
            *(mapped(store, self._of_namespace) for store in self.access.values()),
        ]

    def _of_namespace(self, shared: Manifest) -> Iterable[Key]:
        namespace = str(_metadata(shared).get("namespace", ""))
        return [
            Key(namespace, str(_metadata(model)["name"])) for model in self.models.by_index(BY_NAMESPACE, namespace)
        ]


class Observer:
    """Looks at one Model."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def observe(self, key: Key) -> Seen | None:
        """Return one consistent look; None when the Model is gone."""
        stores = self._stores
        model = stores.models.get(key)
        if model is None:
            return None
        uid = str(_metadata(model)["uid"])
        neighbours = [_metadata(other) for other in stores.models.by_index(BY_NAMESPACE, key.namespace)]
        shared = {
            SERVICE_ACCOUNTS: stores.access[SERVICE_ACCOUNTS].get(Key(key.namespace, ACCOUNT)),
            ROLE_BINDINGS: stores.access[ROLE_BINDINGS].get(Key(key.namespace, ACCOUNT)),
        }
        return Seen(
            model=model,
            owners=tuple(sorted((str(m["name"]), str(m["uid"])) for m in neighbours if not m.get("deletionTimestamp"))),
            versions={version.metadata.name: version for version in stores.versions.by_index(BY_OWNER, uid)},
            children={
                (resource, str(_metadata(child)["name"])): child
                for resource, store in stores.children.items()
                for child in store.by_index(BY_OWNER, uid)
            },
            access={resource: found for resource, found in shared.items() if found is not None},
        )


def _metadata(manifest: Manifest) -> Mapping[str, Any]:
    metadata: Any = manifest["metadata"]
    return {} if metadata is None else dict(metadata)
