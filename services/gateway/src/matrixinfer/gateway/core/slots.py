"""Which row of the shared load board belongs to which pod.

A pod keeps its slot for life, whatever servers select it. A freed slot rests until no worker counts on it any more:
the trap is a slot that moves to a new pod while a stream of the old one is still open, whose end would then make the
new pod look idler than it is. A pod's mark lives as long as its slot, and then is not given to another pod before all
other marks were: what is remembered of a pod by its mark (its prompts) is never taken for another one's.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from matrixinfer.gateway.core.types import Mark, Slot

__all__ = ["MARKS", "SlotBook"]

MARKS: Final = 1 << 20
"""So many marks there are."""


class SlotBook:
    """Assigns slots; not thread-safe, one owner."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is the number of rows on the board."""
        self._free = list(range(capacity - 1, -1, -1))
        self._held: dict[str, Slot] = {}
        self._resting: dict[str, tuple[Slot, int]] = {}
        self._marks: dict[str, Mark] = {}
        self._next_mark = 0

    @property
    def held(self) -> Mapping[str, Slot]:
        """The slots of the pods that are published now, by uid."""
        return self._held

    @property
    def marks(self) -> Mapping[str, Mark]:
        """The marks of all pods that have a slot, by uid."""
        return self._marks

    @property
    def resting(self) -> Iterable[str]:
        """Uids of pods that are no longer published but may still be counted on."""
        return self._resting.keys()

    def assign(self, uids: Iterable[str], revision: int) -> list[str]:
        """Hold a slot for exactly `uids` as of `revision`; returns those for which the board has no room."""
        wanted = set(uids)
        for uid in self._held.keys() - wanted:
            self._resting[uid] = (self._held.pop(uid), revision)
        return [uid for uid in sorted(wanted - self._held.keys()) if not self._take(uid)]

    def reclaim(self, acknowledged: int, is_idle: Callable[[Slot], bool]) -> int:
        """Free the resting slots that all workers let go of (they acknowledged the revision) and that count nothing."""
        done = [u for u, (slot, since) in self._resting.items() if since <= acknowledged and is_idle(slot)]
        for uid in done:
            self._free.append(self._resting.pop(uid)[0])
            del self._marks[uid]
        return len(done)

    def _take(self, uid: str) -> bool:
        if uid in self._resting:
            self._held[uid] = self._resting.pop(uid)[0]
            return True
        if not self._free:
            return False
        self._held[uid] = self._free.pop()
        self._marks[uid] = self._take_mark()
        return True

    def _take_mark(self) -> Mark:
        taken = set(self._marks.values()) if self._next_mark >= MARKS else ()
        while self._next_mark % MARKS in taken:
            self._next_mark += 1
        self._next_mark += 1
        return (self._next_mark - 1) % MARKS
