"""Finalizers as plan steps.

Pure. A merge patch replaces the whole list, so both steps carry the resourceVersion that was seen: a finalizer which
somebody else added meanwhile makes the write a conflict instead of vanishing.
"""

from collections.abc import Sequence

from matrixinfer.kube.plan import Merge
from matrixinfer.kube.resource import Key, Resource

__all__ = ["add", "remove"]


def add(
    resource: Resource, key: Key, uid: str, resource_version: str, present: Sequence[str], name: str
) -> Merge | None:
    """Return the step that adds the finalizer, or None when it is there. Never add one to an object being deleted."""
    if name in present:
        return None
    return _write(resource, key, uid, resource_version, [*present, name])


def remove(
    resource: Resource, key: Key, uid: str, resource_version: str, present: Sequence[str], name: str
) -> Merge | None:
    """Return the step that takes the finalizer away, or None when it is not there."""
    if name not in present:
        return None
    return _write(resource, key, uid, resource_version, [entry for entry in present if entry != name])


def _write(resource: Resource, key: Key, uid: str, resource_version: str, names: Sequence[str]) -> Merge:
    return Merge(resource, key, uid, {"metadata": {"finalizers": list(names)}}, resource_version)
