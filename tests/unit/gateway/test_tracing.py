"""Distributed traces: whose they are, what an engine is told, and what a collector gets over a real socket."""

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.gateway.rig import Asked, Rig, answer_ok, post
from tests.unit.gateway.test_usage import DONE, content, stream

from matrixinfer.gateway.core.spans import INTERNAL, Span
from matrixinfer.gateway.core.tracecontext import SAMPLERS, TraceContext, parse, sampler
from matrixinfer.gateway.export import ExportSettings, SpanExporter
from matrixinfer.gateway.settings import GatewaySettings
from matrixinfer.gateway.tracing import Tracer
from matrixinfer.service.clock import monotonic
from matrixinfer.service.settings import SettingsError, load

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{PARENT[0]}-{PARENT[1]}-01"
SECRETS = ("Bearer sk-very-secret", "tell nobody about the prompt", "the answer is private")


@dataclass
class Collector:
    """An OTLP receiver: decodes what arrives, strictly, and answers with what a test says."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = collector.answers.pop(0) if collector.answers else 200
                if status == 200:
                    assert self.headers["content-type"] == "application/json"
                    collector.raw.append(body)
                    collector.bodies.append(json.loads(body))
                    collector.headers.append({**self.headers, ":path": self.path})
                self.send_response(status)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")
                collector.arrived.set()

            def log_message(self, *_: object) -> None:
                pass

        # Each exporter keeps its connection.
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def spans(self) -> list[dict[str, Any]]:
        scopes = [s for body in self.bodies for r in body["resourceSpans"] for s in r["scopeSpans"]]
        return [span for scope in scopes for span in scope["spans"]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


def settings_for(collector: Collector, **changes: Any) -> ExportSettings:
    settings = ExportSettings(collector.url, {"x-tenant": "t"}, {"service.name": "gw"}, delay_seconds=0.01)
    return replace(settings, **changes)


def traced(rig: Rig, exporter: SpanExporter, keeps: str = "parentbased_always_on", ratio: float = 1.0) -> None:
    rig.tracer = Tracer(
        sampler(keeps, ratio),
        exporter,
        random_bits=random.getrandbits,
        clock=monotonic,
        now_nanoseconds=time.time_ns,
    )


def noted(span: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a span, with the types that OTLP says they have."""
    found = {}
    for attribute in span.get("attributes", ()):
        ((kind, value),) = attribute["value"].items()
        found[attribute["key"]] = int(value) if kind == "intValue" else value
    return found


def ids(asked: Asked) -> tuple[str, ...]:
    return tuple(asked.headers[b"traceparent"].decode().split("-"))


# -- the header ---------------------------------------------------------------------------------------------------


def test_a_header_is_read_and_written_as_the_recommendation_says() -> None:
    context = parse(TRACEPARENT.encode())
    assert context == TraceContext(*PARENT, sampled=True)
    assert context is not None
    assert context.header == TRACEPARENT.encode()
    assert parse(b"cc-" + TRACEPARENT[3:].encode() + b"-what-comes-later") == context


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
    ],
)
def test_a_broken_header_counts_as_none(value: bytes) -> None:
    assert parse(value) is None


@given(st.binary(max_size=80))
def test_no_header_is_too_strange(value: bytes) -> None:
    parse(value)


def test_samplers_keep_what_their_names_say() -> None:
    yes, no = TraceContext(*PARENT, sampled=True), TraceContext(*PARENT, sampled=False)
    low, high = "f" * 16 + "0" * 16, "0" * 16 + "f" * 16
    kept = {
        name: [
            sampler(name, 0.5)(parent, trace_id)
            for parent, trace_id in ((None, low), (None, high), (yes, high), (no, low))
        ]
        for name in SAMPLERS
    }
    assert kept == {
        "always_on": [True, True, True, True],
        "always_off": [False, False, False, False],
        "traceidratio": [True, False, False, True],
        "parentbased_always_on": [True, True, True, False],
        "parentbased_always_off": [False, False, True, False],
        "parentbased_traceidratio": [True, False, True, False],
    }


# -- whole traces ---------------------------------------------------------------------------------------------------


async def test_a_request_is_a_tree_of_spans_from_the_callers_to_the_engines(rig: Rig, collector: Collector) -> None:
    """BEAT-98: a span per phase; a failed attempt, and the one after it, are siblings."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3}}\n\n'

    async def answers(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        for piece in stream(content(1), SECRETS[2].encode(), usage, DONE):
            writer.write(piece)

    await rig.engine(listening=False)
    exporter = SpanExporter(settings_for(collector), {"service.name": "gw"})
    traced(rig, exporter)
    await rig.start()
    before = time.time_ns()
    working = None
    # The request goes to the pod that nobody listens for until the draw says so; then to the only one that is left.
    for number in range(20):
        if working is None:
            working = await rig.engine(answers)
        body = b'{"model":"m","stream":true,"prompt":"%s"}' % SECRETS[1].encode()
        await rig.ask(
            post(body, traceparent=TRACEPARENT, tracestate="a=1", authorization=SECRETS[0], x_request_id=f"r{number}")
        )
        if rig.records[-1].retries:
            break
    record = rig.records[-1]
    assert record.retries == 1
    assert record.trace_id == PARENT[0]
    await asyncio.to_thread(exporter.close, 5)
    after = time.time_ns()
    spans = collector.spans()
    root = next(s for s in spans if noted(s).get("matrixinfer.request_id") == record.request_id)
    assert (root["traceId"], root["parentSpanId"], root["traceState"]) == (*PARENT, "a=1")
    assert (root["name"], root["kind"]) == ("POST /v1/chat/completions", 2)
    told = noted(root)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "m"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (11, 3)
    assert (told["http.response.status_code"], told["matrixinfer.route"]) == (200, "ns/r")
    children = [s for s in spans if s.get("parentSpanId") == root["spanId"]]
    assert [s["name"] for s in children] == ["schedule", "schedule", "chat m", "chat m"]
    failed, good = [s for s in children if s["kind"] == 3]
    assert failed["status"] == {"code": 2, "message": "connect"}
    assert noted(failed)["error.type"] == "connect"
    assert (noted(good)["http.response.status_code"], noted(good)["http.request.resend_count"]) == (200, 1)
    assert noted(good)["k8s.pod.name"] == record.pod
    phases = [s for s in spans if s.get("parentSpanId") == good["spanId"]]
    assert [s["name"] for s in phases if s["name"] != "connect"] == ["first byte", "stream"]
    assert {s["kind"] for s in phases} == {INTERNAL}
    # The engine's own spans become children of the attempt that it answered.
    assert working is not None
    assert ids(working.asked[-1]) == ("00", PARENT[0], good["spanId"], "01")
    assert working.asked[-1].headers[b"tracestate"] == b"a=1"
    assert len({s["spanId"] for s in spans}) == len(spans)
    for span in (root, *children, *phases):
        began, ended = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        assert before <= int(root["startTimeUnixNano"]) <= began <= ended <= int(root["endTimeUnixNano"]) <= after
    assert collector.headers[0]["x-tenant"] == "t"
    assert not any(secret.encode() in raw for secret in SECRETS for raw in collector.raw)


async def test_a_trace_begins_here_when_nobody_else_began_one(rig: Rig, collector: Collector) -> None:
    engine = await rig.engine()
    exporter = SpanExporter(settings_for(collector), {})
    traced(rig, exporter)
    await rig.start()
    await rig.ask(post(traceparent="nonsense", tracestate="a=1"))
    await asyncio.to_thread(exporter.close, 5)
    (root,) = [s for s in collector.spans() if s["kind"] == 2]
    assert "parentSpanId" not in root
    assert ids(engine.asked[0])[1] == root["traceId"]
    assert b"tracestate" not in engine.asked[0].headers


async def test_a_request_that_is_not_kept_tells_the_engine_so(rig: Rig, collector: Collector) -> None:
    engine = await rig.engine()
    exporter = SpanExporter(settings_for(collector), {})
    traced(rig, exporter, "parentbased_always_off")
    await rig.start()
    await rig.ask()
    assert ids(engine.asked[0])[3] == "00"
    # What the caller decided is passed on as it is.
    await rig.ask(post(traceparent=TRACEPARENT.removesuffix("01") + "00", tracestate="a=1"))
    assert engine.asked[1].headers[b"traceparent"] == TRACEPARENT.removesuffix("01").encode() + b"00"
    assert engine.asked[1].headers[b"tracestate"] == b"a=1"
    await asyncio.to_thread(exporter.close, 5)
    assert collector.spans() == []


async def test_without_a_tracer_the_callers_headers_pass(rig: Rig) -> None:
    engine = await rig.engine(answer_ok)
    await rig.start()
    await rig.ask(post(traceparent=TRACEPARENT, tracestate="a=1"))
    assert engine.asked[0].headers[b"traceparent"] == TRACEPARENT.encode()
    assert engine.asked[0].headers[b"tracestate"] == b"a=1"


async def test_a_client_that_leaves_ends_its_spans(rig: Rig, collector: Collector) -> None:
    async def behave(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine = await rig.engine(behave)
    exporter = SpanExporter(settings_for(collector), {})
    traced(rig, exporter)
    await rig.start()
    client = await rig.client()
    client.send(post())
    await rig.until(lambda: engine.asked)
    client.close()
    await rig.record()
    await asyncio.to_thread(exporter.close, 5)
    (attempt,) = [s for s in collector.spans() if s["kind"] == 3]
    assert noted(attempt)["error.type"] == "client_gone"


# -- the way out ----------------------------------------------------------------------------------------------------


def span(number: int) -> Span:
    return Span("a" * 32, f"{number:016x}", "x", 1, "1", "2")


def test_a_collector_that_is_busy_is_asked_again(collector: Collector) -> None:
    collector.answers = [503, 429]
    exporter = SpanExporter(settings_for(collector), {})
    exporter.add([span(1)])
    deadline = time.monotonic() + 10
    while not exporter.exported and time.monotonic() < deadline:
        collector.arrived.wait(1)
        collector.arrived.clear()
    exporter.close(5)
    assert (exporter.exported, exporter.dropped, len(collector.spans())) == (1, 0, 1)


def test_a_collector_that_refuses_costs_spans_and_they_are_counted(collector: Collector) -> None:
    collector.answers = [400]
    exporter = SpanExporter(settings_for(collector), {})
    exporter.add([span(1)])
    exporter.close(5)
    assert (exporter.exported, exporter.dropped) == (0, 1)


def test_a_collector_that_is_away_costs_spans_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    exporter = SpanExporter(ExportSettings(f"http://127.0.0.1:{port}/v1/traces", delay_seconds=60, queue_spans=10), {})
    began = time.monotonic()
    for number in range(1000):
        exporter.add([span(number)])
    assert time.monotonic() - began < 5
    exporter.close(10)
    assert (exporter.exported, exporter.dropped) == (0, 1000)


def test_batches_have_a_size(collector: Collector) -> None:
    exporter = SpanExporter(settings_for(collector, delay_seconds=60, batch_spans=3), {})
    exporter.add([span(number) for number in range(7)])
    exporter.close(5)
    sizes = [len(body["resourceSpans"][0]["scopeSpans"][0]["spans"]) for body in collector.bodies]
    assert sizes == [3, 3, 1]


# -- the settings ---------------------------------------------------------------------------------------------------


def test_the_variables_of_opentelemetry_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GatewaySettings().export_settings.endpoint == ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, y=z")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=prod")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    settings = GatewaySettings()
    export = settings.export_settings
    assert export.endpoint == "http://collector:4318/v1/traces"
    assert export.headers == {"authorization": "Bearer x", "y": "z"}
    assert export.resource["service.name"] == "matrixinfer-gateway"
    assert export.resource["deployment.environment"] == "prod"
    assert (settings.otel_sampler, settings.otel_sampler_ratio) == ("parentbased_traceidratio", 0.25)
    assert "Bearer" not in str(settings.model_dump(mode="json"))
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert GatewaySettings().export_settings.endpoint == ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValidationError, match="http/json"):
        GatewaySettings()


@pytest.mark.parametrize("headers", ["authorization=Bearer%0Ax", "a b=c", "name=%E2%82%AC", "x=%00"])
def test_a_header_that_cannot_be_sent_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, headers: str):
    """Found at the first export it would end the exporter, and nobody would see why."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP.*HEADERS") as refused:
        load(GatewaySettings)
    assert "Bearer" not in str(refused.value), "a header may be a secret"
