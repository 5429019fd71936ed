"""What the inlets refuse is seen by operators, and a flood of it fills no log."""

from collections.abc import Callable

import pytest
from tests.unit.gateway.rig import Rig, post

from matrixinfer.gateway.access import AccessRecord
from matrixinfer.gateway.refusing import Refusals
from matrixinfer.gateway.stats import Stats
from matrixinfer.gateway.wire.message import Refusal
from matrixinfer.service.clock import utcnow

BOTH_INLETS = True


def counted(stats: Stats) -> dict[tuple[str, str], int]:
    report = stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
    return {key: count for key, count in report.series["", "", ""].requests.items() if count}


@pytest.mark.parametrize(
    ("request_", "status", "method", "path"),
    [
        (b"GET /x HTTP/1.1\r\nhost: a\r\nexpect: cake\r\n\r\n", 417, "GET", "/x"),
        (post(b"x" * 2000, "/v1/embeddings?a=b"), 413, "POST", "/v1/embeddings"),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431, None, None),
        (b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nabc", 408, "POST", "/v1/x"),
        (b"\x00\x01\x02\r\n\r\n", 400, None, None),
    ],
)
async def test_a_refusal_is_counted_and_has_a_line(
    rig: Rig, request_: bytes, status: int, method: str | None, path: str | None
) -> None:
    await rig.start(body_bytes=1024, head_bytes=2048, body_seconds=0.05)
    assert (await rig.ask(request_)).status == status
    record = await rig.record()
    assert (record.status, record.outcome, record.client) == (status, "not_accepted", "127.0.0.1")
    assert record.failures[0]
    if method is not None:
        assert (record.method, record.path) == (method, path)
    assert counted(rig.stats) == {(str(status), "not_accepted"): 1}


class Log(list[AccessRecord]):
    """Takes the lines."""

    write = list.append


@pytest.fixture
def flood() -> tuple[Log, Stats, Callable[[float], None]]:
    """A refusal of a hostile client at a given time."""
    log, stats, time = Log(), Stats(), [0.0]
    refusals = Refusals(
        worker=0,
        series=stats.series("", ""),
        access=log,  # type: ignore[arg-type]
        now=utcnow,
        clock=lambda: time[0],
        request_id=lambda _headers: "made",
    )

    def refuse(now: float) -> None:
        time[0] = now
        refusals(Refusal(400, "No.", "X" * 9999, b"/\xff\n" * 9999))

    return log, stats, refuse


def test_a_flood_has_a_few_lines_a_second_and_is_counted_whole(
    flood: tuple[Log, Stats, Callable[[float], None]],
) -> None:
    log, stats, refuse = flood
    for _ in range(1000):
        refuse(7.5)
    assert len(log) == 10
    refuse(8.0)
    assert [record.lines_left_out for record in log] == [0] * 10 + [990]
    assert counted(stats) == {("400", "not_accepted"): 1001}


def test_a_line_has_little_of_what_the_client_made_up(flood: tuple[Log, Stats, Callable[[float], None]]) -> None:
    log, _, refuse = flood
    refuse(1.0)
    assert (len(log[0].method), len(log[0].path)) == (16, 128)
