"""What no bytes from a client may do to the inlet. `check` raises when they do.

The input goes in whole, in pieces, and in pieces with answers, pauses and a sudden end in between. h11, a parser that
shares no code with ours, reads the same bytes: where both accept a request they must read the same one. Every request
that is accepted is also rendered as it would travel to an engine, and h11 must find exactly that request there.
"""

import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import h11
import msgspec
from tests.fuzz.machines import Loop, Tasks, Transport, turn

from matrixinfer.gateway.wire import server
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.message import HOP_BY_HOP, Exchange, Headers, Refusal, Request, end_to_end, request_head
from matrixinfer.gateway.wire.running import Ending
from matrixinfer.gateway.wire.server import HttpInlet, _Connection

# Limits that an input cannot reach, so that only its bytes decide; and others that it can hardly keep.
LIMITS = InletLimits(head_bytes=1 << 20, body_bytes=1 << 20, buffered_bytes=1 << 20)
TIGHT = replace(LIMITS, head_bytes=160, body_bytes=24, buffered_bytes=32)
_BODY = b'{"ok":true}'
_STEPS_LIMIT = 100_000
_H11_LIMIT = 1 << 22

Told = tuple[str, bytes, bytes]


@dataclass
class Story:
    """What happened on one connection."""

    requests: list[Request]
    refusals: list[Refusal]
    out: bytes
    was_cut: bool


def check(data: bytes) -> None:
    """Raise AssertionError, or whatever escaped, when the inlet breaks a promise on these bytes."""
    draw = random.Random(zlib.crc32(data))
    sizes = server._SLICE_BYTES, server._SMALL_PIECE_BYTES, server._QUEUE_LIMIT
    if draw.random() < 0.5:
        # So small that an input has many slices.
        server._SLICE_BYTES, server._SMALL_PIECE_BYTES, server._QUEUE_LIMIT = 50, 9, 2
    try:
        _check(data, draw)
    finally:
        server._SLICE_BYTES, server._SMALL_PIECE_BYTES, server._QUEUE_LIMIT = sizes


def _check(data: bytes, draw: random.Random) -> None:
    whole = _play(data, LIMITS, draw, piece=lambda: len(data))
    size = draw.choice((1, 3, 16, 61, 250))
    pieces = _play(data, LIMITS, draw, piece=lambda: draw.randint(1, size))
    told = [_told(request) for request in whole.requests]
    assert told == [_told(request) for request in pieces.requests], "the pieces it came in changed what was read"
    _agree_with_another_parser(data, told)
    for request in whole.requests:
        _travels_well(request)
    for story in (whole, pieces):
        _answers_are_in_order(story)
    _play(data, TIGHT, draw, piece=lambda: draw.choice((5, 40, 4000)))
    _play(data, LIMITS, draw, piece=lambda: draw.choice((3, 30, 300)), cut_after=draw.randrange(len(data) + 1))


class _Line:
    """One connection to an inlet whose requests are answered in all the ways that answers wait."""

    def __init__(self, limits: InletLimits, draw: random.Random) -> None:
        self.draw = draw
        self.loop, self.tasks, self.transport = Loop(), Tasks(), Transport()
        self.requests: list[Request] = []
        self.refusals: list[Refusal] = []
        self.faults: list[Exception] = []
        self.is_slow = False
        self._endings: deque[Ending[None]] = deque()
        self.inlet = HttpInlet(self._answer, self._refuse, limits, self.loop.time)
        self.inlet.tasks = self.tasks  # type: ignore[assignment]
        self.connection = _Connection(self.inlet, self.loop)  # type: ignore[arg-type]
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    async def _answer(self, exchange: Exchange) -> None:
        try:
            # A copy: the body is let go when the answer begins.
            self.requests.append(msgspec.structs.replace(exchange.request))
            number = len(self.requests)
            await self._wait()
            exchange.begin(200, [(b"x-number", b"%d" % number)], len(_BODY) if number % 2 else None)
            exchange.write(_BODY)
            exchange.flush()
            await self._wait()
            exchange.finish()
        except Exception as exc:
            # The inlet would only log it.
            self.faults.append(exc)
            raise

    async def _wait(self) -> None:
        """Not at all, for a turn of the loop, or for an ending."""
        kind = self.draw.randrange(3)
        if kind == 1:
            await turn()
        elif kind == 2:
            self._endings.append(Ending(loop=self.loop))  # type: ignore[arg-type]
            await self._endings[-1]

    def _refuse(self, refusal: Refusal) -> tuple[Headers, bytes]:
        self.refusals.append(refusal)
        return [], refusal.message.encode()

    def step(self) -> bool:
        """Let something happen that waits for nobody outside; False when nothing does."""
        if self._endings and self.draw.random() < 0.5:
            self._endings.popleft().settle(None)
        elif not self.tasks.step() and not self.loop.turn():
            if not self._endings:
                return False
            self._endings.popleft().settle(None)
        return True

    def turn_slow_or_fast(self) -> None:
        """Let the client read nothing from now on, or read again."""
        self.is_slow = not self.is_slow
        (self.connection.pause_writing if self.is_slow else self.connection.resume_writing)()

    def go_on(self, *, is_all_sent: bool) -> None:
        """Let time pass, in which something must happen, when nothing else does."""
        if self.step():
            return
        if self.is_slow:
            self.turn_slow_or_fast()
        elif is_all_sent or not self.transport.is_reading:
            assert self.transport.is_reading or is_all_sent, "it stopped reading for ever"
            assert self.loop.advance() or self.transport.is_closing(), "a connection that nobody watches"


def _play(
    data: bytes, limits: InletLimits, draw: random.Random, piece: Callable[[], int], cut_after: int | None = None
) -> Story:
    """Live through one connection, to its end, and see that it leaves nothing behind."""
    line = _Line(limits, draw)
    transport, inlet = line.transport, line.inlet
    at = steps = 0
    while not transport.is_closing() and (cut_after is None or at < cut_after):
        steps += 1
        assert steps < _STEPS_LIMIT, "the connection never ends"
        if at < len(data) and transport.is_reading and draw.random() < 0.8:
            size = piece()
            line.connection.data_received(data[at : at + size])
            at += size
        elif draw.random() < (0.3 if line.is_slow else 0.1):
            line.turn_slow_or_fast()
        else:
            line.go_on(is_all_sent=at >= len(data))
        assert inlet.buffered_bytes <= limits.buffered_bytes + len(data)
    transport.close()
    line.connection.connection_lost(None)
    while line.step():
        pass
    assert not line.faults, line.faults
    assert inlet.buffered_bytes == 0, f"{inlet.buffered_bytes} bytes were never given back"
    assert not inlet.connections
    assert not line.loop.waiting, "a timer holds the connection"
    return Story(line.requests, line.refusals, bytes(transport.out), transport.was_aborted or cut_after is not None)


def _told(request: Request) -> Told:
    return request.method, request.target, request.body


def _agree_with_another_parser(data: bytes, ours: list[Told]) -> None:
    theirs, ended_by = _read_by_h11(data)
    for mine, other in zip(ours, theirs, strict=False):
        assert mine == other, f"two parsers read two requests: {mine!r} and {other!r}"
    assert len(ours) <= len(theirs) or ended_by, f"h11 waits for more, we read {ours[len(theirs)]!r}"


def _read_by_h11(data: bytes) -> tuple[list[Told], str]:
    """Return the complete requests that h11 finds, and why it found no more; empty when it waits for more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_H11_LIMIT)
    connection.receive_data(data)
    found: list[Told] = []
    head, body = None, bytearray()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return found, ""
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return found, "closed"
            if isinstance(event, h11.Request):
                head, body = event, bytearray()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                found.append((head.method.decode(), _origin_form(head.target), bytes(body)))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return found, "closed"
                connection.start_next_cycle()
    except h11.ProtocolError as exc:
        return found, str(exc)


def _origin_form(target: bytes) -> bytes:
    if target.startswith(b"/") or target == b"*":
        return target
    rest = target.partition(b"://")[2]
    at = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    tail = rest[at:]
    return tail if tail.startswith(b"/") else b"/" + tail


def _travels_well(request: Request) -> None:
    """What an engine would be sent is one request, the same one, to a parser that never saw ours."""
    headers = [
        (b"host", b"engine:8000"),
        *end_to_end(request.headers, drop=HOP_BY_HOP | {b"host", b"content-length", b"expect"}),
        (b"content-length", b"%d" % len(request.body)),
    ]
    data = request_head(request.method, request.target, headers) + request.body
    found, _ = _read_by_h11(data)
    assert found == [_told(request)], f"an engine would read {found!r} in {data!r}"


def _answers_are_in_order(story: Story) -> None:
    """One answer for each request, in order; at most one refusal, the last word."""
    if story.was_cut:
        return
    assert len(story.refusals) <= 1
    rest = story.out
    for number, request in enumerate(story.requests, 1):
        status, headers, rest = _one_answer(rest, request.method)
        assert (status, headers[b"x-number"]) == (200, b"%d" % number)
    for refusal in story.refusals:
        status, _, rest = _one_answer(rest, refusal.method or "POST")
        assert status == refusal.status
    assert not rest, f"nobody asked for {rest!r}"


def _one_answer(data: bytes, method: str) -> tuple[int, dict[bytes, bytes], bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "gw"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    response = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            # An answer that ends with the connection.
            connection.receive_data(b"")
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return response.status_code, dict(response.headers), connection.trailing_data[0]
