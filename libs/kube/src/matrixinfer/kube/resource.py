"""Names of things in the API server: resources, keys and the manifest type.

Owns no I/O and knows no kind of ours: a controller hands its `Resource` values in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Json", "Key", "Manifest", "Resource"]

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
"""A decoded JSON value."""

Manifest: TypeAlias = Mapping[str, Json]
"""One Kubernetes object as decoded JSON. Read-only by convention: planners build new ones, never edit one."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Where an object lives; `namespace` is empty for a cluster-scoped one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """`namespace/name`, or the bare name of a cluster-scoped object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the API server: enough to build every URL and to fill `apiVersion` and `kind`."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`group/version`, or the bare version for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group and version, e.g. `/apis/apps/v1`."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def collection_path(self, namespace: str | None = None) -> str:
        """Path that lists the resource; `None` spans all namespaces."""
        if namespace is None or not self.namespaced:
            return f"{self.root}/{self.plural}"
        return f"{self.root}/namespaces/{namespace}/{self.plural}"

    def path(self, key: Key, subresource: str = "") -> str:
        """Path of one object, or of its subresource (`status`, `scale`)."""
        base = f"{self.collection_path(key.namespace if self.namespaced else None)}/{key.name}"
        return f"{base}/{subresource}" if subresource else base
