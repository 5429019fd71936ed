"""What no bytes from an engine may do to the gateway. `check` raises when they do.

The answer comes whole, in pieces, and with a sudden end. Whatever it is, the sink hears a consistent story with one
end; an answer that we call complete is the one that h11 reads; and what a client would be sent of it is one answer.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import h11
from tests.fuzz.machines import Transport

from matrixinfer.gateway.wire.message import HOP_BY_HOP, Headers, end_to_end, has_no_body, response_head
from matrixinfer.gateway.wire.upstream import UpstreamConnection

_REQUEST = b"POST / HTTP/1.1\r\nhost: engine\r\ncontent-length: 0\r\n\r\n"


@dataclass
class Story:
    """A sink that insists on the order of things."""

    status: int | None = None
    headers: Headers = ()
    length: int | None = None
    body: bytearray = field(default_factory=bytearray)
    ended: str = ""
    untouched: bool = False
    released: list[bool] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """A parser would swallow what is raised here, so it is noted."""

    def promise(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)

    def told(self) -> tuple[object, ...]:
        return self.status, tuple(self.headers), self.length, bytes(self.body), self.ended

    def head_came(self, status: int, headers: Headers, length: int | None) -> None:
        self.promise(self.status is None, "two heads")
        self.promise(not self.ended, "a head behind the end")
        self.promise(200 <= status <= 599, f"a final answer of status {status}")
        for name, value in headers:
            self.promise(not any(c in b"\r\n\0" for c in name + value), f"{name!r}: {value!r} could split an answer")
        self.status, self.headers, self.length = status, tuple(headers), length

    def piece(self, data: bytes) -> None:
        self.promise(self.status is not None, "a body before its head")
        self.promise(not self.ended, "a piece behind the end")
        self.body += data
        self.promise(self.length is None or len(self.body) <= self.length, "more than was announced")

    def over(self, how: str) -> None:
        self.promise(not self.ended, f"{how} after {self.ended}")
        self.ended = how


class Sink:
    def __init__(self, story: Story) -> None:
        self.story = story
        self.head = story.head_came
        self.body = story.piece

    def flush(self) -> None:
        self.story.promise(not self.story.ended, "a flush behind the end")

    def end(self) -> None:
        story = self.story
        whole = story.status is not None and (has_no_body(story.status) or story.length in (None, len(story.body)))
        story.promise(whole, "the end of an answer that is not complete")
        story.over("end")

    def lost(self, _error: Exception | None, *, untouched: bool) -> None:
        self.story.untouched = untouched
        self.story.over("lost")


def check(data: bytes) -> None:
    """Raise AssertionError, or whatever escaped, when a connection breaks a promise on these bytes."""
    draw = random.Random(zlib.crc32(data))
    whole = _play(data, lambda: len(data))
    pieces = _play(data, lambda: draw.choice((1, 2, 3, 7, 16, 61, 250)))
    assert whole.told() == pieces.told(), f"the pieces it came in changed what was read: {whole} {pieces}"
    assert not whole.untouched or not data
    if whole.ended == "end":
        _agree_with_another_parser(data, whole)
        _travels_well(whole)
    _play(data[: draw.randrange(len(data) + 1)], lambda: draw.choice((3, 30, 300)))


def _play(data: bytes, piece: Callable[[], int]) -> Story:
    story, transport = Story(), Transport()
    connection = UpstreamConnection(lambda _connection, reusable: story.released.append(reusable))
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.send(_REQUEST, Sink(story))
    at = 0
    while at < len(data) and not transport.is_closing():
        size = piece()
        connection.data_received(data[at : at + size])
        at += size
        if story.ended and at < len(data) and not transport.is_closing():
            # What follows an answer on a connection that went back to the pool was asked for by nobody.
            connection.data_received(data[at:])
            assert transport.is_closing(), "bytes behind an answer were taken for the next one"
    transport.close()
    connection.connection_lost(None)
    assert not story.faults, story.faults
    assert story.ended, "nobody was told of the end"
    assert story.released[-1] is False
    assert len(story.released) == 1 + (story.ended == "end" and len(story.released) > 1)
    return story


def _agree_with_another_parser(data: bytes, ours: Story) -> None:
    connection = _asked()
    connection.receive_data(data)
    body = bytearray()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(b"")
            elif isinstance(event, h11.Response):
                assert event.status_code == ours.status
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert body == ours.body, f"two parsers read two answers: {bytes(ours.body)!r} and {bytes(body)!r}"
                return
            elif isinstance(event, h11.ConnectionClosed):
                return
    except h11.RemoteProtocolError:
        # h11 is stricter in places.
        return


def _travels_well(story: Story) -> None:
    """What a client would be sent is one answer, and the same."""
    assert story.status is not None
    framing = [] if has_no_body(story.status) else [(b"content-length", b"%d" % len(story.body))]
    headers = [*end_to_end(story.headers, drop=HOP_BY_HOP | {b"content-length"}), *framing]
    connection = _asked()
    connection.receive_data(response_head(story.status, headers) + story.body)
    body = bytearray()
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        if isinstance(event, h11.Data):
            body += event.data
    assert body == (b"" if has_no_body(story.status) else story.body)
    assert not connection.trailing_data[0]


def _asked() -> h11.Connection:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 22)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "engine"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    return connection
