"""Requests that no endpoint has room for wait here: bounded in number, bytes and time, in the order of `core.line`.

Also those for a server that has no endpoint yet: the supervisor is told that it is wanted, and the first endpoint takes
them. Whoever waits is placed by this worker itself in the moment when room is seen, without an await between seeing and
taking it: when one of its own requests ends, when a new table comes, and every few milliseconds, because the other
workers' requests end too and nobody tells. Two workers may see the same room; then an endpoint has one request more
than its limit for the length of a request.

The traps: a client that left must not hold a place (its task is cancelled, and the place goes with it), and a place
that was given in the same moment must be given back.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from typing import Final, NamedTuple, TypeAlias

from matrixinfer.gateway import errors
from matrixinfer.gateway.board import Claim
from matrixinfer.gateway.choosing import Choice, Full
from matrixinfer.gateway.core.line import Line, Place, QueueLimits, Turns
from matrixinfer.gateway.core.types import Server
from matrixinfer.gateway.errors import GatewayError

__all__ = ["Placed", "Waiting"]

_TICK_SECONDS: Final = 0.01
_LINES_PER_TICK: Final = 4
"""What looking for the room that others made may cost, however many servers are busy."""
_PASSED_OVER: Final = 8
"""How many a look may pass over: a look must stay short."""
_SPEEDS_KEPT: Final = 1024
_WAKE_SECONDS: Final = 1.0
_RETRY_AFTER_MOST: Final = 60
_RETRY_AFTER_BUSY: Final = 1
_RETRY_AFTER_EMPTY: Final = 5

_Key: TypeAlias = tuple[str, str]


class Placed(NamedTuple):
    """Where a request goes, counted in there."""

    choice: Choice
    claim: Claim


@dataclass(slots=True, eq=False)
class _Waiter:
    place: Place
    model: str
    size: int
    deadline: float
    try_again: Callable[[], Placed | Full]
    full: Full
    future: asyncio.Future[Placed]


class _ServerLine:
    """Who waits for one server."""

    __slots__ = ("line", "turns", "woken_at")

    def __init__(self, limit: int, turns: Turns) -> None:
        self.line: Line[_Waiter] = Line(limit)
        self.turns = turns
        self.woken_at = 0.0


class Waiting:
    """The lines of one worker. `lines` holds those in which somebody stands."""

    def __init__(
        self,
        limits: QueueLimits,
        *,
        has_room: Callable[[Server], bool],
        give_back: Callable[[Placed], None],
        wake: Callable[[Server], None],
    ) -> None:
        """`has_room` is a cheap guess, `give_back` undoes a placing, `wake` tells that a server is wanted."""
        self.lines: dict[_Key, _ServerLine] = {}
        self._limits = limits
        self._has_room = has_room
        self._give_back = give_back
        self._wake = wake
        self._numbers = count()
        self._bytes = 0
        self._turns: dict[_Key, Turns] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._is_due = False
        self._skip = 0

    @property
    def size(self) -> int:
        """How many wait."""
        return sum(len(found.line) for found in self.lines.values())

    def has_line(self, server: Server) -> bool:
        """Whether somebody waits for the server already."""
        return _key(server) in self.lines

    async def wait(
        self,
        full: Full,
        try_again: Callable[[], Placed | Full],
        *,
        model: str,
        size: int,
        priority: int,
        arrived: float,
        ends_at: float,
    ) -> Placed:
        """Wait for room; `try_again` places the request if there is some. Raises GatewayError: nobody has any in time.

        `priority` is the client's, `arrived` orders it among equals, `ends_at` is the loop time of its deadline.
        """
        loop = asyncio.get_running_loop()
        span = self._limits.empty_seconds if full.is_empty else self._limits.busy_seconds
        waiter = _Waiter(
            Place.of(full.priority, priority, arrived, next(self._numbers)),
            model,
            size,
            min(ends_at, loop.time() + span),
            try_again,
            full,
            loop.create_future(),
        )
        self._admit(waiter)
        expiry = loop.call_at(waiter.deadline, self._expire, waiter)
        self._release(_key(full.server))
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._give_back(waiter.future.result())
            raise
        finally:
            expiry.cancel()
            self._leave(waiter)

    def release_soon(self) -> None:
        """A request ended: look once, after all that ends in this moment."""
        if self.lines and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.release)

    def release(self, *, rerouted: bool = False) -> None:
        """Place whoever can be placed; after a new table also look where there was no room before."""
        self._is_due = False
        for key in tuple(self.lines):
            self._release(key, rerouted=rerouted)

    # -- who may stand in line ------------------------------------------------------------------------------------

    def _admit(self, waiter: _Waiter) -> None:
        key = _key(waiter.full.server)
        found = self.lines.get(key) or _ServerLine(self._limits.requests, self._speed_of(key))
        now = asyncio.get_running_loop().time()
        wait = None if waiter.full.is_empty else found.turns.seconds(found.line.ahead_of(waiter.place))
        if waiter.deadline <= now or (wait is not None and now + wait > waiter.deadline):
            raise self._refusal(waiter)
        going = self._in_the_way(found.line, waiter)
        if going is None:
            raise self._refusal(waiter)
        for other in going:
            self._refuse(other)
        self.lines[key] = found
        found.line.join(waiter.place, waiter)
        self._bytes += waiter.size
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._ticked)

    def _in_the_way(self, line: Line[_Waiter], waiter: _Waiter) -> list[_Waiter] | None:
        """Who has to go so that it fits; None when even that would not help, and then nobody goes."""
        going: list[_Waiter] = []
        excess = self._bytes + waiter.size - self._limits.bytes
        behind = line.behind(waiter.place)
        while excess > 0 or (line.is_full and not going):
            other = next(behind, None)
            if other is None:
                return None
            going.append(other)
            excess -= other.size
        return going

    def _speed_of(self, key: _Key) -> Turns:
        """What was seen of the line when somebody stood in it before."""
        if len(self._turns) >= _SPEEDS_KEPT:
            self._turns.clear()
        return self._turns.setdefault(key, Turns())

    def _leave(self, waiter: _Waiter) -> None:
        key = _key(waiter.full.server)
        found = self.lines.get(key)
        if found is None or waiter.place not in found.line:
            return
        found.line.leave(waiter.place)
        self._bytes -= waiter.size
        if not len(found.line):
            found.turns.emptied()
            del self.lines[key]

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.future.done():
            self._refuse(waiter)

    def _refuse(self, waiter: _Waiter) -> None:
        error = self._refusal(waiter)
        self._leave(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(error)

    def _refusal(self, waiter: _Waiter) -> GatewayError:
        found = self.lines.get(_key(waiter.full.server))
        if waiter.full.is_empty:
            return errors.no_endpoints(waiter.model, _RETRY_AFTER_EMPTY)
        if found is None:
            return errors.overloaded(waiter.model, _RETRY_AFTER_BUSY)
        ahead = found.line.ahead_of(waiter.place)
        seconds = found.turns.retry_after(ahead, least=_RETRY_AFTER_BUSY, most=_RETRY_AFTER_MOST)
        return errors.overloaded(waiter.model, seconds)

    # -- whose turn it is -----------------------------------------------------------------------------------------

    def _release(self, key: _Key, *, rerouted: bool = False) -> None:
        loop = asyncio.get_running_loop()
        passed_over: set[Place] = set()
        while (found := self.lines.get(key)) is not None:
            waiter = found.line.next(passed_over)
            if waiter is None or not (rerouted or self._has_room(waiter.full.server)):
                return
            if waiter.future.done():
                self._leave(waiter)
                continue
            try:
                placed = waiter.try_again()
            # The edge of one request: a fault of ours is its own handler's to tell, and costs nobody else his turn.
            except Exception as error:  # noqa: BLE001
                waiter.future.set_exception(error)
                self._leave(waiter)
                continue
            if isinstance(placed, Full):
                if not self._stays(waiter, placed):
                    continue
                # It may not take the room that there is, because it failed there: those behind it may.
                if placed.is_empty or len(passed_over) >= _PASSED_OVER or not self._has_room(placed.server):
                    return
                passed_over.add(waiter.place)
                continue
            found.line.turned()
            found.turns.turned(loop.time())
            waiter.future.set_result(placed)
            self._leave(waiter)

    def _stays(self, waiter: _Waiter, full: Full) -> bool:
        """Whether it goes on waiting for the same server; else it stands in another line now."""
        if _key(full.server) == _key(waiter.full.server):
            waiter.full = full
            return True
        self._leave(waiter)
        waiter.full = full
        try:
            self._admit(waiter)
        except GatewayError as error:
            waiter.future.set_exception(error)
        return False

    def _ticked(self) -> None:
        # Set first: whatever happens below, those who wait are looked after again.
        self._tick = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._ticked) if self.lines else None
        if not self.lines:
            return
        keys = list(self.lines)
        self._skip = (self._skip + _LINES_PER_TICK) % len(keys)
        for key in islice((*keys[self._skip :], *keys[: self._skip]), _LINES_PER_TICK):
            self._release(key)
        self._wake_all()

    def _wake_all(self) -> None:
        now = asyncio.get_running_loop().time()
        for found in self.lines.values():
            waiter = found.line.next()
            if waiter is not None and waiter.full.is_empty and now - found.woken_at >= _WAKE_SECONDS:
                found.woken_at = now
                self._wake(waiter.full.server)


def _key(server: Server) -> _Key:
    return server.namespace, server.name
