"""A gateway worker in this process, real sockets on loopback, and engines that do exactly what a test says."""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from matrixinfer.gateway.access import AccessRecord
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.load import Loads, burden
from matrixinfer.gateway.core.types import (
    Endpoint,
    Route,
    Rule,
    Server,
    Snapshot,
    Target,
    TrafficPolicy,
)
from matrixinfer.gateway.handler import Handler
from matrixinfer.gateway.health import HealthBoard
from matrixinfer.gateway.ledger import Ledger
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.stats import Stats
from matrixinfer.gateway.terms import TrafficDefaults
from matrixinfer.gateway.tracing import Tracer
from matrixinfer.gateway.wire.inlet import Answerer, InletLimits
from matrixinfer.gateway.wire.pool import PoolLimits, UpstreamPool
from matrixinfer.gateway.wire.server import HttpInlet
from matrixinfer.service.clock import monotonic, utcnow

OK = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'


@dataclass
class Asked:
    """One request as an engine received it."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> dict[bytes, bytes]:
        lines = self.head.split(b"\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines if line)}


Behaviour = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


async def answer_ok(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def answering(*pieces: bytes) -> Behaviour:
    """An engine that answers with these bytes."""

    async def behave(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return behave


@dataclass
class StubEngine:
    """A server on an address of its own. `behave` answers; the connection stays open until it closes it."""

    address: str
    port: int
    behave: Behaviour = answer_ok
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway closed a connection."""
    server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                asked = Asked(head, b"")
                asked.body = await reader.readexactly(int(asked.headers.get(b"content-length", b"0")))
                self.asked.append(asked)
                async with asyncio.TaskGroup() as tasks:
                    behaving = tasks.create_task(self.behave(asked, writer))
                    watching = tasks.create_task(_until_closed(reader, behaving))
                    await behaving
                    watching.cancel()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.lost.set()
            self.writers.discard(writer)
            writer.close()

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in tuple(self.writers):
            writer.transport.abort()


async def _until_closed(reader: asyncio.StreamReader, behaving: asyncio.Task[None]) -> None:
    """End the behaviour when the gateway hangs up, as an engine would."""
    while not reader.at_eof():
        try:
            # Peeks without consuming: a pipelining gateway would be a bug that shows elsewhere.
            await reader._wait_for_data("watch")  # type: ignore[attr-defined]
        except OSError:
            break
        if reader._buffer:  # type: ignore[attr-defined]
            return
    behaving.cancel()


class Answer(msgspec.Struct):
    """One response as a client received it."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    complete: bool

    @property
    def error(self) -> dict[str, Any]:
        return dict(msgspec.json.decode(self.body)["error"])


class Client:
    """A client connection that reads answers strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *rest = raw[:-4].split(b"\r\n")
        pairs = [one.partition(b":") for one in rest]
        assert len({name for name, _, _ in pairs}) == len(pairs), f"a header came twice: {raw!r}"
        return int(line.split(b" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def answer(self) -> Answer:
        status, headers = await self.head()
        if b"content-length" in headers:
            size = int(headers[b"content-length"])
            try:
                return Answer(status, headers, await self.reader.readexactly(size), complete=True)
            except asyncio.IncompleteReadError as exc:
                return Answer(status, headers, exc.partial, complete=False)
        if headers.get(b"transfer-encoding") == b"chunked":
            return Answer(status, headers, *await self.chunks())
        return Answer(status, headers, await self.reader.read(), complete=True)

    async def chunks(self) -> tuple[bytes, bool]:
        body = bytearray()
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError):
            return bytes(body), False
        return bytes(body), True

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def is_closed(self) -> bool:
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


def post(body: bytes = b'{"model":"m"}', path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """A request as bytes; header names with underscores become dashes."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nhost: gw\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def not_accepting(engine: StubEngine) -> Iterator[None]:
    """A backlog that is full looks like a node that drops packets."""
    with socket.create_server((engine.address, engine.port), backlog=0), ExitStack() as fillers:
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((engine.address, engine.port))
        yield


T = TypeVar("T")


def mapped(descriptor: int, board: Callable[[int], T]) -> T:
    """A board of this test's own: its memory lives as long as the map, without the descriptor."""
    try:
        return board(descriptor)
    finally:
        os.close(descriptor)


class Rig:
    """A worker without processes around it."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.engines: list[StubEngine] = []
        self.records: list[AccessRecord] = []
        self.recorded = asyncio.Event()
        self.stats = Stats()
        self.board = mapped(LoadBoard.create(1, 64), lambda fd: LoadBoard(fd, 1, 64))
        self.prefixes = mapped(
            PrefixIndex.create(workers=1, capacity=64, table_bytes=1 << 16),
            lambda fd: PrefixIndex(fd, worker=0, workers=1, capacity=64, table_bytes=1 << 16),
        )
        self.ledger = mapped(Ledger.create(1, 64), lambda fd: Ledger(fd, 1, 64))
        self.health = mapped(HealthBoard.create(1, 64), lambda fd: HealthBoard(fd, 1, 64))
        self.limits = InletLimits()
        self.pool_limits = PoolLimits()
        self.defaults = TrafficDefaults(retry_interval_seconds=0, queue=QueueLimits(busy_seconds=0, empty_seconds=0))
        self.policy = TrafficPolicy()
        self.priority = 0
        self.wanted: list[Server] = []
        """Servers that the worker asked the supervisor for."""
        self.model: str | None = None
        self.name = "m"
        self.engine_name = "vLLM"
        self.upstream_tls = ssl.create_default_context()
        self.engine_tls: ssl.SSLContext | None = None
        self.revision = 0
        self.tracer: Tracer | None = None
        self.stopping = asyncio.Event()
        self.clients: list[Client] = []
        self.port = 0
        self.make_inlet: Callable[..., Any] = HttpInlet
        self.tls: ssl.SSLContext | None = None
        """Of the inlet."""

    def write(self, record: AccessRecord) -> None:
        """Stand in for the access log."""
        self.records.append(record)
        self.recorded.set()

    async def engine(self, behave: Behaviour = answer_ok, *, listening: bool = True) -> StubEngine:
        address = f"127.8.0.{len(self.engines) + 2}"
        engine = StubEngine(address, self._port(address), behave)
        if listening:
            engine.server = await asyncio.start_server(engine.serve, address, engine.port, ssl=self.engine_tls)
        self.engines.append(engine)
        if self.port:
            self.publish()
        return engine

    def _port(self, address: str) -> int:
        with socket.create_server((address, 0)) as probe:
            return int(probe.getsockname()[1])

    async def start(self, **limits: Any) -> "Rig":
        self.limits = replace(self.limits, **limits)
        self.pool = UpstreamPool(self.pool_limits, self.upstream_tls)
        self.handler = Handler(
            worker=0,
            pool=self.pool,
            board=self.board,
            row=self.board.row(0),
            prefixes=self.prefixes,
            ledger=self.ledger,
            health=self.health,
            stats=self.stats,
            access=self,  # type: ignore[arg-type]
            defaults=self.defaults,
            now=utcnow,
            clock=monotonic,
            new_request_id=lambda: f"made-{len(self.records)}",
            tracer=self.tracer,
            wake=self.wanted.append,
        )
        await self.serve(self.handler)
        self.publish()
        await asyncio.sleep(0)
        return self

    async def serve(self, answerer: Answerer) -> None:
        """Take requests on a new port and have them answered."""
        self.inlet = self.make_inlet(answerer, self.handler.refuse, self.limits, monotonic, self.tls)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self.serving = self.tasks.create_task(self.inlet.serve(listener, self.stopping))
        await asyncio.sleep(0)

    def publish(self, *, without: tuple[StubEngine, ...] = (), gone: tuple[str, ...] = ()) -> None:
        """Route model `m` (and adapter `lora`) to the engines."""
        self.revision += 1
        endpoints = tuple(
            Endpoint(i, f"pod-{i}", f"uid-{i}", e.address, e.port, tls=self.engine_tls is not None, mark=i)
            for i, e in enumerate(self.engines)
            if e not in without
        )
        server = Server("ns", "s", self.model, self.engine_name, endpoints, self.policy)
        route = Route(
            "ns", "r", self.name, ("lora",), (Rule("rule", None, (Target("s", 100, 0),)),), 1, priority=self.priority
        )
        self.handler.install(Snapshot(self.revision, (server,), (route,), gone))

    async def client(self, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    async def ask(self, request: bytes | None = None) -> Answer:
        client = await self.client()
        client.send(request or post())
        answer = await client.answer()
        client.close()
        return answer

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for what happens between two sockets of this process, where there is no event to wait for."""
        while not holds():
            await asyncio.sleep(0)

    async def record(self) -> AccessRecord:
        """Wait for the newest access record."""
        while not self.records:
            self.recorded.clear()
            await self.recorded.wait()
        return self.records[-1]

    def load(self, slot: int, count: int = 1) -> Callable[[], None]:
        """Let an endpoint look busy until the returned function is called."""
        claims = [self.board.row(0).enter(slot, burden(0)) for _ in range(count)]

        def end() -> None:
            for claim in claims:
                claim.end()

        return end

    def loads(self) -> Loads:
        return self.board.reader(range(64)).loads()

    def in_flight(self) -> list[int]:
        return list(self.board.reader(range(64)).loads().requests)
