"""Who is next: the requests that wait for one server, in a total order that nothing can upset.

Higher priority first; among equals whoever came first. So that nobody starves, every eighth turn is of the one who
came first of all, whatever its priority. A full line makes room for a newcomer only at the cost of somebody behind it.
Pure: what a turn means, and when waiting ends, is the business of `waiting`.

The trap of such lines: a priority that is looked up, or ages, while it stands in the order makes the order
inconsistent. A place is a value that never changes.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["Line", "Place", "QueueLimits", "Turns"]

_OLDEST_EVERY: Final = 8
_RATE_MEMORY: Final = 16
"""Turns over which the time between two of them is averaged."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait in one worker."""

    requests: int = 512
    """For one server."""
    bytes: int = 128 * 2**20
    """Bodies, for all servers."""
    busy_seconds: float = 30.0
    """While all endpoints are busy; 0 refuses at once."""
    empty_seconds: float = 120.0
    """While there is no endpoint; 0 refuses at once."""


class Place(NamedTuple):
    """Where a request stands. Sorts as it is: earlier in the order is smaller."""

    route_rank: int
    """Minus the priority of the route: the operator's word goes before the client's."""
    client_rank: int
    """Minus the priority that the client gave."""
    arrived: float
    """When the request came."""
    number: int
    """Unique in its process, so that no two places are equal."""

    @staticmethod
    def of(route_priority: int, client_priority: int, arrived: float, number: int) -> "Place":
        """Return the place of a request."""
        return Place(-route_priority, -client_priority, arrived, number)


class Line(Generic[_T]):
    """The waiting of one server, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._order: list[Place] = []
        self._who: dict[Place, _T] = {}
        self._turns = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, place: Place) -> bool:
        return place in self._who

    def __iter__(self) -> Iterator[_T]:
        """All who wait, first to last."""
        return iter([self._who[place] for place in self._order])

    @property
    def is_full(self) -> bool:
        """Whether a newcomer needs somebody else to go."""
        return len(self._order) >= self._limit

    def join(self, place: Place, who: _T) -> None:
        """Stand in line."""
        insort(self._order, place)
        self._who[place] = who

    def leave(self, place: Place) -> None:
        """Stand there no more; nothing happens when it did not."""
        if self._who.pop(place, None) is not None:
            del self._order[bisect_left(self._order, place)]

    def ahead_of(self, place: Place) -> int:
        """How many are served before `place`, not counting those whose turn comes for their age."""
        return bisect_left(self._order, place)

    def behind(self, place: Place) -> Iterator[_T]:
        """Those who stand behind `place`, the last one first: who has to go for it, in this order."""
        for other in reversed(self._order):
            if other < place:
                return
            yield self._who[other]

    def next(self, without: Collection[Place] = ()) -> _T | None:
        """Whose turn it is, `without` those who cannot take it; asking twice gives the same answer until `turned`."""
        order = [place for place in self._order if place not in without] if without else self._order
        if not order:
            return None
        if self._turns % _OLDEST_EVERY == _OLDEST_EVERY - 1:
            return self._who[min(order, key=_age)]
        return self._who[order[0]]

    def turned(self) -> None:
        """The next one was served."""
        self._turns += 1


class Turns:
    """How fast a line moves, to tell how long a wait would be."""

    __slots__ = ("_interval", "_last", "_seen")

    def __init__(self) -> None:
        self._interval = 0.0
        self._seen = 0
        self._last: float | None = None

    def turned(self, now: float) -> None:
        """A turn was given."""
        if self._last is not None:
            # The mean of the first few, then ever forgetting the oldest.
            self._seen = min(self._seen + 1, _RATE_MEMORY)
            self._interval += (now - self._last - self._interval) / self._seen
        self._last = now

    def emptied(self) -> None:
        """Nobody waits any more; the time until somebody does says nothing of the speed."""
        self._last = None

    def seconds(self, ahead: int) -> float | None:
        """How long one with `ahead` before it would wait; None while too little was seen to say."""
        return None if self._seen < _RATE_MEMORY else self._interval * (ahead + 1)

    def retry_after(self, ahead: int, *, least: int, most: int) -> int:
        """Whole seconds after which it is worth while to come again."""
        seconds = self.seconds(ahead)
        return least if seconds is None else min(most, max(least, ceil(seconds)))


def _age(place: Place) -> tuple[float, int]:
    return place.arrived, place.number
