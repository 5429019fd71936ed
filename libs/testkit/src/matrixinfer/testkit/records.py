"""Stored objects: immutable by convention, shared between the store, its history and every fork.

An object is kept without `managedFields`; ownership lives beside it and is rendered when someone asks over the wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from matrixinfer.kube.resource import Key, Resource
from matrixinfer.testkit.fieldsets import FieldSet, encode

__all__ = ["Change", "ChangeType", "Manager", "Object", "Owned", "Record", "copied"]

Object = dict[str, Any]
"""A decoded Kubernetes object that the caller may keep and edit."""

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]
"""What a watch says happened."""


def copied(value: Any) -> Any:
    """Return an independent copy of a JSON value."""
    if isinstance(value, Mapping):
        return {name: copied(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Manager:
    """Who owns fields: one entry of `managedFields`."""

    name: str
    operation: Literal["Apply", "Update"]
    subresource: str
    api_version: str


@dataclass(frozen=True, slots=True)
class Owned:
    """What a manager owns, and since when."""

    fields: FieldSet
    time: str


@dataclass(frozen=True, slots=True)
class Record:
    """One version of one object."""

    manifest: Object
    managed: Mapping[Manager, Owned] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """`metadata.uid`."""
        return str(self.manifest["metadata"]["uid"])

    @property
    def resource_version(self) -> int:
        """`metadata.resourceVersion` as the number it is here."""
        return int(self.manifest["metadata"]["resourceVersion"])

    @property
    def is_deleting(self) -> bool:
        """True once a delete was accepted."""
        return "deletionTimestamp" in self.manifest["metadata"]

    def managed_fields(self) -> list[Object]:
        """`metadata.managedFields` as the real server shows them."""
        entries: list[Object] = []
        for manager, owned in self.managed.items():
            entry: Object = {
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": manager.api_version,
                "time": owned.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": orjson.loads(encode(owned.fields)),
            }
            if manager.subresource:
                entry["subresource"] = manager.subresource
            entries.append(entry)
        return sorted(entries, key=lambda entry: (entry["operation"], entry["time"], entry["manager"]))

    def wire(self) -> Object:
        """The object with `managedFields`, for sending; shares its parts with the store."""
        if not self.managed:
            return self.manifest
        return {
            **self.manifest,
            "metadata": {**self.manifest["metadata"], "managedFields": self.managed_fields()},
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history that watches read."""

    resource_version: int
    type: ChangeType
    resource: Resource
    key: Key
    before: Record | None
    after: Record
