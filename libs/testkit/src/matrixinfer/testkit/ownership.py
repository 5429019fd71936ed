"""Who owns which field after a write: the bookkeeping of managedFields around the pure set operations.

Two entries per manager are possible, one for apply and one for other writes, and again one per subresource. A field
that an apply sets to the value it already has becomes shared; setting another value is a conflict unless forced.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixinfer.kube.resource import Key, Resource
from matrixinfer.testkit.fieldsets import FieldSet, changed_paths, dotted, field_set, merged, without_dropped
from matrixinfer.testkit.records import Manager, Object, Owned
from matrixinfer.testkit.status_errors import Cause, StatusError, conflict
from matrixinfer.testkit.structural import Schema

__all__ = ["Applied", "applied", "apply_conflict", "owners_after_apply", "owners_after_update", "strip_unowned"]

_SYSTEM_METADATA: Final = frozenset(
    {
        "name",
        "namespace",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)
_STRIPPED: Final = frozenset(
    {("f:apiVersion",), ("f:kind",), ("f:metadata",), *(("f:metadata", "f:" + name) for name in _SYSTEM_METADATA)}
)


def strip_unowned(paths: FieldSet, *, subresource: str, has_status: bool) -> FieldSet:
    """Return the paths that can be owned at all through the given subresource."""
    if subresource == "status":
        return frozenset(path for path in paths if path[0] == "f:status")
    kept = (path for path in paths if path not in _STRIPPED)
    if has_status:
        return frozenset(path for path in kept if path[0] != "f:status")
    return frozenset(kept)


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of merging an applied configuration: the object and the fields the manager now owns."""

    manifest: Object
    fields: FieldSet


def applied(
    live: Object, config: Object, schema: Schema, managed: Mapping[Manager, Owned], me: Manager, *, has_status: bool
) -> Applied:
    """Merge `config` into `live`, and take away what `me` applied before, no longer does, and nobody else owns."""
    fields = strip_unowned(field_set(config, schema), subresource=me.subresource, has_status=has_status)
    before = managed[me].fields if me in managed else frozenset()
    owned = fields.union(*(other.fields for manager, other in managed.items() if manager != me))
    combined = merged(live, config, schema)
    return Applied(without_dropped(combined, schema, before, owned) if before else combined, fields)


def apply_conflict(
    resource: Resource, key: Key, touched: FieldSet, managed: Mapping[Manager, Owned], me: Manager
) -> StatusError | None:
    """Return the 409 for an apply that changes fields which others own, if it does."""
    causes = [
        Cause(
            "FieldManagerConflict",
            f'conflict with "{manager.name}"'
            + (f' with subresource "{manager.subresource}"' if manager.subresource else "")
            + (f" using {manager.api_version}" if manager.operation == "Update" else ""),
            dotted(path),
        )
        for manager, owned in managed.items()
        if manager != me
        for path in sorted(owned.fields & touched)
    ]
    if not causes:
        return None
    noun = "conflict" if len(causes) == 1 else "conflicts"
    shown = ", ".join(f"{cause.message}: {cause.field}" for cause in causes)
    return conflict(resource, key, f"Apply failed with {len(causes)} {noun}: {shown}", causes)


def _without(managed: Mapping[Manager, Owned], lost: FieldSet, keep: Manager) -> dict[Manager, Owned]:
    remaining = {
        manager: owned if manager == keep or not (owned.fields & lost) else Owned(owned.fields - lost, owned.time)
        for manager, owned in managed.items()
    }
    return {manager: owned for manager, owned in remaining.items() if owned.fields}


def owners_after_apply(
    managed: Mapping[Manager, Owned], me: Manager, fields: FieldSet, live: Any, stored: Any, schema: Schema, time: str
) -> dict[Manager, Owned]:
    """Return the owners once `stored` replaces `live` by a (forced, or conflict-free) apply of `fields`."""
    touched, removed = changed_paths(live, stored, schema)
    owners = _without(managed, (touched & fields) | removed, keep=me)
    if me not in owners or owners[me].fields != fields:
        owners[me] = Owned(fields, time)
    return {manager: owned for manager, owned in owners.items() if owned.fields}


def owners_after_update(
    managed: Mapping[Manager, Owned],
    me: Manager,
    live: Any,
    stored: Any,
    schema: Schema,
    time: str,
    *,
    has_status: bool,
) -> dict[Manager, Owned]:
    """Return the owners once `stored` replaces `live` by a create, update or patch of `me`."""
    touched, removed = changed_paths(live, stored, schema)
    mine = strip_unowned(touched, subresource=me.subresource, has_status=has_status)
    if not mine and not removed:
        return dict(managed)
    owners = _without(managed, mine | removed, keep=me)
    before = owners[me].fields if me in owners else frozenset()
    after = (before | mine) - removed
    if after != before:
        owners[me] = Owned(after, time)
    return {manager: owned for manager, owned in owners.items() if owned.fields}
