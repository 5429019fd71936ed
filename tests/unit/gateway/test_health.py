"""Endpoints that fail are left out and come back: on real sockets, and over all workers."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY
from tests.unit.gateway.rig import OK, Asked, Behaviour, Rig, answer_ok, answering, post

from matrixinfer.gateway.comparing import Comparison
from matrixinfer.gateway.core.breaker import BreakerPolicy, Cause
from matrixinfer.gateway.core.outliers import OutlierPolicy
from matrixinfer.gateway.core.types import Endpoint, Server, Snapshot, TrafficPolicy
from matrixinfer.gateway.health import Health, HealthBoard
from matrixinfer.service.clock import monotonic

POLICY = BreakerPolicy(failures=3, base_seconds=10, most_seconds=60, most_percent=50)
NO_POLICY = TrafficPolicy()
ENDPOINTS = tuple(Endpoint(i, f"pod-{i}", f"uid-{i}", f"127.8.0.{i}", 80) for i in range(4))
PODS = {endpoint.slot: endpoint.uid for endpoint in ENDPOINTS}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-5
        return self.now


@pytest.fixture
def fd() -> Iterator[int]:
    made = HealthBoard.create(2, 8)
    yield made
    os.close(made)


def workers(fd: int, clock: Clock) -> list[Health]:
    """Two workers, each with a mapping of its own."""
    made = []
    for index in range(2):
        board = HealthBoard(fd, 2, 8)
        made.append(Health(board, board.row(index), POLICY, clock))
        made[-1].install(ENDPOINTS)
    return made


# -- what workers share -------------------------------------------------------------------------------------------


def test_what_one_worker_learnt_is_true_for_all_at_once(fd: int) -> None:
    one, two = workers(fd, Clock())
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == frozenset()
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == {"uid-0"}


def test_failures_that_several_workers_saw_make_one_row(fd: int) -> None:
    one, two = workers(fd, Clock())
    assert [health.failed(ENDPOINTS[0], NO_POLICY) for health in (one, two, one)] == [False, False, True]


def test_an_answer_to_another_worker_ends_the_row(fd: int) -> None:
    one, two = workers(fd, Clock())
    one.failed(ENDPOINTS[0], NO_POLICY)
    one.failed(ENDPOINTS[0], NO_POLICY)
    two.answers(ENDPOINTS[0], 200, NO_POLICY)
    assert not one.failed(ENDPOINTS[0], NO_POLICY)
    assert not one.failed(ENDPOINTS[0], NO_POLICY)
    assert one.failed(ENDPOINTS[0], NO_POLICY)


def test_one_request_of_all_workers_proves_an_endpoint(fd: int) -> None:
    clock = Clock()
    one, two = workers(fd, clock)
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == frozenset()
    tried_at = two.sent(ENDPOINTS[0])
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == {"uid-0"}
    two.answers(ENDPOINTS[0], 200, NO_POLICY, tried_at)
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == frozenset()


def test_a_failure_on_trial_takes_it_out_for_twice_as_long(fd: int) -> None:
    clock = Clock()
    one, two = workers(fd, clock)
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    assert two.left_out(PODS, NO_POLICY) == frozenset()
    assert two.failed(ENDPOINTS[0], NO_POLICY, two.sent(ENDPOINTS[0]))
    clock.now += 19
    assert one.left_out(PODS, NO_POLICY) == {"uid-0"}
    clock.now += 2
    assert one.left_out(PODS, NO_POLICY) == frozenset()


@pytest.mark.parametrize("status", [500, 504])
def test_an_error_on_trial_takes_it_out_for_twice_as_long(fd: int, status: int) -> None:
    clock = Clock()
    one, two = workers(fd, clock)
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    assert two.left_out(PODS, NO_POLICY) == frozenset()
    tried_at = two.sent(ENDPOINTS[0])
    two.answers(ENDPOINTS[0], status, NO_POLICY, tried_at)
    two.over(ENDPOINTS[0], tried_at)
    clock.now += 19
    assert one.left_out(PODS, NO_POLICY) == {"uid-0"}
    clock.now += 2
    assert one.left_out(PODS, NO_POLICY) == frozenset()
    # Where another request has proved it meanwhile, an error is none of its own.
    first, second = one.sent(ENDPOINTS[0]), one.sent(ENDPOINTS[0])
    one.answers(ENDPOINTS[0], 200, NO_POLICY, first)
    for _ in range(3):
        one.answers(ENDPOINTS[0], status, NO_POLICY, second)
    assert one.left_out(PODS, NO_POLICY) == frozenset()


def test_a_trial_whose_client_left_proves_nothing_and_blocks_nobody(fd: int) -> None:
    clock = Clock()
    one, two = workers(fd, clock)
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    one.left_out(PODS, NO_POLICY)
    tried_at = one.sent(ENDPOINTS[0])
    assert two.left_out(PODS, NO_POLICY) == {"uid-0"}
    one.over(ENDPOINTS[0], tried_at)
    assert two.left_out(PODS, NO_POLICY) == frozenset()


@pytest.mark.parametrize("status", [200, 500, 503, None])
def test_a_request_sent_before_the_ejection_decides_no_trial(fd: int, status: int | None) -> None:
    """Its answer, an error, a refusal, silence or a client that left: each says how the endpoint was."""
    clock = Clock()
    one, two = workers(fd, clock)
    early = one.sent(ENDPOINTS[0])
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    assert one.left_out(PODS, NO_POLICY) == frozenset()
    tried_at = one.sent(ENDPOINTS[0])
    if status is None:
        assert not one.failed(ENDPOINTS[0], NO_POLICY, early)
    else:
        one.answers(ENDPOINTS[0], status, NO_POLICY, early)
    one.over(ENDPOINTS[0], early)
    # The trial goes on, and it alone decides.
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == {"uid-0"}
    one.answers(ENDPOINTS[0], 200, NO_POLICY, tried_at)
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == frozenset()


def test_an_early_answer_is_no_proof_before_the_trial_begins(fd: int) -> None:
    clock = Clock()
    one, two = workers(fd, clock)
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    two.answers(ENDPOINTS[0], 200, NO_POLICY)
    assert one.left_out(PODS, NO_POLICY) == frozenset()
    one.sent(ENDPOINTS[0])
    assert two.left_out(PODS, NO_POLICY) == {"uid-0"}


def test_of_several_trials_that_one_which_is_answered_counts(fd: int) -> None:
    """A server's only endpoint takes every request, so more than one may be under way when its time is over."""
    clock = Clock()
    one, _ = workers(fd, clock)
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    clock.now += 10
    only = {0: "uid-0"}
    assert one.left_out(only, NO_POLICY) == frozenset()
    first, second = one.sent(ENDPOINTS[0]), one.sent(ENDPOINTS[0])
    one.answers(ENDPOINTS[0], 200, NO_POLICY, first)
    assert not one.failed(ENDPOINTS[0], NO_POLICY, second)
    assert one.left_out(PODS, NO_POLICY) == frozenset()


def test_a_new_pod_in_an_old_slot_is_innocent(fd: int) -> None:
    one, two = workers(fd, Clock())
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    successor = Endpoint(0, "pod-9", "uid-9", "127.8.0.9", 80)
    for health in (one, two):
        health.install(ENDPOINTS[1:])
        health.install((successor, *ENDPOINTS[1:]))
    assert two.left_out({**PODS, 0: "uid-9"}, NO_POLICY) == frozenset()
    assert HealthBoard(fd, 2, 8).tally(0).answers == 0


def test_what_a_dead_worker_believed_is_forgotten(fd: int) -> None:
    one, two = workers(fd, Clock())
    for _ in range(3):
        one.failed(ENDPOINTS[0], NO_POLICY)
    HealthBoard(fd, 2, 8).clear(0)
    assert two.left_out(PODS, NO_POLICY) == frozenset()


def test_a_server_has_its_own_word(fd: int) -> None:
    one, _ = workers(fd, Clock())
    assert one.failed(ENDPOINTS[0], TrafficPolicy(eject_failures=1))
    assert one.failed(ENDPOINTS[1], TrafficPolicy(eject_failures=1))
    assert one.failed(ENDPOINTS[2], TrafficPolicy(eject_failures=1))
    assert len(one.left_out(PODS, NO_POLICY)) == 2
    assert len(one.left_out(PODS, TrafficPolicy(eject_most_percent=100))) == 3
    assert one.left_out(PODS, TrafficPolicy(eject_most_percent=0)) == frozenset()


# -- what the supervisor compares ---------------------------------------------------------------------------------


def test_the_supervisor_leaves_out_who_is_far_worse_and_says_so(fd: int) -> None:
    clock = Clock()
    one, two = workers(fd, clock)
    comparison = Comparison(HealthBoard(fd, 2, 8), POLICY, OutlierPolicy(), clock)
    snapshot = Snapshot(1, (Server("ns", "s", None, "vLLM", ENDPOINTS),))
    before = REGISTRY.get_sample_value("matrixinfer_gateway_ejections_total", {"cause": "errors"}) or 0
    comparison.follow(snapshot)
    comparison.look(snapshot)
    for health in (one, two):
        for endpoint in ENDPOINTS:
            for _ in range(10):
                health.answers(endpoint, 500 if endpoint is ENDPOINTS[1] else 200, NO_POLICY)
                health.first_token(endpoint, 3.0 if endpoint is ENDPOINTS[2] else 0.3)
    comparison.look(snapshot)
    assert one.left_out(PODS, NO_POLICY) == two.left_out(PODS, NO_POLICY) == {"uid-1", "uid-2"}
    causes = [ejection.cause for i in (1, 2) if (ejection := HealthBoard(fd, 2, 8).ejection(i))]
    assert causes == [Cause.ERRORS, Cause.LATENCY]
    comparison.look(snapshot)
    assert REGISTRY.get_sample_value("matrixinfer_gateway_ejections_total", {"cause": "errors"}) == before + 1
    assert REGISTRY.get_sample_value("matrixinfer_gateway_endpoints_left_out", {"cause": "latency"}) == 1


def test_a_new_pod_is_clean_before_the_workers_hear_of_it(fd: int) -> None:
    """The supervisor's own word on the pod that had the slot before goes with that pod."""
    clock = Clock()
    one, _ = workers(fd, clock)
    board = HealthBoard(fd, 2, 8)
    comparison = Comparison(board, POLICY, OutlierPolicy(), clock)
    comparison.follow(Snapshot(1, (Server("ns", "s", None, "vLLM", ENDPOINTS),)))
    board.own_row().eject(0, POLICY, Cause.LATENCY, clock())
    assert one.left_out(PODS, NO_POLICY) == {"uid-0"}
    successor = Endpoint(0, "pod-9", "uid-9", "127.8.0.9", 80)
    comparison.follow(Snapshot(2, (Server("ns", "s", None, "vLLM", (successor, *ENDPOINTS[1:])),)))
    one.install((successor, *ENDPOINTS[1:]))
    assert one.left_out({**PODS, 0: "uid-9"}, NO_POLICY) == frozenset()


# -- on real sockets ----------------------------------------------------------------------------------------------


async def reset(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def head_and_reset(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    await writer.drain()
    writer.close()


def quick(rig: Rig, **policy: float) -> None:
    rig.defaults = replace(rig.defaults, breaker=replace(BreakerPolicy(failures=3, base_seconds=60), **policy))


@pytest.mark.parametrize("behave", [reset, answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"), None])
async def test_an_endpoint_that_fails_is_left_out_after_so_many(rig: Rig, behave: Behaviour | None) -> None:
    bad = await rig.engine(behave or answer_ok, listening=behave is not None)
    for _ in range(3):
        await rig.engine()
    quick(rig)
    await rig.start()
    for _ in range(40):
        assert (await rig.ask()).status == 200
    assert len(bad.asked) <= 3
    assert sum(record.retries for record in rig.records) == 3
    assert rig.records[-1].decision is not None
    assert rig.records[-1].decision.removed == {"healthy": 1}


async def test_an_endpoint_that_recovers_comes_back_by_one_request(rig: Rig) -> None:
    answering_again = asyncio.Event()
    asked = 0

    async def slowly(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await answering_again.wait()
        writer.write(OK)

    bad, good = await rig.engine(reset), await rig.engine()
    quick(rig, base_seconds=0.05)
    await rig.start()
    rig.load(1)
    while not any(record.retries for record in rig.records[-1:]) or len(bad.asked) < 3:
        assert (await rig.ask()).status == 200
    bad.behave = slowly
    await asyncio.sleep(0.06)
    waiting = rig.tasks.create_task(rig.ask())
    await rig.until(lambda: asked)
    # It is idle beside a busy one, and still nobody else is sent there.
    assert [(await rig.ask()).status for _ in range(5)] == [200] * 5
    assert asked == 1
    answering_again.set()
    assert (await waiting).status == 200
    before = len(bad.asked)
    assert [(await rig.ask()).status for _ in range(5)] == [200] * 5
    assert len(bad.asked) == before + 5
    assert good.asked


async def test_a_trial_that_ends_without_a_word_blocks_nobody(rig: Rig) -> None:
    """It got a head and no body: that proves nothing, and the next one may."""
    bad, _ = await rig.engine(reset), await rig.engine()
    quick(rig, base_seconds=0.05)
    await rig.start()
    rig.load(1)
    while len(bad.asked) < 3:
        assert (await rig.ask()).status == 200
    bad.behave = head_and_reset
    ejection = rig.health.ejection(0)
    assert ejection is not None
    await rig.until(lambda: monotonic() > ejection.until)
    assert not (await rig.ask()).complete
    bad.behave = answer_ok
    assert (await rig.ask()).status == 200
    assert rig.records[-1].pod == "pod-0"


async def test_an_endpoint_that_has_only_errors_on_trial_is_left_out_longer_each_time(rig: Rig) -> None:
    """Else it would be on trial for ever, and give an error to one client after the other."""
    bad, _ = await rig.engine(reset), await rig.engine()
    quick(rig, base_seconds=0.05)
    await rig.start()
    rig.load(1)
    while len(bad.asked) < 3:
        assert (await rig.ask()).status == 200
    bad.behave = answering(b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno")
    ejection = rig.health.ejection(0)
    assert ejection is not None
    await rig.until(lambda: monotonic() > ejection.until)
    assert (await rig.ask()).status == 500
    again = rig.health.ejection(0)
    assert again is not None
    assert (again.times, again.cause) == (2, Cause.ERRORS)


async def test_beat_39_a_dead_pod_costs_no_request_and_is_soon_left_alone(rig: Rig) -> None:
    """It has nothing in flight, so by its load alone it would be everybody's first choice."""
    dead = await rig.engine()
    for _ in range(3):
        await rig.engine()
    await rig.start()
    assert (await rig.ask()).status == 200
    dead.stop()
    answers = [rig.tasks.create_task(rig.ask()) for _ in range(200)]
    assert {(await answer).status for answer in answers} == {200}
    failed = [failure for record in rig.records for failure in record.failures if failure.startswith("pod-0")]
    answers = [rig.tasks.create_task(rig.ask()) for _ in range(50)]
    assert {(await answer).status for answer in answers} == {200}
    assert [failure for record in rig.records for failure in record.failures if failure.startswith("pod-0")] == failed


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_what_speaks_of_the_request_takes_no_endpoint_out(rig: Rig, status: int) -> None:
    engines = [await rig.engine(answering(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)) for _ in range(2)]
    quick(rig)
    await rig.start()
    for _ in range(30):
        assert (await rig.ask(post())).status == status
    assert all(record.decision is not None and not record.decision.removed for record in rig.records)
    assert sum(len(engine.asked) for engine in engines) == 30


async def test_a_single_endpoint_is_never_left_out(rig: Rig) -> None:
    engine = await rig.engine(reset)
    quick(rig)
    await rig.start()
    for _ in range(10):
        assert (await rig.ask()).status == 503
    engine.behave = answer_ok
    assert (await rig.ask()).status == 200
