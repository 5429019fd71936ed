"""Reading engines over real sockets: what they say, what they do wrong, and who waits for whom."""

import asyncio
import gzip
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf, isnan

import pytest
from structlog.testing import capture_logs

from matrixinfer.engines.state import EngineState
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.load import Burden, EngineLoads, EngineReport
from matrixinfer.gateway.core.scrape import Pace, report_of
from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target
from matrixinfer.gateway.feeds import metrics as metrics_feed
from matrixinfer.gateway.feeds.metrics import EngineFeed
from matrixinfer.gateway.wire.pool import PoolLimits, UpstreamPool

QUICK = Pace(busy_seconds=0.01, idle_seconds=0.01, failing_seconds=0.02, beat_seconds=0.005)


def page(running: float = 0, waiting: float = 0) -> bytes:
    return b"# HELP\nvllm:num_requests_running %d\nvllm:num_requests_waiting %d\n" % (running, waiting)


def http(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, lines, len(body), body)


def latencies(prefix: str, ttft_seconds: float, count: int) -> bytes:
    """Two histograms, of two ranks: each rank's buckets stand before its own count and sum."""
    lines = [
        f"""{prefix}:{name}_bucket{{le="+Inf",rank="{rank}"}} {count}
{prefix}:{name}_count{{rank="{rank}"}} {count}
{prefix}:{name}_sum{{rank="{rank}"}} {seconds}"""
        for name, seconds in (("time_to_first_token_seconds", ttft_seconds), ("time_per_output_token_seconds", 1))
        for rank in range(2)
    ]
    return ("\n".join(lines) + "\n").encode()


Answering = Callable[["Engine", str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Engine:
    """An engine on an address of its own, as good or bad as a test wants."""

    address: str
    answer: bytes = field(default_factory=lambda: http(page()))
    behave: Answering | None = None
    adapters: tuple[str, ...] = ()
    port: int = 0
    connections: int = 0
    asked: list[str] = field(default_factory=list)
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> "Engine":
        self.server = await asyncio.start_server(self.serve, self.address, self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                self.asked.append(path)
                if self.behave is not None:
                    await self.behave(self, path, writer)
                elif path == "/v1/models":
                    cards = [{"id": "m"}, *({"id": name, "parent": "m"} for name in self.adapters)]
                    writer.write(http(json.dumps({"data": cards}).encode()))
                else:
                    writer.write(self.answer)
        writer.close()

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in tuple(self.writers):
            writer.transport.abort()


class World:
    """A feed over engines, and the board that a worker would read."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.fd = LoadBoard.create(2, 256)
        self.board = LoadBoard(self.fd, 2, 256)
        self.engines: list[Engine] = []
        self.revision = 0
        self.changes = 0
        self.deadline = 5.0
        self.pace = QUICK

    async def engine(self, **options: object) -> Engine:
        made = Engine(f"127.11.0.{len(self.engines) + 2}", **options)  # type: ignore[arg-type]
        self.engines.append(await made.start())
        return made

    def start(self) -> None:
        self.pool = UpstreamPool(PoolLimits(self.deadline, 4.0, 1), ssl.create_default_context())
        self.feed = EngineFeed(
            cells=self.board.engine_cells(),
            is_idle=self.board.is_idle,
            pool=self.pool,
            pace=self.pace,
            deadline_seconds=self.deadline,
            clock=time.monotonic,
            draw=lambda: 0.0,
        )
        self.feed.on_adapters(self.count_change)
        self.publish()
        self.running = self.tasks.create_task(self.feed.run())

    def count_change(self) -> None:
        self.changes += 1

    def publish(self, *endpoints: Endpoint, adapters: tuple[str, ...] = ()) -> None:
        self.revision += 1
        listed = endpoints or tuple(endpoint(i, engine) for i, engine in enumerate(self.engines))
        route = Route("ns", "r", "m", adapters, (Rule("", None, (Target("s", 1, 0),)),))
        self.feed.follow(Snapshot(self.revision, (Server("ns", "s", None, "vLLM", listed),), (route,)))

    def loads(self) -> EngineLoads:
        """What a worker that begins to read now finds."""
        return self.board.reader(range(max(1, len(self.engines)))).engines(time.monotonic())

    def described(self, position: int = 0) -> dict[str, object]:
        listed: list[dict[str, object]] = self.feed.describe()  # type: ignore[assignment]
        return listed[position]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            # The feed and the engines are on this loop and tell nobody when they are done.
            while not holds():
                await asyncio.sleep(0.001)


def endpoint(slot: int, engine: Engine, uid: str = "", metrics_port: int | None = None) -> Endpoint:
    name = uid or f"u{slot}"
    return Endpoint(slot, f"p-{name}", name, engine.address, engine.port, metrics_port=metrics_port)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        made = World(tasks)
        yield made
        made.running.cancel()
        made.pool.close()
        for engine in made.engines:
            engine.stop()
        os.close(made.fd)


# -- what engines say ---------------------------------------------------------------------------------------------


async def test_workers_read_what_engines_say_and_how_old_it_is(world: World) -> None:
    await world.engine(answer=http(page(3, 2)))
    await world.engine(answer=http(b"llamacpp:requests_processing 7\n"))
    world.start()
    await world.until(lambda: max(world.loads().ages) < inf)
    loads = world.loads()
    assert list(loads.running) == [3, 7]
    assert loads.waiting[0] == 2
    assert isnan(loads.waiting[1])
    assert max(loads.ages) < 5


@pytest.mark.parametrize("prefix", ["vllm", "sglang", "matrixinfer"])
async def test_latencies_are_read_from_the_engines_histograms(world: World, prefix: str) -> None:
    engine = await world.engine(answer=http(page() + latencies(prefix, 2.0, 4)))
    world.start()
    await world.until(lambda: max(world.loads().ages) < inf)
    assert (world.loads().ttft_seconds[0], world.loads().tpot_seconds[0]) == (0.5, 0.25)
    engine.answer = http(page() + latencies(prefix, 8.0, 6))
    await world.until(lambda: world.loads().ttft_seconds[0] != 0.5)
    assert world.loads().ttft_seconds[0] == 3.0


async def test_one_connection_serves_all_looks_at_an_engine(world: World) -> None:
    engine = await world.engine()
    world.start()
    await world.until(lambda: len(engine.asked) >= 10)
    assert engine.connections == 1
    assert set(engine.asked) == {"/metrics"}


async def test_beat_63_metrics_are_read_at_the_workloads_port_or_where_the_pod_says(world: World) -> None:
    main, other = await world.engine(answer=http(page(1))), await world.engine(answer=http(page(2)))
    other.address = main.address
    world.engines.pop()
    metrics = Engine(main.address, http(page(9)))
    await metrics.start()
    world.start()
    world.publish(endpoint(0, main, metrics_port=metrics.port))
    world.engines.append(metrics)
    await world.until(lambda: world.loads().running[0] == 9)
    other.stop()


@pytest.mark.parametrize("encoding", [b"gzip", b"identity"])
async def test_a_packed_page_is_unpacked(world: World, encoding: bytes) -> None:
    body = gzip.compress(page(4)) if encoding == b"gzip" else page(4)
    await world.engine(answer=http(body, b"200 OK", b"content-encoding: " + encoding))
    world.start()
    await world.until(lambda: world.loads().running[0] == 4)


async def test_bytes_that_are_no_text_spoil_nothing_but_their_own_line(world: World) -> None:
    await world.engine(answer=http(b'\xff\xfe\x00{"\x80\nvllm:num_requests_waiting{a="\xff"} 5\n' + page(6)))
    world.start()
    await world.until(lambda: world.loads().running[0] == 6)


# -- what engines do wrong ----------------------------------------------------------------------------------------


async def hang(_engine: Engine, _path: str, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def half(_engine: Engine, _path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:num_requests_running 1\n")
    await writer.drain()
    writer.close()


async def drip(_engine: Engine, _path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n")
        await asyncio.sleep(0.005)


async def flood(_engine: Engine, _path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"80000\r\n" + b"x" * 0x80000 + b"\r\n")
        await writer.drain()


WRONG: dict[str, tuple[str, dict[str, object]]] = {
    "hangs": ("no answer within", {"behave": hang}),
    "drips": ("no answer within", {"behave": drip}),
    "breaks off": ("closed", {"behave": half}),
    "floods": ("larger than", {"behave": flood}),
    "announces too much": ("larger than", {"answer": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"}),
    "500": ("the answer is 500", {"answer": http(page(9), b"500 Oops")}),
    "404": ("the answer is 404", {"answer": http(page(9), b"404 Not Found")}),
    "redirects": ("the answer is 302", {"answer": http(b"", b"302 Found", b"location: http://127.0.0.1/")}),
    "no HTTP": ("not valid HTTP", {"answer": b"hello\r\n\r\n"}),
    "bad gzip": ("cannot be unpacked", {"answer": http(b"nonsense", b"200 OK", b"content-encoding: gzip")}),
    "brotli": ("packed as 'br'", {"answer": http(b"nonsense", b"200 OK", b"content-encoding: br")}),
    "a bomb": (
        "larger than",
        {"answer": http(gzip.compress(b"x" * (9 << 20)), b"200 OK", b"content-encoding: gzip")},
    ),
    "many series": ("series", {"answer": http(b"vllm:num_requests_running 1\n" * 3000)}),
}


@pytest.mark.parametrize("name", WRONG)
async def test_an_engine_that_answers_wrongly_is_unknown_with_a_reason_and_looked_at_again(
    world: World, name: str
) -> None:
    sentence, options = WRONG[name]
    engine = await world.engine(**options)
    world.deadline = 0.1 if "no answer" in sentence else 5.0
    world.start()
    await world.until(lambda: world.loads().failures[0] >= 2)
    assert sentence in str(world.described()["problem"])
    assert world.loads().ages == [inf]
    assert isnan(world.loads().running[0])
    engine.behave, engine.answer = None, http(page(2))
    for writer in tuple(engine.writers):
        writer.transport.abort()
    await world.until(lambda: world.loads().running[0] == 2)
    assert list(world.loads().failures) == [0]
    assert world.described()["problem"] == ""


async def test_beat_39_a_dead_pod_never_looks_idle(world: World) -> None:
    """What it said last stays, ages, and the failures count up: no number goes to zero."""
    engine = await world.engine(answer=http(page(8, 3)))
    world.start()
    await world.until(lambda: world.loads().running[0] == 8)
    engine.stop()
    await world.until(lambda: world.loads().failures[0] >= 3)
    before = world.loads()
    await world.until(lambda: world.loads().failures[0] > before.failures[0])
    after = world.loads()
    assert (after.running[0], after.waiting[0]) == (8, 3)
    assert after.ages[0] > before.ages[0]


async def test_an_engine_that_says_nothing_of_its_load_is_alive_and_unknown(world: World) -> None:
    await world.engine(answer=http(b"python_info 1\n"))
    world.start()
    await world.until(lambda: world.loads().ages[0] < inf)
    assert isnan(world.loads().running[0])
    assert list(world.loads().failures) == [0]
    assert world.described()["problem"] == "the page says nothing of requests"


async def test_a_connection_that_the_engine_closed_meanwhile_is_no_failure(world: World) -> None:
    async def once(engine: Engine, _path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(engine.answer)
        await writer.drain()
        writer.close()

    engine = await world.engine(behave=once)
    world.start()
    await world.until(lambda: engine.connections >= 5)
    assert list(world.loads().failures) == [0]


# -- who waits for whom -------------------------------------------------------------------------------------------


async def test_beat_62_one_hung_engine_of_a_hundred_delays_no_other(world: World) -> None:
    await world.engine(behave=hang)
    engines = [await world.engine() for _ in range(99)]
    world.deadline = 15.0
    world.start()
    await world.until(lambda: all(len(engine.asked) >= 3 for engine in engines))
    assert len(world.engines[0].asked) == 1


async def test_beat_62_many_hung_engines_do_not_hold_the_places_of_the_others(world: World) -> None:
    for _ in range(100):
        await world.engine(behave=hang)
    good = await world.engine()
    world.deadline = 0.1
    world.start()
    await world.until(lambda: len(good.asked) >= 1 and sum(f > 0 for f in world.loads().failures) >= 90)
    asked = len(good.asked)
    await world.until(lambda: len(good.asked) > asked + 5)


async def test_beat_34_a_hung_engine_keeps_no_new_one_from_being_found(world: World) -> None:
    hung = await world.engine(behave=hang)
    world.start()
    await world.until(lambda: hung.asked)
    await world.engine(answer=http(page(5)))
    world.publish()
    await world.until(lambda: world.loads().running[1] == 5)


async def test_beat_35_a_change_of_the_pods_object_keeps_its_numbers(world: World) -> None:
    engine = await world.engine(answer=http(page(5)))
    world.start()
    await world.until(lambda: world.loads().running[0] == 5)
    engine.behave = hang
    for _ in range(3):
        world.publish(endpoint(0, engine))
        assert world.loads().running[0] == 5
        assert world.loads().ages[0] < inf
    assert engine.connections == 1


async def test_another_pod_on_the_same_slot_begins_unknown(world: World) -> None:
    engine = await world.engine(answer=http(page(5)))
    world.start()
    await world.until(lambda: world.loads().running[0] == 5)
    engine.behave = hang
    world.publish(endpoint(0, engine, uid="another"))
    assert world.loads().ages == [inf]
    assert isnan(world.loads().running[0])


async def test_a_pod_that_left_is_asked_no_more_and_its_connection_closes(world: World) -> None:
    leaving, staying = await world.engine(), await world.engine()
    world.start()
    await world.until(lambda: leaving.asked and staying.asked)
    world.publish(endpoint(1, staying))
    await world.until(lambda: not leaving.writers or all(w.is_closing() for w in leaving.writers))
    asked, staying_asked = len(leaving.asked), len(staying.asked)
    await world.until(lambda: len(staying.asked) > staying_asked + 3)
    assert len(leaving.asked) == asked
    assert [line["uid"] for line in world.feed.describe()] == ["u1"]  # type: ignore[attr-defined]


async def test_an_engine_that_works_for_us_is_looked_at_often_and_an_idle_one_is_not(world: World) -> None:
    world.pace = Pace(busy_seconds=0.01, idle_seconds=30.0, beat_seconds=0.005)
    for _ in range(3):
        await world.engine()
    world.engines[2].answer = http(page(1))
    claim = world.board.row(1).enter(1, Burden())
    world.start()
    await world.until(lambda: len(world.engines[1].asked) > 5 and len(world.engines[2].asked) > 5)
    assert len(world.engines[0].asked) == 1
    claim.end()


# -- adapters -----------------------------------------------------------------------------------------------------


async def test_adapters_that_routes_name_are_known_by_pod_after_one_look(world: World) -> None:
    engine = await world.engine(adapters=("fin", "law", "nobodys"))
    world.start()
    world.publish(adapters=("fin", "law", "absent"))
    await world.until(lambda: world.changes)
    assert world.feed.adapters_of("u0") == ("fin", "law")
    assert world.feed.adapters_of("unknown") == ()
    engine.adapters = ("law",)
    await world.until(lambda: world.feed.adapters_of("u0") == ("law",))
    assert world.changes == 2


async def test_an_engine_that_does_not_list_its_adapters_keeps_those_it_had(world: World) -> None:
    engine = await world.engine(adapters=("fin",))
    world.start()
    world.publish(adapters=("fin", "law"))
    await world.until(lambda: world.feed.adapters_of("u0") == ("fin",))

    async def no_list(engine: Engine, path: str, writer: asyncio.StreamWriter) -> None:
        in_use = b'vllm:lora_requests_info{running_lora_adapters="law",waiting_lora_adapters=""} 2\n'
        writer.write(http(page(1) + in_use) if path == "/metrics" else http(b"{", b"500 Oops"))

    engine.behave = no_list
    await world.until(lambda: world.feed.adapters_of("u0") == ("fin", "law"))
    assert list(world.loads().failures) == [0]


async def test_a_list_that_is_nested_without_end_is_no_list(world: World) -> None:
    async def nested(engine: Engine, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(engine.answer if path == "/metrics" else http(b"[" * 100_000))

    engine = await world.engine(behave=nested)
    world.start()
    world.publish(adapters=("fin",))
    await world.until(lambda: len(engine.asked) > 6)
    assert list(world.loads().failures) == [0]


async def test_a_fault_of_our_own_costs_the_engine_that_met_it_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.engine(answer=http(page(13)))
    await world.engine(answer=http(page(1)))

    def report_of_all_but_13(state: EngineState, before: EngineState | None, last: EngineReport) -> EngineReport:
        if state.running == 13:
            raise ZeroDivisionError
        return report_of(state, before, last)

    monkeypatch.setattr(metrics_feed, "report_of", report_of_all_but_13)
    world.start()
    with capture_logs() as logs:
        await world.until(lambda: world.loads().failures[0] >= 2 and world.loads().running[1] == 1)
    assert "the log has it" in str(world.described()["problem"])
    assert any(line["event"] == "engine_look_failed" for line in logs)


async def test_a_pod_that_two_servers_select_is_asked_once_for_the_adapters_of_both(world: World) -> None:
    engine = await world.engine(adapters=("fin", "law"))
    world.start()
    shared = (endpoint(0, engine),)
    servers = (Server("ns", "a", None, "vLLM", shared), Server("ns", "b", None, "vLLM", shared))
    routes = tuple(
        Route("ns", name, None, (name,), (Rule("", None, (Target("s", 1, i),)),))
        for i, name in enumerate(("fin", "law"))
    )
    world.feed.follow(Snapshot(9, servers, routes))
    await world.until(lambda: world.feed.adapters_of("u0") == ("fin", "law"))
    assert engine.connections == 1


async def test_no_engine_is_asked_for_adapters_that_no_route_names(world: World) -> None:
    engine = await world.engine(adapters=("fin",))
    world.start()
    await world.until(lambda: len(engine.asked) > 3)
    assert "/v1/models" not in engine.asked
