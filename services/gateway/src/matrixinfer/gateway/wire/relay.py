"""One attempt: the engine's answer goes to the client as it comes, with back-pressure and deadlines.

Owns the time between sending a request and the end of its answer. Nothing here awaits per piece: the parser's
callbacks write straight to the client's transport, and one future tells the end. Answers that may be an endpoint's
farewell are held back, so that another endpoint can be asked. The traps: an engine that was told to stop can leave a
stream open without a word, so there is a deadline between pieces; and a client that reads slowly must not look like a
silent engine.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from matrixinfer.gateway.core.hiddenusage import HiddenUsage
from matrixinfer.gateway.core.retry import HELD_STATUSES, Failure
from matrixinfer.gateway.core.usage import END_BYTES
from matrixinfer.gateway.wire.message import HOP_BY_HOP, Exchange, Headers, end_to_end, header
from matrixinfer.gateway.wire.running import Ending
from matrixinfer.gateway.wire.upstream import UpstreamConnection

__all__ = ["Deadlines", "Held", "Outcome", "Relay", "is_event_stream"]

_EVENT_STREAM = b"text/event-stream"
_HOLD_LIMIT_BYTES = 64 * 1024
# The counts are in one of the last pieces: an event, `[DONE]` and what the network may split of both.
_LAST_PIECES = 8
# With it everything is said; what ends the stream on the wire may come later.
_LAST_EVENTS = (b"data: [DONE]", b"data:[DONE]")
# Every sixteenth gap between two pieces is looked at: a clock and a histogram for each would cost more than it tells.
_GAPS = 16

# `server` and `date` are the engine's own; ours to say are the framing and the request's id.
_DROPPED = HOP_BY_HOP | {b"content-length", b"x-matrixinfer-decision", b"x-request-id"}


class Deadlines(msgspec.Struct, frozen=True, gc=False):
    """Loop times and spans of one attempt, in seconds. `ends_at` is for the request as a whole."""

    first_byte_seconds: float
    idle_seconds: float
    ends_at: float


@dataclass(slots=True)
class Held:
    """An answer that was kept back."""

    status: int
    headers: Headers
    length: int | None
    body: bytearray


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ended. No failure and nothing held: the client has the whole answer."""

    failure: Failure | None = None
    held: Held | None = None
    detail: str = ""
    untouched: bool = False
    """Not a byte of an answer had come."""


class Relay:
    """Sink of the engine's answer and watcher of the client, for one attempt."""

    __slots__ = (
        "_began",
        "_clock",
        "_connection",
        "_deadlines",
        "_exchange",
        "_flushes",
        "_has_head",
        "_held",
        "_hidden",
        "_last",
        "_last_pieces",
        "_loop",
        "_may_hold",
        "_observe_gap",
        "_opening",
        "_paused",
        "_started",
        "content_type",
        "extra_headers",
        "first_body_at",
        "first_bytes",
        "outcome",
        "pieces",
        "status",
    )

    def __init__(
        self,
        exchange: Exchange,
        connection: UpstreamConnection,
        deadlines: Deadlines,
        extra_headers: Headers,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        *,
        may_hold: bool,
        began: Callable[[int], None],
        observe_gap: Callable[[float], None],
        phase: int,
        opening: Callable[[bytes], bool] | None = None,
        hidden: HiddenUsage | None = None,
    ) -> None:
        """With `may_hold`, an answer of a status in HELD_STATUSES is kept back and becomes part of the outcome.

        `began` is told the status once, when the first piece of the body comes, or when an empty answer is complete.
        `observe_gap` is told the seconds between two pieces, now and then; different `phase`s look at different ones.
        `opening` is shown how a good answer begins, before the client is, until it returns True.
        `hidden` takes out of a stream what the client did not ask for.
        """
        self.outcome: Ending[Outcome] = Ending(loop=loop)
        self.status: int | None = None
        self.content_type = b""
        self.first_body_at: float | None = None
        """By `clock`, when the first piece of the body came."""
        self.first_bytes = b""
        """How the body began."""
        self.pieces = 0
        """Pieces of the body that were relayed."""
        self._last_pieces: deque[bytes] = deque(maxlen=_LAST_PIECES)
        self._observe_gap = observe_gap
        self._flushes = phase
        self._hidden = hidden
        self._began = began
        self._clock = clock
        self._has_head = False
        self.extra_headers = extra_headers
        self._loop = loop
        self._exchange = exchange
        self._connection = connection
        self._deadlines = deadlines
        self._opening = opening
        self._may_hold = may_hold
        self._held: Held | None = None
        self._started = self._last = loop.time()
        self._paused = False

    def start(self, data: bytes) -> None:
        """Send the request."""
        self._exchange.watch(self)
        if not self.outcome.done():
            self._connection.send(data, self)
            # The shortest span there is; the head of an answer costs no timer.
            self._connection.look_at(min(self._started + self._deadlines.idle_seconds, self._due()), self._check)

    def stop(self) -> None:
        """Give the attempt up, whatever its state: the engine stops working on it."""
        self._over()
        if not self.outcome.done():
            self._connection.abort()
            self.outcome.give_up()

    def endpoint_gone(self) -> None:
        """The pod does not exist any more: no byte can come from it."""
        self._give_up(Failure.ENDPOINT_GONE, "the pod is gone")

    # -- from the engine ------------------------------------------------------------------------------------------

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Take the head: hold it, or write it to the client."""
        self._last, self._has_head = self._loop.time(), True
        self.status = status
        self.content_type = header(headers, b"content-type") or b""
        kept = [*end_to_end(headers, drop=_DROPPED), *self.extra_headers]
        if self._may_hold and status in HELD_STATUSES:
            self._held = Held(status, kept, length, bytearray())
            return
        if status >= 300:
            self._opening = None
        if not is_event_stream(self.content_type):
            self._hidden = None
        self._exchange.begin(status, kept, length)

    def body(self, data: bytes) -> None:
        """Pass a piece on."""
        held = self._held
        if held is not None:
            held.body += data
            if len(held.body) > _HOLD_LIMIT_BYTES:
                # Too much for a farewell: it is an answer.
                self._held = None
                self._exchange.begin(held.status, held.headers, held.length)
                self._exchange.write(bytes(held.body))
            return
        if self.first_body_at is None:
            self.first_body_at = self._clock()
            self.first_bytes = data[:END_BYTES]
            self._began(self.status or 0)
        self.pieces += 1
        self._last_pieces.append(data if len(data) <= END_BYTES else data[-END_BYTES:])
        if self._opening is not None and self._opening(data):
            self._opening = None
        self._exchange.write(data if self._hidden is None else self._hidden.keep(data))

    def flush(self) -> None:
        """Send what arrived together."""
        now = self._loop.time()
        if self._held is None:
            self._exchange.flush()
            self._flushes += 1
            if not self._flushes % _GAPS and self.pieces > 1:
                self._observe_gap(now - self._last)
        self._last = now

    def end(self) -> None:
        """The answer is complete."""
        if self._held is None:
            if self.first_body_at is None:
                self._began(self.status or 0)
            if self._hidden is not None:
                self._exchange.write(self._hidden.rest())
            self._exchange.finish()
        self._end(Outcome(Failure.STATUS, self._held) if self._held is not None else Outcome())

    def lost(self, error: Exception | None, *, untouched: bool) -> None:
        """The connection failed."""
        kind = Failure.RESET if untouched or not _is_protocol(error) else Failure.PROTOCOL
        detail = str(error) if error else "the engine closed the connection"
        self._end(Outcome(kind, None, detail, untouched))

    @property
    def last_bytes(self) -> bytes:
        """How the body ended, as far as it came."""
        return b"".join(self._last_pieces)

    @property
    def has_last_event(self) -> bool:
        """A stream has come to its last event, with which many clients leave."""
        return is_event_stream(self.content_type) and self.last_bytes.rstrip().endswith(_LAST_EVENTS)

    # -- from the client ------------------------------------------------------------------------------------------

    def client_gone(self) -> None:
        """Abort the engine's work in this very moment, and with it whoever waits for the answer."""
        self.stop()

    def client_paused(self) -> None:
        """Read no more from the engine."""
        self._paused = True
        self._connection.pause()

    def client_resumed(self) -> None:
        """Read on; the time spent waiting for the client is not the engine's silence."""
        self._paused = False
        self._last = self._loop.time()
        self._connection.resume()

    # -- deadlines ------------------------------------------------------------------------------------------------

    def _due(self) -> float:
        deadlines = self._deadlines
        if self._has_head and self._paused:
            return deadlines.ends_at
        due = self._last + deadlines.idle_seconds if self._has_head else self._started + deadlines.first_byte_seconds
        return due if due < deadlines.ends_at else deadlines.ends_at

    def _check(self) -> float | None:
        """Fail when it is time to; returns when to look again."""
        now, due = self._loop.time(), self._due()
        if now < due:
            # Never later than one idle span: a pause that ends must be seen in time.
            return min(due, now + self._deadlines.idle_seconds)
        if now >= self._deadlines.ends_at:
            self._give_up(Failure.TOTAL, "the request took longer than it may")
        elif not self._has_head:
            self._give_up(Failure.FIRST_BYTE, f"no answer within {self._deadlines.first_byte_seconds:g} s")
        else:
            self._give_up(Failure.IDLE, f"silence for {self._deadlines.idle_seconds:g} s within the answer")
        return None

    def _give_up(self, failure: Failure, detail: str) -> None:
        if self.outcome.done():
            return
        self._connection.abort()
        self._end(Outcome(failure, None, detail, not self._has_head))

    def _end(self, outcome: Outcome) -> None:
        self._over()
        self.outcome.settle(outcome)

    def _over(self) -> None:
        self._exchange.watch(None)


def is_event_stream(content_type: bytes) -> bool:
    """Whether a content type is that of server-sent events, whatever its parameters."""
    return content_type[: len(_EVENT_STREAM)].lower() == _EVENT_STREAM


def _is_protocol(error: Exception | None) -> bool:
    return error is not None and not isinstance(error, OSError)
