"""Order of starting and stopping, leadership of whole processes, crashes that are seen."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.errors import LeaseLost
from matrixinfer.kube.manager import Manager
from matrixinfer.kube.plan import Plan
from matrixinfer.kube.resource import CONFIG_MAPS, LEASES, Key
from matrixinfer.kube.transport import Credentials, Transport
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.memory import MemoryApi

NS = "default"
LEASE = Key(NS, "lease")
FAST = ElectionSettings(
    name="lease",
    namespace=NS,
    identity="pod",
    lease_seconds=5.0,
    renew_deadline_seconds=3.5,
    retry_seconds=0.02,
    request_seconds=1.4,
)


class Looks:
    """A reconciler that only notes what it was asked to look at."""

    def __init__(self) -> None:
        self.keys: list[Key] = []

    def observe(self, key: Key) -> Key | None:
        return key

    def plan(self, seen: Key, now: datetime) -> Plan:
        self.keys.append(seen)
        return Plan()


class Process:
    def __init__(self, client: Client, **settings: Any) -> None:
        self.client = client
        self.cache = Cache(client)
        self.looks = Looks()
        self.controller = Controller("looks", self.cache.watch(CONFIG_MAPS), self.looks, field_manager="t", workers=2)
        self.manager = Manager(client, self.cache, [self.controller], component="t", **settings)
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        await self.manager.run(self.stopping)


@asynccontextmanager
async def server_and_client(api: MemoryApi) -> AsyncIterator[tuple[ApiServer, Client]]:
    async with (
        asyncio.timeout(5),
        ApiServer(api) as server,
        Client(Transport(Credentials(server.url), user_agent="t")) as client,
    ):
        yield server, client


async def until(claim: Callable[[], bool]) -> None:
    while not claim():
        await asyncio.sleep(0.002)


def some_config(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": NS}}


async def test_a_follower_is_ready_and_warm_but_does_no_work(api: MemoryApi) -> None:
    api.create(CONFIG_MAPS, some_config("a"))
    async with server_and_client(api) as (_, client), asyncio.TaskGroup() as group:
        first, second = Process(client, election=FAST), Process(client, election=FAST)
        group.create_task(first.run())
        await until(lambda: first.manager.leading and bool(first.looks.keys))
        group.create_task(second.run())
        await until(lambda: second.manager.ready)
        await asyncio.sleep(0.05)
        assert not second.manager.leading
        assert second.looks.keys == []
        first.stopping.set()
        await until(lambda: second.manager.leading)
        await until(lambda: second.looks.keys == [Key(NS, "a")])
        second.stopping.set()
    assert api.get(LEASES, LEASE)["spec"]["holderIdentity"] == "", "released on a clean exit"


async def test_a_lost_lease_cancels_work_and_is_raised(api: MemoryApi) -> None:
    async with server_and_client(api) as (_, client):
        cancelled = asyncio.Event()

        async def feed() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        process = Process(client, election=FAST, leader_tasks=[feed])
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_outcome(process.run()))
            await until(lambda: process.manager.leading)
            api.merge_patch(LEASES, LEASE, {"spec": {"holderIdentity": "thief"}})
        assert isinstance(task.result(), LeaseLost)
        assert cancelled.is_set()
        assert not process.manager.leading


async def _outcome(run: Any) -> BaseException | None:
    try:
        await run
    # The test wants to see whatever it is.
    except Exception as exc:  # noqa: BLE001
        return exc
    return None


@pytest.mark.parametrize("where", ["leader_tasks", "background"])
async def test_a_part_that_crashes_ends_the_process_with_its_error(api: MemoryApi, where: str) -> None:
    async def crash() -> None:
        raise ZeroDivisionError("a bug")

    async with server_and_client(api) as (_, client):
        process = Process(client, election=FAST, **{where: [crash]})
        assert isinstance(await _outcome(process.run()), ZeroDivisionError)


async def test_workers_start_only_after_the_caches_are_synced(api: MemoryApi) -> None:
    async with server_and_client(api) as (_, client), asyncio.TaskGroup() as group:
        gate, pages = asyncio.Event(), client.pages

        async def late(*args: Any, **more: Any) -> AsyncIterator[Any]:
            await gate.wait()
            async for page in pages(*args, **more):
                yield page

        client.pages = late  # type: ignore[method-assign]  # the one list of this test
        process = Process(client)
        group.create_task(process.run())
        await asyncio.sleep(0.01)
        assert (process.manager.ready, process.manager.leading) == (False, False)
        assert process.cache.unsynced == ["configmaps"]
        gate.set()
        await until(lambda: process.manager.leading)
        assert process.manager.ready
        process.stopping.set()


async def test_stopping_before_the_caches_are_synced_returns(unused_tcp_port: int) -> None:
    async with Client(Transport(Credentials(f"http://127.0.0.1:{unused_tcp_port}"), user_agent="t")) as client:
        process = Process(client, election=FAST)
        async with asyncio.timeout(2), asyncio.TaskGroup() as group:
            group.create_task(process.run())
            await asyncio.sleep(0.02)
            process.stopping.set()


async def test_stopping_a_follower_returns_at_once(api: MemoryApi) -> None:
    async with server_and_client(api) as (_, client), asyncio.TaskGroup() as group:
        first, second = Process(client, election=FAST), Process(client, election=FAST)
        group.create_task(first.run())
        await until(lambda: first.manager.leading)
        task = group.create_task(second.run())
        await until(lambda: second.manager.ready)
        second.stopping.set()
        await task
        first.stopping.set()


async def test_watches_are_declared_before_the_cache_runs(api: MemoryApi) -> None:
    async with server_and_client(api) as (_, client), asyncio.TaskGroup() as group:
        process = Process(client)
        group.create_task(process.run())
        await until(lambda: process.manager.leading)
        with pytest.raises(RuntimeError, match="before"):
            process.cache.watch(LEASES)
        process.stopping.set()
