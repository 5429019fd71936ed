"""A store stays equal to the server through everything a watch can do to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from matrixinfer.kube import metrics
from matrixinfer.kube.codec import MANIFESTS, Projection
from matrixinfer.kube.queue import Backoff
from matrixinfer.kube.reflector import Reflector
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.kube.store import Change, Store

FAST = Backoff(base_seconds=0.005, cap_seconds=0.01)


def pod(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "uid": f"u-{name}", "resourceVersion": str(version)}, **more}


def page(*items: dict[str, Any], version: int, token: str = "") -> dict[str, Any]:
    return {"kind": "PodList", "metadata": {"resourceVersion": str(version), "continue": token}, "items": list(items)}


def line(kind: str, item: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "object": item}) + b"\n"


def bookmark(version: int) -> bytes:
    return line("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


Watch = Callable[[web.StreamResponse], Awaitable[None]]


class Script:
    """Answers lists from `pages` (the last one for ever) and watches from `watches`; then watches stay open."""

    def __init__(self, pages: list[Any], watches: list[Watch]) -> None:
        self.pages = pages
        self.watches = watches
        self.lists: list[dict[str, str]] = []
        self.watched_from: list[str] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists.append(dict(request.query))
            found = self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]
            if isinstance(found, web.Response):
                return found
            return web.Response(body=orjson.dumps(found), content_type="application/json")
        self.watched_from.append(request.query["resourceVersion"])
        response = web.StreamResponse()
        if not self.watches:
            await response.prepare(request)
            await asyncio.sleep(60)
            return response
        watch = self.watches.pop(0)
        if isinstance(watch, web.Response):
            return watch
        await response.prepare(request)
        await watch(response)
        return response


def sends(*lines: bytes, then: str = "stay") -> Watch:
    async def run(response: web.StreamResponse) -> None:
        for one in lines:
            await response.write(one)
        if then == "stay":
            await asyncio.sleep(60)
        if then == "cut":
            assert response._req is not None
            assert response._req.transport is not None
            response._req.transport.abort()

    return run


@asynccontextmanager
async def following(stub: Any, script: Script, **settings: Any) -> AsyncIterator[Store[Any]]:
    stub.answer = script
    store: Store[Any] = Store(PODS, settings.pop("projection", MANIFESTS))
    reflector = Reflector(stub.client, store, backoff=FAST, **settings)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(reflector.run())
        yield store
        task.cancel()


async def until(claim: Callable[[], bool]) -> None:
    while not claim():
        await asyncio.sleep(0.001)


async def test_a_list_is_read_in_pages_and_then_watched_from_its_version(stub: Any) -> None:
    script = Script([page(pod("a", 1), version=9, token="t"), page(pod("b", 2), version=9)], [])
    async with following(stub, script, page_size=1) as store:
        await until(lambda: bool(script.watched_from))
        assert len(store) == 2
        assert [query.get("continue") for query in script.lists] == [None, "t"]
        assert script.watched_from == ["9"]
        assert stub.requests[-1][2]["allowWatchBookmarks"] == "true"


async def test_events_change_the_store(stub: Any) -> None:
    script = Script(
        [page(pod("a", 1), pod("b", 2), version=2)],
        [sends(line("ADDED", pod("c", 3)), line("MODIFIED", pod("a", 4)), line("DELETED", pod("b", 5)))],
    )
    async with following(stub, script) as store:
        await until(lambda: store.high_water == 5)
        assert sorted(key.name for key, _ in store.items()) == ["a", "c"]
        assert store.get(Key("n", "a"))["metadata"]["resourceVersion"] == "4"


async def test_bookmarks_alone_move_the_watch_on(stub: Any) -> None:
    script = Script([page(version=1)], [sends(bookmark(50), bookmark(90), then="end")])
    async with following(stub, script) as store:
        await until(lambda: len(script.watched_from) == 2)
        assert script.watched_from == ["1", "90"]
        assert (store.high_water, len(store), len(script.lists)) == (90, 0, 1)


@pytest.mark.parametrize("how", ["status", "event"])
async def test_410_costs_one_list_whose_difference_is_told(stub: Any, how: str, failure: Any) -> None:
    gone = failure(410, "Expired", "too old resource version")
    first: Any = (
        web.Response(body=orjson.dumps(gone), status=410) if how == "status" else sends(line("ERROR", gone), then="end")
    )
    script = Script([page(pod("a", 1), pod("b", 2), version=2), page(pod("a", 1), pod("c", 8), version=9)], [first])
    changes: list[Change[Any]] = []
    async with following(stub, script) as store:
        store.subscribe(changes.append)
        await until(lambda: len(script.watched_from) == 2)
        assert script.watched_from == ["2", "9"], "never the expired version again"
        assert [(c.key.name, c.new is not None) for c in changes[-2:]] == [("b", False), ("c", True)]
        assert len([c for c in changes if c.key.name == "a"]) == 1, "what did not change is not told again"


async def test_a_watch_cut_in_the_middle_of_an_object_goes_on_where_it_was(stub: Any) -> None:
    whole, torn = line("ADDED", pod("a", 5)), line("ADDED", pod("b", 6))
    script = Script(
        [page(version=1)], [sends(whole, torn[: len(torn) // 2], then="cut"), sends(line("ADDED", pod("b", 6)))]
    )
    async with following(stub, script) as store:
        await until(lambda: len(store) == 2)
        assert script.watched_from == ["1", "5"]
        assert len(script.lists) == 1, "a dropped watch is no reason to list"


async def test_a_silent_watch_is_opened_again(stub: Any) -> None:
    script = Script([page(version=3)], [sends(), sends(line("ADDED", pod("a", 4)))])
    before = metrics.WATCH_RESTARTS.labels("pods", "inactive")._value.get()
    async with following(stub, script, inactivity_seconds=0.03) as store:
        await until(lambda: len(store) == 1)
        assert script.watched_from[:2] == ["3", "3"]
    assert metrics.WATCH_RESTARTS.labels("pods", "inactive")._value.get() > before


async def test_an_event_that_comes_twice_changes_nothing_more(stub: Any) -> None:
    event = line("ADDED", pod("a", 4))
    script = Script([page(version=3)], [sends(event, event, bookmark(9))])
    async with following(stub, script) as store:
        await until(lambda: store.high_water == 9)
        assert len(store) == 1


async def test_a_list_that_fails_is_tried_again(stub: Any, failure: Any) -> None:
    broken = [web.Response(body=orjson.dumps(failure(code, "r")), status=code) for code in (500, 429, 403)]
    script = Script([*broken, page(pod("a", 1), version=2)], [])
    async with following(stub, script) as store:
        await until(lambda: store.synced)
        assert len(script.lists) == 4


async def test_a_continue_token_that_expires_starts_the_list_over(stub: Any, failure: Any) -> None:
    expired = web.Response(body=orjson.dumps(failure(410, "Expired")), status=410)
    script = Script([page(pod("a", 1), version=2, token="t"), expired, page(pod("b", 1), version=7)], [])
    async with following(stub, script) as store:
        await until(lambda: store.synced)
        assert [key.name for key, _ in store.items()] == ["b"]


def _picky(raw: bytes) -> Any:
    if b"poison" in raw:
        raise ValueError("not what I expected")
    return MANIFESTS.decode(raw)


async def test_an_object_that_cannot_be_decoded_stays_as_it_was_and_stops_nothing(stub: Any) -> None:
    script = Script(
        [page(pod("a", 1), pod("b", 2), version=2)],
        [sends(line("MODIFIED", pod("a", 3, spec="poison")), line("ADDED", pod("c", 4)))],
    )
    async with following(stub, script, projection=Projection(_picky, MANIFESTS.identify)) as store:
        await until(lambda: len(store) == 3)
        assert store.get(Key("n", "a"))["metadata"]["resourceVersion"] == "1"


async def test_a_relist_keeps_an_object_that_it_cannot_decode(stub: Any, failure: Any) -> None:
    gone = sends(line("ERROR", failure(410, "Expired")), then="end")
    script = Script([page(pod("a", 1), pod("b", 1), version=2), page(pod("a", 3, spec="poison"), version=4)], [gone])
    async with following(stub, script, projection=Projection(_picky, MANIFESTS.identify)) as store:
        await until(lambda: len(script.watched_from) == 2)
        assert [key.name for key, _ in store.items()] == ["a"]


async def test_an_optional_resource_that_is_not_served_is_empty(stub: Any, failure: Any) -> None:
    script = Script([web.Response(body=orjson.dumps(failure(404, "NotFound")), status=404)], [])
    async with following(stub, script, optional=True) as store:
        await until(lambda: store.synced)
        assert len(store) == 0


async def test_a_watch_that_ends_at_once_is_no_busy_loop(stub: Any) -> None:
    script = Script([page(version=1)], [sends(then="end") for _ in range(1000)])
    async with following(stub, script):
        await until(lambda: len(script.watched_from) >= 2)
        await asyncio.sleep(0.1)
        assert len(script.watched_from) <= 40


async def test_a_large_object_passes_through_a_watch(stub: Any) -> None:
    big = pod("big", 5, data="x" * 1_500_000)
    script = Script([page(version=1)], [sends(line("ADDED", big))])
    async with following(stub, script) as store:
        await until(lambda: len(store) == 1)
        assert len(store.get(Key("n", "big"))["data"]) == 1_500_000
