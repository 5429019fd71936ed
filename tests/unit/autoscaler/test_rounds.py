"""Rounds: each binding on its own, missing numbers kept apart from zeros, and the key woken when decided."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from matrixinfer.autoscaler.app import is_wake_up
from matrixinfer.autoscaler.collect.scrape import Failure, ScrapeFailed
from matrixinfer.autoscaler.endpoints import Endpoint
from matrixinfer.autoscaler.rounds import Memory, Rounds
from matrixinfer.engines.exposition import MetricReader, Reading
from matrixinfer.kube.resource import Key

KEY = Key("ns", "b")


class Pods:
    """Pods that answer with what is in `bodies`, by address; an exception is raised, None never answers."""

    def __init__(self, **bodies: Any) -> None:
        self.bodies = {name.replace("_", "."): body for name, body in bodies.items()}

    async def scrape(self, endpoints: Sequence[Endpoint], reader: MetricReader) -> Reading:
        body = self.bodies.get(f"ip{endpoints[0].host}")
        if body is None:
            await asyncio.Event().wait()
        if isinstance(body, Exception):
            raise body
        return reader.read(body)


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def waiting(count: int) -> bytes:
    return b"vllm:num_requests_running 1\nvllm:num_requests_waiting %d\n" % count


class Bench:
    """Rounds over a world, without a clock that runs."""

    def __init__(self, world: Any, pods: Pods, now: datetime, *, period: float = 15) -> None:
        self.memory, self.woken, self.clock, self.pods = Memory(), list[Key](), Clock(now), pods
        self.rounds = Rounds(
            world.stores,
            pods,
            self.memory,
            self.woken.append,
            period_seconds=period,
            now=self.clock,
            monotonic=lambda: 0.0,
        )

    async def round(self) -> Any:
        await self.rounds.round()
        self.clock.now += timedelta(seconds=15)
        verdict = self.memory.latest(KEY, "b-uid")
        return None if verdict is None else verdict.decision


async def test_a_round_measures_decides_and_wakes(world: Any, now: datetime) -> None:
    world.policy()
    world.binding()
    world.infer(1)
    world.pod("a", "10.0.0.1")
    bench = Bench(world, Pods(ip10_0_0_1=waiting(6)), now)
    decision = await bench.round()
    assert decision.replicas == 3
    assert decision.sentence == "1 → 3: matrixinfer:num_requests_waiting is 6 per pod (1 pod) with a target of 2"
    assert bench.woken == [KEY]
    assert list(bench.memory.sentences()) == ["ns/b"]


async def test_sharing_by_cost_between_one_target_is_scaling_it(world: Any, now: datetime) -> None:
    param = {"target": {"targetRef": {"name": "m"}}, "minReplicas": 1, "maxReplicas": 2, "cost": 5}
    world.policy()
    world.binding(spec={"policyRef": {"name": "p"}, "optimizerConfiguration": {"params": [param]}})
    world.infer(1)
    world.pod("a", "10.0.0.1")
    assert (await Bench(world, Pods(ip10_0_0_1=waiting(6)), now).round()).replicas == 2


async def test_a_failed_scrape_is_missing_and_never_zero(world: Any, now: datetime) -> None:
    world.policy()
    world.binding()
    world.infer(2)
    world.pod("a", "10.0.0.1")
    world.pod("b", "10.0.0.2")
    refused = ScrapeFailed(Failure.REFUSED, "nobody listens")
    bench = Bench(world, Pods(ip10_0_0_1=waiting(0), ip10_0_0_2=refused), now)
    decisions = [await bench.round() for _ in range(22)]
    assert min(decision.replicas for decision in decisions) == 1, "the idle one may go, the silent one counts as full"
    (vote,) = decisions[0].votes
    assert (vote.signal.pods, vote.signal.missing) == (1, 1)


async def test_a_pod_that_hangs_costs_its_own_binding_one_round_and_no_other(world: Any, now: datetime) -> None:
    world.policy()
    world.binding()
    world.infer(1)
    world.pod("a", "10.0.0.1")
    bench = Bench(world, Pods(ip10_0_0_1=None), now, period=0.02)
    assert await bench.round() is None
    assert bench.woken == []


async def test_a_defect_of_one_binding_is_its_own(world: Any, now: datetime) -> None:
    world.policy()
    world.binding()
    world.infer(1)
    world.pod("a", "10.0.0.1")
    bench = Bench(world, Pods(ip10_0_0_1=ZeroDivisionError("a defect")), now)
    assert await bench.round() is None
    bench.pods.bodies["ip10.0.0.1"] = waiting(6)
    assert (await bench.round()).replicas == 3


async def test_what_cannot_be_decided_is_left_to_the_plan(world: Any, now: datetime) -> None:
    world.binding()
    bench = Bench(world, Pods(), now)
    assert await bench.round() is None
    assert bench.woken == []


async def test_a_metric_from_prometheus_counts_as_unknown(world: Any, now: datetime) -> None:
    prometheus = {"serverURL": "http://prometheus", "query": "sum(x)"}
    metrics = [
        {"metricName": "matrixinfer:num_requests_waiting", "targetValue": 2},
        {"metricName": "x", "targetValue": 1, "source": "Prometheus", "prometheus": prometheus},
    ]
    world.policy(metrics=metrics)
    world.binding()
    world.infer(3)
    for number in (1, 2, 3):
        world.pod(f"p{number}", f"10.0.0.{number}")
    bench = Bench(world, Pods(**{f"ip10_0_0_{n}": waiting(0) for n in (1, 2, 3)}), now)
    for _ in range(30):
        decision = await bench.round()
    assert decision.replicas == 3
    assert "x is unknown" in decision.sentence


async def test_a_stopped_target_wakes_on_the_gateways_annotation(world: Any, now: datetime) -> None:
    world.policy()
    world.binding(least=0)
    world.infer(0)
    bench = Bench(world, Pods(), now)
    assert (await bench.round()).replicas == 0
    for nonsense in ("soon", "2026-01-01T12:00:00"):
        world.infer(0, meta={"annotations": {"networking.matrixinfer.ai/wake-up-at": nonsense}})
        assert (await bench.round()).replicas == 0
    world.infer(0, meta={"annotations": {"networking.matrixinfer.ai/wake-up-at": "2026-01-01T12:00:10Z"}})
    assert (await bench.round()).replicas == 1


async def test_a_binding_that_went_is_forgotten(world: Any, now: datetime) -> None:
    world.policy()
    world.binding()
    world.infer(1)
    bench = Bench(world, Pods(), now)
    await bench.round()
    world.stores.bindings.remove(KEY)
    await bench.round()
    assert bench.memory.latest(KEY, "b-uid") is None
    assert bench.memory.sentences() == {}


def test_only_a_new_wake_up_of_a_stopped_target_calls_for_a_round_at_once(world: Any) -> None:
    calls: list[bool] = []
    world.stores.infers.subscribe(lambda change: calls.append(is_wake_up(change)))
    asked = {"annotations": {"networking.matrixinfer.ai/wake-up-at": "2026-01-01T12:00:10Z"}}
    world.infer(0)
    world.infer(0, meta=asked)
    world.infer(0, meta={**asked, "labels": {"a": "b"}})
    world.infer(1, meta={"annotations": {"networking.matrixinfer.ai/wake-up-at": "2026-01-01T12:00:20Z"}})
    world.stores.infers.remove(Key("ns", "m"))
    assert calls == [False, True, False, False, False]
