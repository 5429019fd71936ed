"""The loop around a reconciler, against the in-memory API served over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from matrixinfer.kube import metrics
from matrixinfer.kube.apply import Failure
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import PODS_SLIM, PodView
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.manager import Manager
from matrixinfer.kube.plan import Create, Delete, Note, Plan, WriteStatus
from matrixinfer.kube.queue import Backoff
from matrixinfer.kube.resource import CONFIG_MAPS, EVENTS, PODS, Key, Manifest, owner_reference
from matrixinfer.kube.sources import owned_by
from matrixinfer.kube.store import Store
from matrixinfer.kube.transport import Credentials, Transport
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.memory import MemoryApi

NS = "default"


@dataclass(frozen=True)
class Seen:
    """A ConfigMap that stands for a replicated thing: `data.replicas` says how many pods it wants."""

    config: Manifest
    pods: tuple[PodView, ...]


class Replicas:
    """Names pods by number in a counter, not by ordinal, so that a stale cache would make duplicates visible."""

    def __init__(self, configs: Store[Manifest], pods: Store[PodView]) -> None:
        self.configs = configs
        self.pods = pods
        self.made = 0
        self.passes: list[str] = []

    def observe(self, key: Key) -> Seen | None:
        config = self.configs.get(key)
        if config is None:
            return None
        uid: Any = config["metadata"]["uid"]  # type: ignore[index, call-overload]
        return Seen(config, tuple(self.pods.by_index("owner", uid)))

    def plan(self, seen: Seen, now: datetime) -> Plan:
        config: Any = seen.config
        name, uid, data = config["metadata"]["name"], config["metadata"]["uid"], config["data"]
        self.passes.append(name)
        if data.get("raise"):
            raise RuntimeError("a planner's bug")
        if data.get("bad"):
            return Plan(error="the spec is bad")
        missing = int(data["replicas"]) - len(seen.pods)
        if missing < 0:
            return Plan(why="too many", waves=[[Delete(PODS, p.key, p.uid) for p in seen.pods[missing:]]])
        steps = [Create(PODS, self.pod(name, uid)) for _ in range(missing)]
        notes = [Note("Created", f"{missing} pods were created")] if missing else []
        again = timedelta(seconds=float(data["again"])) if "again" in data else None
        return Plan(why="more pods", waves=[steps], notes=notes, again_after=again)

    def pod(self, owner: str, uid: str) -> dict[str, Any]:
        self.made += 1
        return {
            "metadata": {
                "name": f"{owner}-{self.made}",
                "namespace": NS,
                "ownerReferences": [owner_reference(CONFIG_MAPS, owner, uid)],
            },
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }


def config(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": NS}, "data": {"replicas": "0", **data}}


@dataclass
class Running:
    api: MemoryApi
    replicas: Replicas
    controller: Controller[Seen]
    manager: Manager
    stopping: asyncio.Event

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not claim():
                await asyncio.sleep(0.002)

    async def settled(self) -> None:
        await self.until(lambda: self.controller.idle)


@asynccontextmanager
async def running(api: MemoryApi, **settings: Any) -> AsyncIterator[Running]:
    async with (
        ApiServer(api) as server,
        Client(Transport(Credentials(server.url), user_agent="t")) as client,
    ):
        cache = Cache(client)
        configs = cache.watch(CONFIG_MAPS)
        pods = cache.watch(PODS, project=PODS_SLIM, indexes={"owner": lambda pod: pod.owner_uids})
        replicas = Replicas(configs, pods)
        controller = Controller(
            "replicas",
            configs,
            replicas,
            sources=[owned_by(pods, "ConfigMap")],
            field_manager="t",
            backoff=settings.pop("backoff", Backoff(base_seconds=0.01, cap_seconds=0.02)),
            **settings,
        )
        manager = Manager(client, cache, [controller], component="tester")
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(manager.run(stopping))
            fixture = Running(api, replicas, controller, manager, stopping)
            await fixture.until(lambda: manager.leading)
            yield fixture
            stopping.set()
            async with asyncio.timeout(5):
                await task


async def test_pods_follow_the_object_and_a_steady_one_writes_nothing(api: MemoryApi) -> None:
    async with running(api) as it:
        api.create(CONFIG_MAPS, config("a", replicas="4"))
        await it.until(lambda: len(api.list(PODS)) == 4)
        await it.settled()
        await it.until(lambda: len(api.list(EVENTS, namespace=NS)) == 1)
        writes = api.write_count
        passes = len(it.replicas.passes)
        it.controller.enqueue(Key(NS, "a"))
        await it.until(lambda: len(it.replicas.passes) > passes)
        await it.settled()
        assert api.write_count == writes, "a pass over a settled object costs nothing"
        api.merge_patch(CONFIG_MAPS, Key(NS, "a"), {"data": {"replicas": "1"}})
        await it.until(lambda: len([p for p in api.list(PODS) if "deletionTimestamp" not in p["metadata"]]) == 1)


async def test_a_cache_that_lags_behind_makes_no_duplicate(api: MemoryApi) -> None:
    """The pods were created, their events are held back, the key is woken: nothing more is created."""
    async with running(api, expectation_seconds=5.0) as it:
        api.faults.hold_watches(PODS)
        api.create(CONFIG_MAPS, config("a", replicas="3"))
        await it.until(lambda: len(api.list(PODS)) == 3)
        for number in range(5):
            api.merge_patch(CONFIG_MAPS, Key(NS, "a"), {"metadata": {"annotations": {"touched": str(number)}}})
            await asyncio.sleep(0.01)
        assert len(api.list(PODS)) == 3
        assert it.replicas.made == 3
        api.faults.release_watches(PODS)
        await it.until(lambda: len(it.replicas.passes) >= 2)
        await it.settled()
        assert it.replicas.made == 3


async def test_the_wait_for_own_writes_is_bounded(api: MemoryApi) -> None:
    timeouts = metrics.EXPECTATION_TIMEOUTS.labels("replicas")
    before = timeouts._value.get()
    async with running(api, expectation_seconds=0.05) as it:
        api.faults.hold_watches(PODS)
        api.create(CONFIG_MAPS, config("a", replicas="1"))
        await it.until(lambda: len(api.list(PODS)) == 1)
        api.merge_patch(CONFIG_MAPS, Key(NS, "a"), {"metadata": {"annotations": {"touched": "1"}}})
        await it.until(lambda: timeouts._value.get() > before)
        api.faults.release_watches(PODS)
        await it.settled()


async def test_a_planner_that_raises_stops_only_its_own_key(api: MemoryApi) -> None:
    async with running(api, workers=1) as it:
        api.create(CONFIG_MAPS, config("broken", **{"raise": "1"}))
        api.create(CONFIG_MAPS, config("fine", replicas="1"))
        await it.until(lambda: len(api.list(PODS)) == 1)
        await it.until(lambda: it.replicas.passes.count("broken") >= 2)
        api.merge_patch(CONFIG_MAPS, Key(NS, "broken"), {"data": {"raise": None, "replicas": "1"}})
        await it.until(lambda: len(api.list(PODS)) == 2)


async def test_a_terminal_plan_is_not_retried_until_the_object_changes(api: MemoryApi) -> None:
    async with running(api) as it:
        api.create(CONFIG_MAPS, config("a", bad="1"))
        await it.until(lambda: bool(it.replicas.passes))
        await it.settled()
        assert it.replicas.passes == ["a"]
        api.merge_patch(CONFIG_MAPS, Key(NS, "a"), {"data": {"bad": None, "replicas": "1"}})
        await it.until(lambda: len(api.list(PODS)) == 1)


@pytest.mark.parametrize("code", [409, 500, 503])
async def test_a_write_that_fails_is_retried_until_it_succeeds(api: MemoryApi, code: int) -> None:
    async with running(api) as it:
        api.faults.fail_next(code, verb="create", resource=PODS, times=2)
        api.create(CONFIG_MAPS, config("a", replicas="2"))
        await it.until(lambda: len(api.list(PODS)) == 2)
        await it.settled()
        assert len(api.list(PODS)) == 2


async def test_a_plan_may_ask_for_another_look(api: MemoryApi) -> None:
    async with running(api) as it:
        api.create(CONFIG_MAPS, config("a", again="0.01"))
        await it.until(lambda: len(it.replicas.passes) >= 4)


async def test_a_deleted_object_is_forgotten(api: MemoryApi) -> None:
    async with running(api) as it:
        api.create(CONFIG_MAPS, config("a", again="0.01"))
        await it.until(lambda: len(it.replicas.passes) >= 2)
        api.delete(CONFIG_MAPS, Key(NS, "a"))
        await it.settled()


async def test_failures_are_explained_in_the_status(api: MemoryApi) -> None:
    told: list[Sequence[Failure]] = []

    def explain(seen: Seen, plan: Plan, failures: Sequence[Failure], now: datetime) -> Sequence[WriteStatus]:
        told.append(failures)
        return ()

    async with running(api, explain=explain) as it:
        api.faults.fail_next(500, verb="create", resource=PODS, times=1)
        api.create(CONFIG_MAPS, config("a", replicas="1"))
        await it.until(lambda: len(api.list(PODS)) == 1)
    assert len(told) == 1
    assert "create Pod default/a-1 failed" in str(told[0][0])


async def test_stopping_finishes_the_pass_under_way(api: MemoryApi) -> None:
    async with running(api) as it:
        api.create(CONFIG_MAPS, config("a", replicas="64"))
        await it.until(lambda: len(api.list(PODS)) >= 1)
    assert len(api.list(PODS)) == 64, "the wave was carried out to its end"
