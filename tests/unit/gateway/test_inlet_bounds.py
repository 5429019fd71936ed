"""What one connection may hold and how long it may take, step by step and on a clock of its own."""

from dataclasses import dataclass, field

import pytest
from tests.fuzz.machines import Loop, Tasks, Transport, turn

from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.message import Exchange, Headers, Refusal
from matrixinfer.gateway.wire.server import HttpInlet, _Connection

HOST = b"POST /v1/x HTTP/1.1\r\nhost: gw\r\n"
IN_CHUNKS = HOST + b"transfer-encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nhost: gw\r\n\r\n"


@dataclass
class Line:
    """One connection; requests are answered a step at a time."""

    limits: InletLimits = field(default_factory=InletLimits)
    loop: Loop = field(default_factory=Loop)
    tasks: Tasks = field(default_factory=Tasks)
    transport: Transport = field(default_factory=Transport)
    refused: list[int] = field(default_factory=list)
    at_once: bool = False

    def __post_init__(self) -> None:
        self.inlet = HttpInlet(self.answer, self.refuse, self.limits, self.loop.time)
        self.inlet.tasks = self.tasks  # type: ignore[assignment]
        self.connection = _Connection(self.inlet, self.loop)  # type: ignore[arg-type]
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.received = self.connection.data_received

    async def answer(self, exchange: Exchange) -> None:
        if not self.at_once:
            await turn()
        exchange.begin(204, [], None)
        exchange.finish()

    def refuse(self, refusal: Refusal) -> tuple[Headers, bytes]:
        self.refused.append(refusal.status)
        return [], b""

    def finish_all(self) -> None:
        while self.tasks.step() or self.loop.turn():
            pass

    @property
    def answered(self) -> int:
        return self.transport.out.count(b"HTTP/1.1 204 ")


def test_a_body_in_tiny_chunks_weighs_what_its_bytes_weigh() -> None:
    """As objects of their own two bytes would weigh thirty times as much."""
    line = Line()
    line.received(IN_CHUNKS + b"2\r\nab\r\n" * 5000)
    assert line.inlet.buffered_bytes == 10_000
    assert len(line.connection._pieces) <= 2
    line.received(b"0\r\n\r\n")
    line.finish_all()
    assert line.transport.out.startswith(b"HTTP/1.1 204 ")
    assert line.inlet.buffered_bytes == 0


def test_requests_that_wait_their_turn_wait_as_bytes() -> None:
    """A read may carry thousands; parsed they would weigh a kilobyte each."""
    line = Line()
    line.received(GET * 9000)
    assert len(line.connection._queue) < 200
    assert not line.transport.is_reading
    line.finish_all()
    assert line.answered == 9000
    assert line.transport.is_reading


def test_answers_that_take_no_time_leave_turns_to_other_connections() -> None:
    """One read may carry thousands of requests; answered in one go they would stop every stream of the worker."""
    line = Line(at_once=True)
    line.received(GET * 9000)
    before, steps = 0, [line.answered]
    while line.loop.turn():
        before += steps[-1]
        steps.append(line.answered - before)
    assert line.answered == 9000
    assert max(steps) < 200
    assert line.transport.is_reading


def test_a_client_that_reads_nothing_is_answered_no_more_and_given_up() -> None:
    """Each answer that waits for it is memory of the worker; asking again buys no time."""
    line = Line(InletLimits(write_stall_seconds=20, keep_alive_seconds=500), at_once=True)
    line.received(GET)
    line.connection.pause_writing()
    line.received(GET * 5)
    line.finish_all()
    assert line.answered == 1
    assert not line.transport.is_reading
    while not line.transport.is_closing():
        assert line.loop.advance()
    assert line.loop.now == 20
    assert line.transport.was_aborted


def test_a_client_that_reads_again_is_answered_on() -> None:
    line = Line(at_once=True)
    line.received(GET)
    line.connection.pause_writing()
    line.received(GET * 5 + b"GET /half")
    line.connection.resume_writing()
    line.finish_all()
    assert line.answered == 6
    assert line.transport.is_reading
    line.received(b" HTTP/1.1\r\nhost: gw\r\n\r\n")
    assert line.answered == 7


def test_a_refusal_waits_for_a_slow_client_like_any_answer() -> None:
    line = Line(at_once=True)
    line.received(GET)
    line.connection.pause_writing()
    line.received(b"nonsense\r\n\r\n")
    assert line.refused == []
    line.connection.resume_writing()
    line.finish_all()
    assert line.refused == [400]


def test_a_connection_with_requests_that_wait_is_not_idle() -> None:
    line = Line(at_once=True)
    line.received(GET * 9000)
    line.connection.close_when_idle()
    assert not line.transport.is_closing()
    line.finish_all()
    assert line.answered == 9000


@pytest.mark.parametrize(("after", "status"), [(59.0, None), (61.0, 408)])
def test_a_body_begun_behind_another_request_has_the_time_of_a_body(after: float, status: int | None) -> None:
    line = Line(InletLimits(head_seconds=1, body_seconds=60))
    line.received(GET + HOST + b"content-length: 5\r\n\r\nhe")
    line.finish_all()
    line.loop.now = after
    while line.loop.waiting and min(timer.when() for timer in line.loop.timers) <= after:
        line.loop.advance()
    line.received(b"llo")
    line.finish_all()
    assert line.refused == ([] if status is None else [status])


def test_a_trickling_head_does_not_buy_time() -> None:
    line = Line(InletLimits(head_seconds=10))
    for second in range(9):
        line.loop.now = float(second)
        line.received(b"POST /v1/x"[second : second + 1])
    assert min(timer.when() for timer in line.loop.waiting) <= 10.0
    line.loop.now = 10.0
    line.loop.advance()
    assert line.refused == [408]


def test_line_ends_for_ever_are_no_request() -> None:
    line = Line(InletLimits(head_bytes=1000))
    for _ in range(6):
        line.received(b"\r\n" * 100)
    assert line.refused == [431]


def test_a_connection_that_does_nothing_has_one_timer() -> None:
    line = Line()
    for _ in range(20):
        line.received(GET)
        line.finish_all()
    assert len(line.loop.waiting) == 1
