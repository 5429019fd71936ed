"""What workers tell the supervisor, what the page shows, and what a line of the access log holds."""

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from matrixinfer.gateway.access import AccessLog, AccessRecord, DecisionRecord
from matrixinfer.gateway.core.table import Table
from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target
from matrixinfer.gateway.core.usage import Usage
from matrixinfer.gateway.fleet import listeners
from matrixinfer.gateway.ipc import (
    Acknowledged,
    Configure,
    Drain,
    FromWorker,
    Publish,
    Report,
    Serving,
    ToWorker,
    encode,
    read_from_worker,
    read_to_worker,
)
from matrixinfer.gateway.metrics import Traffic
from matrixinfer.gateway.settings import GatewaySettings
from matrixinfer.gateway.stats import Stats, StatsReport
from matrixinfer.gateway.terms import TrafficDefaults
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.pool import PoolLimits


def report(stats: Stats, **numbers: int) -> StatsReport:
    zeros = {"connections": 0, "upstream_connections": 0, "upstream_opened": 0, "access_log_dropped": 0}
    return stats.report(**{**zeros, **numbers})


def counted(model: str = "m") -> Stats:
    stats = Stats()
    lobby, series = stats.series(model, "ns/r"), stats.series(model, "ns/r", "s")
    lobby.begin()
    lobby.begin()
    lobby.leave()
    series.end(200, "ok", 0.3, client_gone=False)
    series.retry("connect")
    series.first_token.observe(0.02)
    series.overhead.observe(70e-6)
    series.used(Usage(10, 5, 3))
    return stats


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def page(registry: CollectorRegistry) -> list[str]:
    return generate_latest(registry).decode().splitlines()


def test_the_page_adds_up_all_workers(registry: CollectorRegistry) -> None:
    traffic = Traffic(registry)
    traffic.report(0, report(counted(), connections=3))
    traffic.report(1, report(counted(), connections=4, upstream_opened=2))
    lines = page(registry)
    by_server = '{code="200",model="m",outcome="ok",route="ns/r",server="s"}'
    assert f"matrixinfer_gateway_requests_total{by_server} 2.0" in lines
    assert 'matrixinfer_gateway_upstream_retries_total{model="m",reason="connect",route="ns/r"} 2.0' in lines
    assert 'matrixinfer_gateway_in_flight_requests{model="m",route="ns/r"} 2.0' in lines
    tokens = 'counted_by="engine",kind="%s",model="m",route="ns/r",server="s"'
    assert f"matrixinfer_gateway_tokens_total{{{tokens % 'prompt'}}} 20.0" in lines
    assert f"matrixinfer_gateway_tokens_total{{{tokens % 'cached'}}} 6.0" in lines
    assert 'matrixinfer_gateway_request_duration_seconds_bucket{le="0.25",model="m",route="ns/r"} 0.0' in lines
    assert 'matrixinfer_gateway_request_duration_seconds_bucket{le="0.5",model="m",route="ns/r"} 2.0' in lines
    assert 'matrixinfer_gateway_request_duration_seconds_count{model="m",route="ns/r"} 2.0' in lines
    assert 'matrixinfer_gateway_overhead_seconds_bucket{le="0.0001",model="m",route="ns/r"} 2.0' in lines
    assert 'matrixinfer_gateway_time_to_first_token_seconds_sum{model="m",route="ns/r"} 0.04' in lines
    assert "matrixinfer_gateway_client_connections 7.0" in lines


def test_a_worker_that_ended_keeps_its_counts_and_loses_its_gauges(registry: CollectorRegistry) -> None:
    traffic = Traffic(registry)
    traffic.report(0, report(counted(), connections=3))
    traffic.forget(0)
    traffic.forget(0)
    traffic.report(0, report(counted(), connections=1))
    lines = page(registry)
    by_server = '{code="200",model="m",outcome="ok",route="ns/r",server="s"}'
    assert f"matrixinfer_gateway_requests_total{by_server} 2.0" in lines
    assert 'matrixinfer_gateway_in_flight_requests{model="m",route="ns/r"} 1.0' in lines
    assert "matrixinfer_gateway_client_connections 1.0" in lines


def test_a_report_holds_only_what_changed_and_the_page_keeps_the_rest(registry: CollectorRegistry) -> None:
    traffic, stats = Traffic(registry), counted()
    stats.series("quiet", "ns/q").begin()
    traffic.report(0, report(stats))
    assert report(stats).series == {}
    stats.series("m", "ns/r", "s").end(200, "ok", 0.3, client_gone=False)
    second = report(stats)
    assert set(second.series) == {("m", "ns/r", "s")}
    traffic.report(0, second)
    lines = page(registry)
    assert 'matrixinfer_gateway_requests_total{code="200",model="m",outcome="ok",route="ns/r",server="s"} 2.0' in lines
    assert 'matrixinfer_gateway_in_flight_requests{model="quiet",route="ns/q"} 1.0' in lines


def test_series_beyond_the_limit_share_one() -> None:
    stats = Stats()
    for number in range(2100):
        stats.series(f"m{number}", "ns/r").begin()
        stats.series(f"m{number}", "ns/r").leave()
        stats.series(f"m{number}", "ns/r").end(200, "ok", 0.1, client_gone=False)
    made = report(stats).series
    assert len(made) <= 2001
    assert made["other", "other", "other"].requests["200", "ok"] == 100
    assert {series.in_flight for series in made.values()} == {0}


def test_the_series_of_the_routing_table_are_there_before_any_request(registry: CollectorRegistry) -> None:
    stats, traffic = Stats(), Traffic(registry)
    route = Route("ns", "r", "m", ("lora",), (Rule("", None, (Target("a", 1, 0),), (Target("b", 0, 1),)),))
    stats.expect(Table(Snapshot(1, routes=(route,))).series_keys())
    traffic.report(0, report(stats))
    lines = page(registry)
    for model, server in product(("m", "lora"), ("a", "b")):
        labels = f'{{code="200",model="{model}",outcome="ok",route="ns/r",server="{server}"}}'
        assert f"matrixinfer_gateway_requests_total{labels} 0.0" in lines
    labels = '{code="503",model="m",outcome="no_endpoints",route="ns/r",server=""}'
    assert f"matrixinfer_gateway_requests_total{labels} 0.0" in lines


SNAPSHOT = Snapshot(3, (Server("ns", "s", None, "vLLM", (Endpoint(0, "p", "u", "10.0.0.1", 8000),)),), (), ("gone",))
CONFIGURE = Configure("info", InletLimits(), PoolLimits(), TrafficDefaults(), True, None, 5.0)


async def reader_of(*messages: ToWorker | FromWorker) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    for message in messages:
        reader.feed_data(encode(message))
    reader.feed_eof()
    return reader


async def test_messages_arrive_as_they_were_sent() -> None:
    down: tuple[ToWorker, ...] = (CONFIGURE, Publish(SNAPSHOT), Drain("closing"), Drain("last"))
    reader = await reader_of(*down)
    assert [await read_to_worker(reader) for _ in range(5)] == [*down, None]
    up: tuple[FromWorker, ...] = (Serving(), Acknowledged(3), Report(report(counted())))
    reader = await reader_of(*up)
    assert [await read_from_worker(reader) for _ in range(4)] == [*up, None]


async def test_a_frame_that_cannot_be_ours_is_an_error() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="no frame of ours"):
        await read_to_worker(reader)


RECORD = AccessRecord(
    datetime(2026, 1, 2, tzinfo=UTC),
    "id",
    "POST",
    "/v1/x",
    200,
    "ok",
    decision=DecisionRecord(1, "rule", "s", 2, 1, 0.5),
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_an_access_line_is_one_json_object(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    log.write(RECORD)
    log.write(RECORD)
    log.close(1)
    lines = os.read(pipe[0], 65536).decode().splitlines()
    line: dict[str, Any] = msgspec.json.decode(lines[0])
    assert len(lines) == 2
    assert (line["event"], line["service"], line["level"]) == ("request", "gateway", "info")
    assert line["time"] == "2026-01-02T00:00:00Z"
    assert line["decision"]["candidates"] == 2


async def test_a_reader_that_stopped_reading_stops_nobody(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    for _ in range(60_000):
        log.write(RECORD)
    assert log.dropped > 0
    reader = asyncio.get_running_loop().run_in_executor(None, _drain, pipe[0])
    log.close(5)
    os.write(pipe[1], b"END")
    assert await reader


def _drain(fd: int) -> bool:
    tail = b""
    while not tail.endswith(b"END"):
        tail = (tail + os.read(fd, 65536))[-10:]
    return True


def test_listeners_share_one_port() -> None:
    made = listeners("127.0.0.1", 0, 3)
    assert len({listener.getsockname() for listener in made}) == 1
    with pytest.raises(OSError, match="assign"):
        listeners("192.0.2.1", 0, 1)
    for listener in made:
        listener.close()


def test_settings_that_leave_no_time_to_drain_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXINFER_GATEWAY_DRAIN_SECONDS", "5")
    monkeypatch.setenv("MATRIXINFER_GATEWAY_SETTLE_SECONDS", "5")
    with pytest.raises(ValidationError, match="settle_seconds must be less"):
        GatewaySettings()
    monkeypatch.setenv("MATRIXINFER_GATEWAY_SETTLE_SECONDS", "1")
    settings = GatewaySettings()
    assert settings.inlet_limits.body_bytes == 64 * 2**20
    assert settings.traffic_defaults == TrafficDefaults()
    assert settings.pool_limits == PoolLimits()
