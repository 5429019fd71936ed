"""Which keys a change wakes.

Pure mapping from an object to the keys of those who care. A change wakes the keys of the object as it was and as it
is, so that a label or owner that moves wakes both sides.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from matrixinfer.kube.resource import Key
from matrixinfer.kube.store import Change, Store

__all__ = ["Source", "mapped", "owned_by"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source(Generic[T]):
    """Changes in `store` wake the keys that `keys` gives for the object."""

    store: Store[T]
    keys: Callable[[T], Iterable[Key]]

    def woken_by(self, change: Change[T]) -> set[Key]:
        """Return the keys to look at after this change."""
        states = (state for state in (change.old, change.new) if state is not None)
        return {key for state in states for key in self.keys(state)}


def mapped(store: Store[T], keys: Callable[[T], Iterable[Key]]) -> Source[T]:
    """Return a source with a mapping of your own."""
    return Source(store, keys)


def owned_by(store: Store[T], owner_kind: str) -> Source[T]:
    """Return a source that wakes the controller owner, when it is of that kind.

    Works for manifests, `PodView` and anything with `.metadata.owner_references`.
    """

    def owner_keys(child: T) -> Iterable[Key]:
        namespace, owners = _owners(child)
        return [Key(namespace, name) for kind, name, is_controller in owners if is_controller and kind == owner_kind]

    return Source(store, owner_keys)


def _owners(child: Any) -> tuple[str, Iterable[tuple[str, str, bool]]]:
    if isinstance(child, dict):
        meta = child["metadata"]
        references = meta.get("ownerReferences") or ()
        return meta.get("namespace", ""), [(r["kind"], r["name"], bool(r.get("controller"))) for r in references]
    if hasattr(child, "owners"):
        return child.namespace, [(o.kind, o.name, o.controller) for o in child.owners]
    meta = child.metadata
    return meta.namespace or "", [(o.kind, o.name, bool(o.controller)) for o in meta.owner_references or ()]
