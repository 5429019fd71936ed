"""What a key's own writes must make visible before the key is planned again.

Without it a cache that lags behind shows no pod where one was just created, and the plan creates another, or counts a
deleted one as alive. The wait is bounded: a write that never shows (deleted at once, outside every selector) delays,
never blocks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrixinfer.kube.resource import Key, Resource
from matrixinfer.kube.store import Store

__all__ = ["Expectations", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """One write of ours. `deleted` means that the object with this uid is to vanish or to be terminating."""

    resource: Resource
    key: Key
    uid: str
    resource_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Expected:
    store: Store[Any]
    written: Written

    def is_met(self) -> bool:
        version = self.written.resource_version
        if version.isdigit() and self.store.high_water >= int(version):
            return True
        seen = self.store.identity(self.written.key)
        if self.written.deleted:
            return seen is None or seen.uid != self.written.uid or seen.deleting
        return seen is not None and seen.resource_version == version


@dataclass(slots=True)
class _Pending:
    deadline: float
    expected: list[_Expected]


class Expectations:
    """Own writes per key that the cache has not shown yet."""

    def __init__(
        self,
        stores_of: Callable[[Resource], Sequence[Store[Any]]],
        *,
        timeout_seconds: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._stores_of = stores_of
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._pending: dict[Key, _Pending] = {}

    def expect(self, owner: Key, writes: Iterable[Written]) -> None:
        """Remember writes made for `owner`; those that no store would show are left out."""
        expected = [
            _Expected(store, written)
            for written in writes
            for store in self._stores_of(written.resource)
            # A deletion is met in a store that never had the object.
            if written.deleted or store.covers(written.key.namespace, written.labels)
        ]
        unmet = [entry for entry in expected if not entry.is_met()]
        if unmet:
            self._pending[owner] = _Pending(self._monotonic() + self._timeout_seconds, unmet)

    def wait_seconds(self, owner: Key) -> float:
        """Return how long the key must still wait at most; 0 when its writes are all visible."""
        pending = self._pending.get(owner)
        if pending is None:
            return 0.0
        pending.expected = [entry for entry in pending.expected if not entry.is_met()]
        if not pending.expected:
            del self._pending[owner]
            return 0.0
        return max(0.0, pending.deadline - self._monotonic())

    def gave_up(self, owner: Key) -> bool:
        """Drop what is left of an expired wait; True when there was something."""
        return self._pending.pop(owner, None) is not None

    def forget(self, owner: Key) -> None:
        """The key is gone."""
        self._pending.pop(owner, None)
