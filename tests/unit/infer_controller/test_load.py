"""Asking draining pods for their requests."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from tests.unit.infer_controller.worlds import KEY, NOW, changed, leaving, pod

from matrixinfer.infer_controller.load import LoadFeed, read_over_http

DRAINING = leaving(pod(0, port=8000, address="127.0.0.1"))


def feed(pods, answers):
    woken = []

    async def read(one):
        return answers[one.uid].pop(0)

    return LoadFeed(lambda: pods, read, woken.append, every_seconds=1), woken


async def test_a_pod_that_became_idle_wakes_its_modelinfer_once():
    loads, woken = feed([DRAINING], {DRAINING.uid: [2, 0, 0]})
    await loads.ask_once()
    assert (dict(loads.in_flight), woken) == ({DRAINING.uid: 2}, [])
    await loads.ask_once()
    await loads.ask_once()
    assert (dict(loads.in_flight), woken) == ({DRAINING.uid: 0}, [KEY])


async def test_a_pod_that_does_not_answer_is_unknown_and_not_idle():
    loads, woken = feed([DRAINING], {DRAINING.uid: [2, None]})
    await loads.ask_once()
    await loads.ask_once()
    assert (dict(loads.in_flight), woken) == ({}, [])


@pytest.mark.parametrize(
    "one",
    [
        pod(0, port=8000),
        leaving(pod(0)),
        leaving(pod(0, port=8000, ready=False)),
        leaving(pod(0, 1, port=8000)),
        changed(leaving(pod(0, port=8000)), delete_by=NOW),
    ],
    ids=["not removed", "no port", "not ready", "worker", "going already"],
)
async def test_nobody_else_is_asked(one):
    loads, _ = feed([one], {})
    await loads.ask_once()
    assert dict(loads.in_flight) == {}


@pytest.fixture
async def engine():
    """An engine's metrics page; `page` is what it answers."""
    state = {"page": "", "status": 200, "hangs": False}
    over = asyncio.Event()

    async def metrics(_request):
        if state["hangs"]:
            await over.wait()
        return web.Response(text=state["page"], status=state["status"])

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    state["port"] = runner.addresses[0][1]
    yield state
    over.set()
    await runner.cleanup()


async def asked(port, deadline_seconds=2.0):
    async with aiohttp.ClientSession() as session:
        return await read_over_http(session, deadline_seconds=deadline_seconds)(changed(DRAINING, port=port))


async def test_running_and_waiting_are_read_from_the_engines_own_metrics(engine):
    engine["page"] = "vllm:num_requests_running 2.0\nvllm:num_requests_waiting 3.0\n"
    assert await asked(engine["port"]) == 5


async def test_a_page_of_many_segments_is_read_to_its_end(engine):
    filler = "".join(f'other{{n="{number}"}} 1.0\n' for number in range(20_000))
    engine["page"] = f"vllm:num_requests_running 0.0\n{filler}vllm:num_requests_waiting 3.0\n"
    assert await asked(engine["port"]) == 3


async def test_a_page_that_says_nothing_or_fails_is_unknown(engine):
    assert await asked(engine["port"]) is None
    engine["status"] = 503
    assert await asked(engine["port"]) is None


async def test_an_engine_that_is_too_busy_to_answer_is_busy(engine):
    engine["hangs"] = True
    assert await asked(engine["port"], deadline_seconds=0.05) == 1


async def test_an_engine_that_is_gone_is_unknown(engine, unused_tcp_port):
    assert await asked(unused_tcp_port) is None


async def test_the_feed_goes_on_until_it_is_cancelled():
    asked_twice = asyncio.Event()
    count = 0

    async def read(_one):
        nonlocal count
        count += 1
        if count == 2:
            asked_twice.set()
        return 1

    loads = LoadFeed(lambda: [DRAINING], read, lambda _key: None, every_seconds=0)
    task = asyncio.ensure_future(loads.run())
    async with asyncio.timeout(5):
        await asked_twice.wait()
    task.cancel()
