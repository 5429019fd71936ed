"""Scraping over real sockets: deadlines, bounds, and the second place to look."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from matrixinfer.autoscaler.collect.scrape import Failure, ScrapeFailed, Scraper
from matrixinfer.autoscaler.endpoints import Endpoint
from matrixinfer.engines.exposition import MetricReader
from matrixinfer.engines.metric_names import Metric

READER = MetricReader([Metric.WAITING], limit_bytes=10_000)


async def metrics(request: web.Request) -> web.StreamResponse:
    match request.match_info["kind"]:
        case "good":
            return web.Response(text="vllm:num_requests_waiting 4\n")
        case "slow":
            await asyncio.Event().wait()
        case "large":
            return web.Response(text="x" * 20_000)
        case "moved":
            raise web.HTTPFound("/good")
        case "cut":
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"vllm:")
            if request.transport is not None:
                request.transport.abort()
            return response
        case _:
            pass
    return web.Response(status=500)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get("/{kind}", metrics)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    number: int = runner.addresses[0][1]
    yield number
    await runner.cleanup()


async def test_a_pod_is_read(port: int) -> None:
    async with Scraper() as scraper:
        reading = await scraper.scrape([Endpoint("127.0.0.1", port, "/good")], READER)
    assert reading.number(Metric.WAITING) == 4


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        ("/slow", Failure.DEADLINE),
        ("/large", Failure.SIZE),
        ("/moved", Failure.STATUS),
        ("/wrong", Failure.STATUS),
        ("/cut", Failure.BROKEN),
    ],
)
async def test_whatever_goes_wrong_is_one_pods_failure(port: int, path: str, failure: Failure) -> None:
    async with Scraper(deadline_seconds=0.05) as scraper:
        with pytest.raises(ScrapeFailed) as failed:
            await scraper.scrape([Endpoint("127.0.0.1", port, path), Endpoint("127.0.0.1", port, "/good")], READER)
    assert failed.value.failure is failure


async def test_where_nobody_listens_the_next_place_is_tried(port: int, unused_tcp_port: int) -> None:
    silent, good = Endpoint("127.0.0.1", unused_tcp_port), Endpoint("127.0.0.1", port, "/good")
    async with Scraper() as scraper:
        assert (await scraper.scrape([silent, good], READER)).number(Metric.WAITING) == 4
        with pytest.raises(ScrapeFailed) as failed:
            await scraper.scrape([silent], READER)
        assert failed.value.failure is Failure.REFUSED
        with pytest.raises(ScrapeFailed, match="no address"):
            await scraper.scrape([], READER)
