"""Requests wait for room, within bounds and in order; those that cannot are refused with a time to come back."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.unit.gateway.rig import OK, Answer, Asked, Rig, post

from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.types import TrafficPolicy


class Gate:
    """An engine's behaviour that answers one request at a time, when it is told to."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def __call__(self, _asked: Asked, writer: asyncio.StreamWriter) -> None:
        opened = asyncio.Event()
        self.waiting.put_nowait(opened)
        await opened.wait()
        writer.write(OK)

    async def let_one_pass(self) -> None:
        (await self.waiting.get()).set()


async def one_at_a_time(rig: Rig, gate: Gate, **limits: Any) -> Any:
    """An engine that takes one request at a time, and a queue."""
    engine = await rig.engine(gate)
    rig.policy = TrafficPolicy(max_in_flight_per_endpoint=1)
    rig.defaults = replace(rig.defaults, queue=QueueLimits(**{"busy_seconds": 30, "empty_seconds": 30, **limits}))
    await rig.start()
    return engine


def asking(rig: Rig, mark: str, **headers: str) -> "asyncio.Task[Answer]":
    body = b'{"model":"m","mark":"%s"}' % mark.encode()
    return rig.tasks.create_task(rig.ask(post(body, **headers)))


def marks(engine: Any) -> list[str]:
    return [asked.body.decode().split('"')[7] for asked in engine.asked]


async def standing(rig: Rig, count: int) -> None:
    await rig.until(lambda: rig.handler.waiting == count)


async def test_beat_26_a_full_endpoint_means_waiting_and_then_an_answer(rig: Rig) -> None:
    gate = Gate()
    engine = await one_at_a_time(rig, gate)
    answers = [asking(rig, str(i)) for i in range(5)]
    await standing(rig, 4)
    for _ in range(5):
        await gate.let_one_pass()
    assert {(await answer).status for answer in answers} == {200}
    assert len(engine.asked) == 5
    assert sorted(record.queue_ms > 0 for record in rig.records) == [False, True, True, True, True]
    assert rig.in_flight() == [0] * 64


async def test_who_came_first_is_served_first_and_priority_goes_before(rig: Rig) -> None:
    gate = Gate()
    engine = await one_at_a_time(rig, gate)
    answers = []
    for count, (mark, headers) in enumerate(
        [("running", {}), ("a", {}), ("b", {}), ("humble", {"x_request_priority": "-1"}), ("c", {})]
    ):
        answers.append(asking(rig, mark, **headers))
        await standing(rig, count)
    answers.append(asking(rig, "urgent", x_request_priority="5"))
    await standing(rig, 5)
    for _ in answers:
        await gate.let_one_pass()
    assert {(await answer).status for answer in answers} == {200}
    assert marks(engine) == ["running", "urgent", "a", "b", "c", "humble"]


async def test_a_newcomer_does_not_overtake_those_who_wait(rig: Rig) -> None:
    """Room that nobody has noticed yet belongs to the first in line."""
    gate = Gate()
    engine = await one_at_a_time(rig, gate)
    busy = rig.load(0)
    answers = [asking(rig, "first")]
    await standing(rig, 1)
    busy()
    answers.append(asking(rig, "second"))
    for _ in range(2):
        await gate.let_one_pass()
    assert {(await answer).status for answer in answers} == {200}
    assert marks(engine) == ["first", "second"]


@pytest.mark.parametrize(
    ("limits", "refused"), [({"requests": 2}, 1), ({"bytes": 60}, 1), ({"requests": 0}, 3), ({"busy_seconds": 0}, 3)]
)
async def test_beat_25_what_finds_no_place_is_refused_with_429_and_a_time(
    rig: Rig, limits: dict[str, int], refused: int
) -> None:
    gate = Gate()
    await one_at_a_time(rig, gate, **limits)
    running = asking(rig, "running")
    await rig.until(lambda: rig.in_flight()[0])
    answers = [asking(rig, str(i)) for i in range(3)]
    await rig.until(lambda: sum(answer.done() for answer in answers) == refused)
    turned_away = [answer.result() for answer in answers if answer.done()]
    assert {(a.status, a.error["code"], a.headers[b"retry-after"]) for a in turned_away} == {(429, "overloaded", b"1")}
    for _ in range(4 - refused):
        await gate.let_one_pass()
    assert (await running).status == 200
    assert sum([(await answer).status == 200 for answer in answers]) == 3 - refused


async def test_a_full_line_lets_go_of_its_last_for_somebody_more_urgent(rig: Rig) -> None:
    gate = Gate()
    engine = await one_at_a_time(rig, gate, requests=2)
    answers = []
    for count, mark in enumerate(("running", "a", "b")):
        answers.append(asking(rig, mark))
        await standing(rig, count)
    urgent = asking(rig, "urgent", x_request_priority="1")
    assert (await answers[2]).status == 429
    for _ in range(3):
        await gate.let_one_pass()
    assert [(await answer).status for answer in (urgent, *answers[:2])] == [200] * 3
    assert marks(engine) == ["running", "urgent", "a"]


async def test_nobody_is_let_go_for_one_that_does_not_fit_all_the_same(rig: Rig) -> None:
    gate = Gate()
    await one_at_a_time(rig, gate, bytes=200)
    answers = []
    for count, mark in enumerate(("running", "a", "b")):
        answers.append(asking(rig, mark))
        await standing(rig, count)
    too_large = asking(rig, "x" * 300, x_request_priority="1")
    assert (await too_large).status == 429
    for _ in range(3):
        await gate.let_one_pass()
    assert [(await answer).status for answer in answers] == [200] * 3


async def test_one_that_failed_where_there_is_room_does_not_hold_up_those_behind_it(rig: Rig) -> None:
    """The first in line may go only where it did not fail, and that endpoint is busy; the other one is idle."""
    failures = iter([b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"])

    async def fail_once(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(next(failures, OK))

    gate = Gate()
    busy = await one_at_a_time(rig, gate)
    holding = asking(rig, "holding")
    await rig.until(lambda: len(busy.asked) == 1)
    once = await rig.engine(fail_once)
    first = asking(rig, "first")
    await rig.until(lambda: len(once.asked) == 1)
    await standing(rig, 1)
    assert (await asking(rig, "second")).status == 200
    assert not first.done()
    for _ in range(2):
        await gate.let_one_pass()
    assert [(await holding).status, (await first).status] == [200, 200]


@pytest.mark.parametrize("by", ["queue", "client", "policy"])
async def test_nobody_waits_longer_than_it_may(rig: Rig, by: str) -> None:
    gate = Gate()
    await one_at_a_time(rig, gate, busy_seconds=0.03 if by == "queue" else 30)
    if by == "policy":
        rig.policy = TrafficPolicy(max_in_flight_per_endpoint=1, total_seconds=0.03)
    rig.load(0)
    rig.publish()
    answer = await asking(rig, "a", **({"x_request_timeout": "0.03"} if by == "client" else {}))
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert rig.handler.waiting == 0


async def test_a_client_that_leaves_frees_its_place_at_once(rig: Rig) -> None:
    gate = Gate()
    engine = await one_at_a_time(rig, gate, requests=1)
    running = asking(rig, "running")
    await rig.until(lambda: rig.in_flight()[0])
    client = await rig.client()
    client.send(post(b'{"model":"m","mark":"gone"}'))
    await standing(rig, 1)
    client.close()
    await standing(rig, 0)
    assert (rig.records[-1].outcome, rig.records[-1].status) == ("client_gone", 499)
    patient = asking(rig, "patient")
    await standing(rig, 1)
    for _ in range(2):
        await gate.let_one_pass()
    assert [(await answer).status for answer in (running, patient)] == [200, 200]
    assert marks(engine) == ["running", "patient"]


async def test_a_place_that_was_given_to_a_client_in_the_moment_it_left_is_given_back(rig: Rig) -> None:
    gate = Gate()
    await one_at_a_time(rig, gate)
    busy = rig.load(0)
    client = await rig.client()
    client.send(post())
    await standing(rig, 1)
    (connection,) = rig.inlet.connections
    busy()
    # Both in one tick, so that the task finds its place and its end together.
    rig.handler._waiting.release()
    connection.connection_lost(None)
    await rig.until(lambda: rig.records)
    assert rig.in_flight() == [0] * 64
    assert rig.handler.waiting == 0
    # Nor does it make the pod older, or count as a decision.
    assert rig.prefixes.now(0) == 0
    report = rig.stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
    assert not any(series.decisions for series in report.series.values())


async def test_room_that_another_worker_made_is_found(rig: Rig) -> None:
    gate = Gate()
    await one_at_a_time(rig, gate)
    others = rig.load(0)
    answer = asking(rig, "a")
    await standing(rig, 1)
    others()
    await gate.let_one_pass()
    assert (await answer).status == 200


async def test_a_new_endpoint_takes_those_who_wait(rig: Rig) -> None:
    await one_at_a_time(rig, Gate())
    rig.load(0)
    answers = [asking(rig, str(i)) for i in range(3)]
    await standing(rig, 3)
    await rig.engine()
    assert {(await answer).status for answer in answers} == {200}


async def test_those_who_wait_for_a_route_that_is_deleted_are_told(rig: Rig) -> None:
    await one_at_a_time(rig, Gate())
    rig.load(0)
    answer = asking(rig, "a")
    await standing(rig, 1)
    rig.name = "another"
    rig.publish()
    assert ((await answer).status, (await answer).error["code"]) == (404, "model_not_found")


async def test_a_fault_of_ours_costs_one_of_those_who_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    await one_at_a_time(rig, gate)
    busy = rig.load(0)
    answers = [asking(rig, "unlucky")]
    await standing(rig, 1)
    answers.append(asking(rig, "next"))
    await standing(rig, 2)
    choose = rig.handler._choose
    faults = iter([ZeroDivisionError()])

    def choose_or_fail(*arguments: Any) -> Any:
        for fault in faults:
            raise fault
        return choose(*arguments)

    monkeypatch.setattr(rig.handler, "_choose", choose_or_fail)
    with capture_logs() as logs:
        busy()
        await gate.let_one_pass()
        assert [(await answer).status for answer in answers] == [500, 200]
    assert [line["event"] for line in logs] == ["request_failed"]


async def test_the_time_to_come_back_follows_the_speed_of_the_line(rig: Rig) -> None:
    await one_at_a_time(rig, Gate(), requests=3)
    rig.load(0)
    waiting = [asking(rig, str(i)) for i in range(3)]
    await standing(rig, 3)
    (found,) = rig.handler._waiting.lines.values()
    for turn in range(20):
        found.turns.turned(turn * 4.0)
    # A wait of 12 s is within 30 s for the line, and beyond what the client will wait.
    too_late = await asking(rig, "too late", x_request_timeout="10")
    full = await asking(rig, "full")
    assert {(a.status, a.headers[b"retry-after"]) for a in (too_late, full)} == {(429, b"16")}
    for answer in waiting:
        answer.cancel()


# -- scale from zero ----------------------------------------------------------------------------------------------


async def test_a_request_for_a_server_without_endpoints_wakes_it_and_runs_when_the_first_is_ready(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matrixinfer.gateway.waiting._WAKE_SECONDS", 3600.0)
    rig.defaults = replace(rig.defaults, queue=QueueLimits(empty_seconds=30))
    await rig.start()
    answers = [asking(rig, str(i)) for i in range(5)]
    await rig.until(lambda: rig.wanted)
    await rig.engine()
    assert {(await answer).status for answer in answers} == {200}
    assert [(server.namespace, server.name) for server in rig.wanted] == [("ns", "s")]
    assert all(record.queue_ms > 0 for record in rig.records)


@pytest.mark.parametrize(("seconds", "wanted"), [(0.05, 1), (0, 0)])
async def test_a_server_that_nobody_wakes_costs_503_after_the_time_that_is_set(
    rig: Rig, seconds: float, wanted: int
) -> None:
    rig.defaults = replace(rig.defaults, queue=QueueLimits(empty_seconds=seconds))
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.error["code"], answer.headers[b"retry-after"]) == (503, "no_endpoints", b"5")
    assert len(rig.wanted) == wanted
    record = await rig.record()
    assert (record.server, record.outcome) == ("s", "no_endpoints")


async def test_a_pod_that_is_not_ready_yet_wakes_nobody_once_it_is(rig: Rig) -> None:
    """The last endpoint fails while its successor starts: nothing is lost between them."""
    old = await rig.engine()
    rig.defaults = replace(rig.defaults, queue=QueueLimits(empty_seconds=30))
    await rig.start()
    assert (await rig.ask()).status == 200
    rig.publish(without=(old,))
    answer = asking(rig, "between")
    await standing(rig, 1)
    new = await rig.engine()
    rig.publish(without=(old,))
    assert (await answer).status == 200
    assert len(new.asked) == 1
