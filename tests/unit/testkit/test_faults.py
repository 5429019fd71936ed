"""Faults hit exactly the writes and deliveries that a test names."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from matrixinfer.kube.resource import CONFIG_MAPS, PODS, Key
from matrixinfer.testkit import builders
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.memory import ConnectionCut, MemoryApi, StatusError

KEY = Key("default", "a")


def config_map(name: str = "a", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as started:
        yield started


def test_a_planned_refusal_hits_the_named_write_once() -> None:
    api = MemoryApi()
    api.faults.fail_next(429, verb="create", resource=CONFIG_MAPS, retry_after_seconds=7)
    api.create(PODS, builders.pod("p"))
    with pytest.raises(StatusError) as refused:
        api.create(CONFIG_MAPS, config_map())
    assert (refused.value.code, refused.value.retry_after_seconds) == (429, 7)
    api.create(CONFIG_MAPS, config_map())
    assert [(write.code, write.changed) for write in api.writes] == [(201, True), (429, False), (201, True)]


def test_a_refusal_after_the_effect_hides_that_it_happened() -> None:
    api = MemoryApi()
    api.faults.fail_next(500, after_effect=True)
    with pytest.raises(StatusError):
        api.create(CONFIG_MAPS, config_map())
    assert api.find(CONFIG_MAPS, KEY) is not None


@pytest.mark.parametrize(("after_effect", "exists"), [(False, False), (True, True)])
def test_a_kill_cuts_the_connection_at_its_write(after_effect: bool, exists: bool) -> None:
    api = MemoryApi()
    api.faults.kill_at_write(2, after_effect=after_effect)
    api.create(PODS, builders.pod("p"))
    with pytest.raises(ConnectionCut):
        api.create(CONFIG_MAPS, config_map())
    assert (api.find(CONFIG_MAPS, KEY) is not None) is exists


def test_random_refusals_are_repeatable() -> None:
    def codes(seed: int) -> list[int]:
        api = MemoryApi()
        api.faults.fail_randomly(Random(seed), rate=0.5)
        for number in range(30):
            try:
                api.create(CONFIG_MAPS, config_map(f"c-{number}"))
            except StatusError:
                continue
        return [write.code for write in api.writes]

    assert codes(1) == codes(1) != codes(2)
    assert {409, 429, 500} <= set(codes(1))


def test_the_cluster_itself_is_never_hit() -> None:
    api = MemoryApi()
    api.create(PODS, builders.pod("p"))
    api.faults.fail_randomly(Random(1), rate=1.0)
    api.bind(Key("default", "p"), "node-0")
    assert api.write_count == 1


async def _event(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(5):
        line: dict[str, Any] = json.loads(await stream.content.readline())
    return line


async def test_a_held_kind_lags_behind_another(server: ApiServer) -> None:
    api = server.api
    async with aiohttp.ClientSession() as session:
        maps = await session.get(f"{server.url}/api/v1/configmaps", params={"watch": "1"})
        pods = await session.get(f"{server.url}/api/v1/pods", params={"watch": "1"})
        api.faults.hold_watches(CONFIG_MAPS)
        api.create(CONFIG_MAPS, config_map())
        api.create(PODS, builders.pod("p"))
        assert (await _event(pods))["type"] == "ADDED"
        late = asyncio.ensure_future(_event(maps))
        await asyncio.sleep(0)
        assert not late.done()
        api.faults.release_watches(CONFIG_MAPS)
        assert (await late)["object"]["metadata"]["name"] == "a"


async def test_events_come_twice_when_told_to(server: ApiServer) -> None:
    server.api.faults.duplicate_events(PODS)
    async with aiohttp.ClientSession() as session:
        stream = await session.get(f"{server.url}/api/v1/pods", params={"watch": "1"})
        server.api.create(PODS, builders.pod("p"))
        assert await _event(stream) == await _event(stream)


async def test_a_dropped_watch_is_a_broken_connection(server: ApiServer) -> None:
    async with aiohttp.ClientSession() as session:
        stream = await session.get(f"{server.url}/api/v1/pods", params={"watch": "1"})
        server.api.faults.drop_watches(PODS)
        with pytest.raises(aiohttp.ClientError):
            await _event_or_end(stream)


async def _event_or_end(stream: aiohttp.ClientResponse) -> bytes:
    async with asyncio.timeout(5):
        return await stream.content.read()


async def test_a_bookmark_carries_the_newest_version(server: ApiServer) -> None:
    async with aiohttp.ClientSession() as session:
        params = {"watch": "1", "allowWatchBookmarks": "true"}
        stream = await session.get(f"{server.url}/api/v1/pods", params=params)
        server.api.create(CONFIG_MAPS, config_map())
        server.bookmark()
        mark = await _event(stream)
    assert mark["type"] == "BOOKMARK"
    assert mark["object"]["metadata"]["resourceVersion"] == str(server.api.resource_version)


async def test_a_cut_write_reaches_the_client_as_a_lost_connection(server: ApiServer) -> None:
    server.api.faults.kill_at_write(1, after_effect=True)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{server.url}/api/v1/namespaces/default/configmaps", json=config_map())
    assert server.api.find(CONFIG_MAPS, KEY) is not None


async def test_a_frozen_server_answers_when_thawed(server: ApiServer) -> None:
    server.freeze()
    async with aiohttp.ClientSession() as session:
        waiting = asyncio.ensure_future(session.get(f"{server.url}/readyz"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        server.thaw()
        assert (await waiting).status == 200


async def test_a_restarted_server_keeps_port_and_state(server: ApiServer) -> None:
    server.api.create(CONFIG_MAPS, config_map())
    url = server.url
    await server.stop()
    await server.start()
    assert server.url == url
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/v1/configmaps") as listed:
        assert len((await listed.json())["items"]) == 1


async def test_a_token_is_asked_for(tmp_path: Path) -> None:
    async with ApiServer(token="t") as server, aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/api/v1/pods") as refused:
            assert refused.status == 401
        async with session.get(f"{server.url}/api/v1/pods", headers={"Authorization": "Bearer t"}) as allowed:
            assert allowed.status == 200
        assert (
            '"t"' in server.write_kubeconfig(tmp_path / "k").read_text() or "token: t" in (tmp_path / "k").read_text()
        )
