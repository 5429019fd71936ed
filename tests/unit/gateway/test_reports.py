"""What workers tell the supervisor, what the page shows, and what a line of the access log holds."""

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from matrixinfer.gateway.access import AccessLog, AccessRecord, DecisionRecord
from matrixinfer.gateway.core.types import Endpoint, Server, Snapshot
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
from matrixinfer.gateway.wire.pool import PoolLimits
from matrixinfer.gateway.wire.server import InletLimits


def report(stats: Stats, **numbers: int) -> StatsReport:
    zeros = {"connections": 0, "upstream_connections": 0, "upstream_opened": 0, "access_log_dropped": 0}
    return stats.report(**{**zeros, **numbers})


def counted(model: str = "m") -> Stats:
    stats = Stats()
    stats.begin(model)
    stats.end(model, 200, 0.3, client_gone=False)
    stats.begin(model)
    stats.retry(model, "connect")
    stats.first_token(model, 0.02)
    stats.overhead(model, 70e-6)
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
    assert 'matrixinfer_gateway_requests_total{code="200",model="m"} 2.0' in lines
    assert 'matrixinfer_gateway_upstream_retries_total{model="m",reason="connect"} 2.0' in lines
    assert 'matrixinfer_gateway_in_flight_requests{model="m"} 2.0' in lines
    assert 'matrixinfer_gateway_request_duration_seconds_bucket{le="0.25",model="m"} 0.0' in lines
    assert 'matrixinfer_gateway_request_duration_seconds_bucket{le="0.5",model="m"} 2.0' in lines
    assert 'matrixinfer_gateway_request_duration_seconds_count{model="m"} 2.0' in lines
    assert 'matrixinfer_gateway_overhead_seconds_bucket{le="0.0001",model="m"} 2.0' in lines
    assert 'matrixinfer_gateway_time_to_first_token_seconds_sum{model="m"} 0.04' in lines
    assert "matrixinfer_gateway_client_connections 7.0" in lines


def test_a_worker_that_ended_keeps_its_counts_and_loses_its_gauges(registry: CollectorRegistry) -> None:
    traffic = Traffic(registry)
    traffic.report(0, report(counted(), connections=3))
    traffic.forget(0)
    traffic.forget(0)
    traffic.report(0, report(counted(), connections=1))
    lines = page(registry)
    assert 'matrixinfer_gateway_requests_total{code="200",model="m"} 2.0' in lines
    assert 'matrixinfer_gateway_in_flight_requests{model="m"} 1.0' in lines
    assert "matrixinfer_gateway_client_connections 1.0" in lines


def test_models_beyond_the_limit_share_one_label() -> None:
    stats = Stats()
    for number in range(2100):
        stats.begin(f"m{number}")
        stats.end(f"m{number}", 200, 0.1, client_gone=False)
    made = report(stats)
    assert len(made.in_flight) <= 2001
    assert made.requests["other", "200"] >= 99
    assert set(made.in_flight.values()) == {0}


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
