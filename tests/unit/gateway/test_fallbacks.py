"""Weights that know who can serve, fallbacks in order, and deadlines in every phase: known weaknesses, by name."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from tests.unit.gateway.rig import Asked, Rig, StubEngine, answering, not_accepting, post

from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target, TrafficPolicy
from matrixinfer.gateway.wire.pool import PoolLimits


async def silence(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def one_piece_then_silence(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await asyncio.Event().wait()


def route(rig: Rig, servers: list[list[StubEngine]], weights: list[int], fallbacks: tuple[int, ...] = ()) -> None:
    """One route over several servers; `fallbacks` are positions of servers too."""
    rig.revision += 1
    built = tuple(
        Server(
            "ns",
            f"s{i}",
            None,
            "vLLM",
            tuple(
                Endpoint(rig.engines.index(e), f"pod-{e.address}", f"uid-{e.address}", e.address, e.port)
                for e in engines
            ),
        )
        for i, engines in enumerate(servers)
    )
    rule = Rule(
        "",
        None,
        tuple(Target(f"s{i}", weight, i) for i, weight in enumerate(weights)),
        tuple(Target(f"s{i}", 0, i) for i in fallbacks),
    )
    rig.handler.install(Snapshot(rig.revision, built, (Route("ns", "r", "m", (), (rule,)),)))


async def test_beat_31_weights_that_are_all_zero_cost_no_crash(rig: Rig) -> None:
    one, two = await rig.engine(), await rig.engine()
    await rig.start()
    route(rig, [[one], [two]], [0, 0])
    answer = await rig.ask()
    assert (answer.status, answer.error["code"], answer.headers[b"retry-after"]) == (503, "no_endpoints", b"5")
    route(rig, [[one], [two]], [0, 0], fallbacks=(1,))
    assert (await rig.ask()).status == 200
    assert (len(one.asked), len(two.asked)) == (0, 1)


@pytest.mark.parametrize("targets", [(), (Target("missing", 100, None),)])
async def test_beat_31_targets_that_do_not_exist_cost_no_crash(rig: Rig, targets: tuple[Target, ...]) -> None:
    await rig.start()
    rig.handler.install(Snapshot(9, (), (Route("ns", "r", "m", (), (Rule("", None, targets),)),)))
    assert (await rig.ask()).status == 503


async def test_beat_32_a_target_without_pods_gives_its_share_to_the_others(rig: Rig) -> None:
    one, two = await rig.engine(), await rig.engine()
    await rig.start()
    route(rig, [[], [one], [two]], [100, 1, 3])
    for _ in range(60):
        assert (await rig.ask()).status == 200
    assert 5 <= len(one.asked) <= 28
    assert len(one.asked) + len(two.asked) == 60


async def test_beat_32_fallbacks_take_over_in_their_order(rig: Rig) -> None:
    one, two = await rig.engine(), await rig.engine()
    await rig.start()
    route(rig, [[], [], [one], [two]], [100], fallbacks=(1, 2, 3))
    for _ in range(10):
        assert (await rig.ask()).status == 200
    assert (len(one.asked), len(two.asked)) == (10, 0)


async def test_beat_32_a_target_whose_pods_all_fail_is_left_for_another_within_the_request(rig: Rig) -> None:
    busy = answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
    bad, good = await rig.engine(busy), await rig.engine()
    await rig.start()
    route(rig, [[bad], [good]], [100], fallbacks=(1,))
    for _ in range(5):
        assert (await rig.ask()).status == 200
    assert Counter(record.pod for record in rig.records) == {f"pod-{good.address}": 5}


async def test_beat_18_an_endpoint_that_does_not_accept_costs_the_connect_time_and_another_is_asked(rig: Rig) -> None:
    hanging = await rig.engine(listening=False)
    good = await rig.engine()
    rig.pool_limits = replace(PoolLimits(), connect_seconds=0.1)
    with not_accepting(hanging):
        await rig.start()
        rig.load(1)
        assert (await rig.ask()).status == 200
    assert len(good.asked) == 1
    assert rig.records[-1].failures[0].endswith("connect no connection within 0.1 s")


async def test_a_pod_that_goes_while_it_is_being_connected_to_is_left_for_another_at_once(rig: Rig) -> None:
    hanging = await rig.engine(listening=False)
    await rig.engine()
    rig.pool_limits = replace(PoolLimits(), connect_seconds=60)
    with not_accepting(hanging):
        await rig.start()
        rig.load(1)
        asking = rig.tasks.create_task(rig.ask())
        await rig.until(lambda: rig.in_flight()[0])
        rig.publish(without=(hanging,), gone=("uid-0",))
        assert (await asking).status == 200
    assert rig.records[-1].failures == ["pod-0: endpoint_gone the pod is gone"]


async def test_a_pod_that_goes_between_the_decision_and_the_sending_is_left_for_another_at_once(rig: Rig) -> None:
    dying, other = await rig.engine(silence), await rig.engine()
    rig.policy = TrafficPolicy(max_in_flight_per_endpoint=1)
    rig.defaults = replace(rig.defaults, queue=QueueLimits(busy_seconds=60, empty_seconds=60))
    await rig.start()
    first_has_room, other_has_room = rig.load(0), rig.load(1)
    asking = rig.tasks.create_task(rig.ask())
    await rig.until(lambda: rig.handler.waiting)
    first_has_room()
    # Given its place by the first of two tables, it has not come to run when the second one is there.
    rig.publish()
    assert rig.in_flight()[0] == 1
    other_has_room()
    rig.publish(without=(dying,), gone=("uid-0",))
    assert (await asking).status == 200
    assert len(other.asked) == 1


async def test_the_time_that_a_client_gives_bounds_a_connect(rig: Rig) -> None:
    hanging = await rig.engine(listening=False)
    rig.pool_limits = replace(PoolLimits(), connect_seconds=60)
    with not_accepting(hanging):
        await rig.start()
        answer = await rig.ask(post(x_request_timeout="0.05"))
    assert (answer.status, answer.error["code"]) == (504, "total_timeout")


@pytest.mark.parametrize(
    ("behave", "policy", "status", "outcome"),
    [
        (silence, TrafficPolicy(first_byte_seconds=0.05), 504, "first_byte_timeout"),
        (silence, TrafficPolicy(total_seconds=0.05), 504, "total_timeout"),
        (one_piece_then_silence, TrafficPolicy(idle_seconds=0.05), 200, "idle_timeout"),
        (one_piece_then_silence, TrafficPolicy(total_seconds=0.05), 200, "total_timeout"),
    ],
)
async def test_beat_18_no_phase_of_a_request_is_without_a_deadline(
    rig: Rig, behave: object, policy: TrafficPolicy, status: int, outcome: str
) -> None:
    engine = await rig.engine(behave)  # type: ignore[arg-type]
    rig.policy = policy
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.complete) == (status, status == 504)
    await engine.lost.wait()
    assert (await rig.record()).outcome == outcome
