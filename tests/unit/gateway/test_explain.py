"""Why a request went where it went: what is remembered, what a client is told, and that a replay agrees."""

from datetime import UTC, datetime

import msgspec
import pytest
from tests.unit.gateway.rig import Rig, StubEngine, answering, post

from matrixinfer.gateway.access import DecisionRecord
from matrixinfer.gateway.core.schedule.record import Recorded
from matrixinfer.gateway.decisions import DecisionBook, Noted


def story(rig: Rig, request_id: str) -> dict:
    page = rig.handler.decisions.explain(request_id)
    assert page is not None
    return dict(msgspec.json.decode(page))


async def test_every_candidate_every_score_and_the_same_pod_again(rig: Rig) -> None:
    for _ in range(3):
        await rig.engine()
    await rig.start()
    for number in range(30):
        await rig.ask(post(x_request_id=f"r{number}"))
        (attempt,) = story(rig, f"r{number}")["attempts"]
        record = rig.records[-1]
        assert (attempt["pod"], attempt["route"], attempt["server"]) == (record.pod, "ns/r", "s")
        assert attempt["replay"] == {"pod": record.pod, "same": True}
        decision = attempt["decision"]
        assert decision["revision"] == rig.revision
        assert {candidate["pod"] for candidate in decision["candidates"]} == {"pod-0", "pod-1", "pod-2"}
        assert all(candidate["scores"] for candidate in decision["candidates"])
        (chosen,) = [candidate["pod"] for candidate in decision["candidates"] if candidate.get("chosen")]
        assert chosen == record.pod


async def test_a_request_that_was_sent_again_has_two_decisions_and_says_what_removed_the_first_pod(rig: Rig) -> None:
    await rig.engine(listening=False)
    await rig.engine()
    await rig.start()
    for number in range(40):
        await rig.ask(post(x_request_id=f"r{number}"))
        if rig.records[-1].retries:
            break
    first, second = story(rig, rig.records[-1].request_id)["attempts"]
    assert (first["pod"], second["pod"]) == ("pod-0", "pod-1")
    removed = {c["pod"]: c.get("removed_by", "") for c in second["decision"]["candidates"]}
    assert removed["pod-0"]
    assert second["replay"]["same"]


async def test_a_client_that_asks_is_told_in_a_header(rig: Rig) -> None:
    engine: StubEngine = await rig.engine()
    await rig.start()
    told = (await rig.ask(post(x_matrixinfer_explain="1"))).headers[b"x-matrixinfer-decision"].decode()
    parts = dict(part.split("=") for part in told.split("; "))
    assert (parts["pod"], parts["server"], parts["rule"], parts["attempt"]) == ("pod-0", "s", "rule", "1")
    assert int(parts["revision"]) == rig.revision
    assert b"x-matrixinfer-explain" not in engine.asked[0].headers
    assert b"x-matrixinfer-decision" not in (await rig.ask()).headers


async def test_an_engine_does_not_speak_for_the_gateway(rig: Rig) -> None:
    head = b"HTTP/1.1 200 OK\r\nx-matrixinfer-decision: pod=mine\r\ncontent-length: 2\r\n\r\nok"
    await rig.engine(answering(head))
    await rig.start()
    assert b"x-matrixinfer-decision" not in (await rig.ask()).headers


def test_a_rule_with_a_strange_name_breaks_no_header() -> None:
    told = DecisionRecord(1, "a\r\nset-cookie: x=1; é", "s", 1, 1, 0.5).header("pod", 1)
    assert b"\r" not in told
    assert b"\n" not in told
    assert told.isascii()


def noted(request_id: str, recorded: Recorded) -> Noted:
    return Noted(
        datetime(2026, 1, 1, tzinfo=UTC),
        "ns/r",
        "",
        "s",
        "pod-0",
        msgspec.structs.replace(recorded, request_id=request_id),
    )


@pytest.fixture
async def recorded(rig: Rig) -> Recorded:
    for _ in range(4):
        await rig.engine()
    await rig.start()
    await rig.ask(post(x_request_id="one"))
    return rig.handler.decisions._notes[0].recorded


async def test_the_oldest_are_forgotten_first(recorded: Recorded) -> None:
    book = DecisionBook(0, decisions=3)
    for number in range(5):
        book.note(noted(f"r{number}", recorded))
    assert [number for number in range(5) if book.explain(f"r{number}")] == [2, 3, 4]


async def test_decisions_among_many_pods_are_kept_for_fewer_requests(recorded: Recorded) -> None:
    book = DecisionBook(0, candidates=10)
    for number in range(5):
        book.note(noted(f"r{number}", recorded))
    assert [number for number in range(5) if book.explain(f"r{number}")] == [3, 4]


async def test_one_name_for_all_requests_tells_of_a_few(recorded: Recorded) -> None:
    book = DecisionBook(0)
    for _ in range(2000):
        book.note(noted("same", recorded))
    assert len(book._notes) == 1024
    assert book._held == 1024 * len(recorded.view.endpoints)
    page = book.explain("same")
    assert page is not None
    assert len(msgspec.json.decode(page)["attempts"]) == 16
    assert book.explain("another") is None
