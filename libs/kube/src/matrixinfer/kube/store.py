"""Objects of one resource in memory, with indexes.

Owns the objects, their indexes and who wants to hear of changes. Refuses I/O: a reflector is its only writer. Readers
get the stored values themselves and must not change them. Everything is synchronous, so a reader that does not await
sees one consistent state.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from matrixinfer.kube.codec import Identity, Projection
from matrixinfer.kube.resource import Key, Resource

__all__ = ["Change", "IndexFunction", "Store", "labels_match"]

T = TypeVar("T")
IndexFunction = Callable[[T], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One object changed: `old` is None for a new one, `new` is None for a deleted one."""

    key: Key
    old: T | None
    new: T | None


class Store(Generic[T]):
    """The objects of one watch. Made by `Cache.watch`."""

    def __init__(
        self,
        resource: Resource,
        projection: Projection[T],
        *,
        indexes: Mapping[str, IndexFunction[T]] | None = None,
        namespace: str | None = None,
        label_selector: str = "",
    ) -> None:
        self.resource = resource
        self.projection = projection
        self.namespace = namespace
        self.label_selector = label_selector
        self.synced = False
        self._objects: dict[Key, T] = {}
        self._functions = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[Key, T]]] = {name: {} for name in self._functions}
        self._listeners: list[Callable[[Change[T]], None]] = []
        self._high_water = 0

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: Key) -> bool:
        return key in self._objects

    def get(self, key: Key) -> T | None:
        """Return the object, or None."""
        return self._objects.get(key)

    def keys(self) -> Sequence[Key]:
        """Return the keys of all objects, a copy."""
        return tuple(self._objects)

    def values(self) -> Sequence[T]:
        """Return all objects, a copy of the sequence."""
        return tuple(self._objects.values())

    def items(self) -> Sequence[tuple[Key, T]]:
        """Return keys and objects, a copy of the sequence."""
        return tuple(self._objects.items())

    def by_index(self, name: str, value: str) -> Sequence[T]:
        """Return the objects for which the index function `name` gave `value`; unknown index names raise KeyError."""
        found = self._indexes[name].get(value)
        return tuple(found.values()) if found else ()

    def identity(self, key: Key) -> Identity | None:
        """Return uid, resourceVersion, controller and whether it is being deleted; None when absent."""
        found = self._objects.get(key)
        return None if found is None else self.projection.identify(found)

    @property
    def high_water(self) -> int:
        """The newest resourceVersion that the watch has shown, bookmarks included; 0 before the first list."""
        return self._high_water

    def covers(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """True when an object of that namespace with those labels would show up here."""
        if self.namespace is not None and self.resource.namespaced and namespace != self.namespace:
            return False
        return labels_match(self.label_selector, labels)

    def subscribe(self, listener: Callable[[Change[T]], None]) -> Callable[[], None]:
        """Call `listener` after every change, in order; for objects already here, at once.

        Returns what ends the subscription: a store may outlive those who listen to it.
        """
        self._listeners.append(listener)
        for key, value in tuple(self._objects.items()):
            listener(Change(key, None, value))
        return lambda: self._listeners.remove(listener)

    def put(self, value: T) -> None:
        """Add or replace one object. For reflectors and tests."""
        identity = self.projection.identify(value)
        self.advance(identity.resource_version)
        key = identity.key
        old = self._objects.get(key)
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = value
        for name, function in self._functions.items():
            index = self._indexes[name]
            for entry in function(value):
                index.setdefault(entry, {})[key] = value
        self._tell(Change(key, old, value))

    def remove(self, key: Key) -> None:
        """Drop one object; nothing happens when it is absent. For reflectors and tests."""
        old = self._objects.pop(key, None)
        if old is None:
            return
        self._unindex(key, old)
        self._tell(Change(key, old, None))

    def replace(self, values: Iterable[T], resource_version: str, *, keep: Iterable[Key] = ()) -> None:
        """Become `values`, telling listeners only of real differences (what a missed watch would have told).

        `keep` names objects that exist but could not be decoded: what is here of them stays.
        """
        fresh = {self.projection.identify(value).key: value for value in values}
        staying = {*fresh, *keep}
        for key in [k for k in self._objects if k not in staying]:
            self.remove(key)
        for key, value in fresh.items():
            old = self._objects.get(key)
            if old is None or self._version(old) != self._version(value):
                self.put(value)
        # Not the maximum: a server restored from a backup may have gone back.
        self._high_water = int(resource_version) if resource_version.isdigit() else 0
        self.synced = True

    def advance(self, resource_version: str) -> None:
        """Note that everything up to `resource_version` has been seen."""
        if resource_version.isdigit():
            self._high_water = max(self._high_water, int(resource_version))

    def _version(self, value: T) -> tuple[str, str]:
        identity = self.projection.identify(value)
        return identity.uid, identity.resource_version

    def _unindex(self, key: Key, old: T) -> None:
        for name, function in self._functions.items():
            index = self._indexes[name]
            for entry in function(old):
                bucket = index.get(entry)
                if bucket is None:
                    continue
                bucket.pop(key, None)
                if not bucket:
                    del index[entry]

    def _tell(self, change: Change[T]) -> None:
        for listener in tuple(self._listeners):
            listener(change)


_SET_TERM = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_TERMS = re.compile(r",(?![^(]*\))")


def labels_match(selector: str, labels: Mapping[str, str]) -> bool:
    """True when `labels` satisfy a selector: `a=b`, `a!=b`, `a`, `!a`, `a in (b,c)`, `a notin (b)`; comma means and."""
    return all(_term_matches(term.strip(), labels) for term in _TERMS.split(selector) if term.strip())


def _term_matches(term: str, labels: Mapping[str, str]) -> bool:
    if found := _SET_TERM.match(term):
        key, operator, values = found.groups()
        listed = labels.get(key) in {value.strip() for value in values.split(",")}
        return listed if operator == "in" else not listed
    if "!=" in term:
        key, _, value = term.partition("!=")
        return labels.get(key.strip()) != value.strip()
    if "=" in term:
        key, _, value = term.replace("==", "=").partition("=")
        return labels.get(key.strip()) == value.strip()
    if term.startswith("!"):
        return term[1:].strip() not in labels
    return term in labels
