"""Faults on demand: refused writes, cut connections, late, repeated and lost watch events.

`Faults` only answers questions; the API server asks it at each write and before each delivery. System writers (the
simulated kubelet and scheduler, the garbage collector) are never hit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from matrixinfer.kube.resource import Resource
from matrixinfer.testkit.status_errors import ConnectionCut, StatusError

__all__ = ["Faults"]

_REASONS = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def _refusal(code: int, retry_after_seconds: int | None) -> StatusError:
    seconds = 1 if code == 429 and retry_after_seconds is None else retry_after_seconds
    return StatusError(code, _REASONS.get(code, "InternalError"), f"injected fault {code}", retry_after_seconds=seconds)


@dataclass(slots=True)
class _Planned:
    code: int
    verb: str | None
    resource: Resource | None
    times: int
    after_effect: bool
    retry_after_seconds: int | None

    def hits(self, verb: str, resource: Resource) -> bool:
        return self.times > 0 and self.verb in (None, verb) and self.resource in (None, resource)


@dataclass(slots=True)
class _Kill:
    write_number: int
    after_effect: bool


@dataclass(slots=True)
class _Random:
    rng: Random
    rate: float
    codes: Sequence[int]


@dataclass(slots=True)
class Faults:
    """The faults that are armed; nothing is until a test says so."""

    _planned: list[_Planned] = field(default_factory=list)
    _kills: list[_Kill] = field(default_factory=list)
    _random: _Random | None = None
    _held: dict[Resource, int | None] = field(default_factory=dict)
    _duplicated: set[Resource] = field(default_factory=set)
    _epochs: dict[Resource, int] = field(default_factory=dict)
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def fail_next(
        self,
        code: int,
        *,
        verb: str | None = None,
        resource: Resource | None = None,
        times: int = 1,
        after_effect: bool = False,
        retry_after_seconds: int | None = None,
    ) -> None:
        """Answer `code` to the next `times` matching writes; with `after_effect` the write happens all the same.

        `verb` is `create`, `apply`, `patch`, `update` or `delete`.
        """
        self._planned.append(_Planned(code, verb, resource, times, after_effect, retry_after_seconds))

    def fail_randomly(self, rng: Random, *, rate: float, codes: Sequence[int] = (409, 429, 500)) -> None:
        """Refuse each write with probability `rate`; a rate of 0 ends it."""
        self._random = _Random(rng, rate, tuple(codes)) if rate > 0 else None

    def kill_at_write(self, number: int, *, after_effect: bool) -> None:
        """Cut the connection at the write of that number, before it takes effect or just after."""
        self._kills.append(_Kill(number, after_effect))

    def before(self, number: int, verb: str, resource: Resource) -> None:
        """Raise the fault that hits this write before it takes effect, if any."""
        self._raise_kill(number, after_effect=False)
        self._raise_planned(verb, resource, after_effect=False)
        if self._random and self._random.rng.random() < self._random.rate:
            raise _refusal(self._random.rng.choice(self._random.codes), None)

    def after(self, number: int, verb: str, resource: Resource) -> None:
        """Raise the fault that hits this write once it has taken effect, if any."""
        self._raise_kill(number, after_effect=True)
        self._raise_planned(verb, resource, after_effect=True)

    def _raise_kill(self, number: int, *, after_effect: bool) -> None:
        for kill in self._kills:
            if kill.write_number == number and kill.after_effect is after_effect:
                self._kills.remove(kill)
                raise ConnectionCut(f"connection cut at write {number}")

    def _raise_planned(self, verb: str, resource: Resource, *, after_effect: bool) -> None:
        for planned in self._planned:
            if planned.after_effect is after_effect and planned.hits(verb, resource):
                planned.times -= 1
                raise _refusal(planned.code, planned.retry_after_seconds)

    def hold_watches(self, resource: Resource, *, at_resource_version: int | None = None) -> None:
        """Deliver no event of the kind (newer than the given version) until released; other kinds go on."""
        self._held[resource] = at_resource_version
        self._tell()

    def release_watches(self, resource: Resource | None = None) -> None:
        """Deliver what was held back, of one kind or of all."""
        if resource is None:
            self._held.clear()
        else:
            self._held.pop(resource, None)
        self._tell()

    def duplicate_events(self, resource: Resource, *, on: bool = True) -> None:
        """Deliver each event of the kind twice."""
        if on:
            self._duplicated.add(resource)
        else:
            self._duplicated.discard(resource)

    def drop_watches(self, resource: Resource) -> None:
        """Cut every open watch of the kind."""
        self._epochs[resource] = self._epochs.get(resource, 0) + 1
        self._tell()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` when deliveries may go on or must end; returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def is_held(self, resource: Resource, resource_version: int) -> bool:
        """True when an event of that version may not be delivered now."""
        if resource not in self._held:
            return False
        limit = self._held[resource]
        return limit is None or resource_version > limit

    def copies(self, resource: Resource) -> int:
        """How often each event of the kind is delivered."""
        return 2 if resource in self._duplicated else 1

    def epoch(self, resource: Resource) -> int:
        """Changes whenever the open watches of the kind must die."""
        return self._epochs.get(resource, 0)
