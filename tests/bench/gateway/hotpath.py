"""What one request costs in Python alone: a worker's real parts, with transports that lead nowhere.

`python -m tests.bench.gateway.hotpath [--profile] [--stream]` feeds whole requests to the inlet and whole answers to
the connections that the worker then writes to, in one process without a network. What is left are microseconds that no
kernel and no neighbour blurs: the number to look at while making the hot path faster.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop
from tests.bench.gateway.bare_relay import Client, Engine, Relay

from matrixinfer.gateway.access import AccessLog
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target
from matrixinfer.gateway.health import HealthBoard
from matrixinfer.gateway.ipc import Configure
from matrixinfer.gateway.ledger import Ledger
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.terms import TrafficDefaults
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.pool import PoolLimits
from matrixinfer.gateway.wire.server import _Connection
from matrixinfer.gateway.wire.upstream import UpstreamConnection
from matrixinfer.gateway.worker import Worker

_SLOTS = 1024
_TABLE_BYTES = 1 << 22
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
_BODY_END = b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":400,"completion_tokens":48,"total_tokens":448}}'
_ANSWER = (
    b'{"id":"chatcmpl-bench","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"x" * 300 + _BODY_END
)
_CHUNK = b'data: {"id":"chatcmpl-bench","choices":[{"index":0,"delta":{"content":"token"},"finish_reason":null}]}\n\n'


class NoTransport:
    """A transport that swallows what is written and remembers that something was."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += 1

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 40000) if name == "peername" else default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def nothing(self, *_args: object, **_options: object) -> None:
        return None

    resume_reading = pause_reading = set_write_buffer_limits = close = abort = nothing


def requests(size: int, stream: bool) -> list[bytes]:
    """Whole requests as a client sends them."""
    made = []
    for seed in range(512):
        system = "You are a careful assistant of a large company. " * 12
        text = " ".join(_WORDS[(seed * 7 + i * (seed % 13 + 1)) % len(_WORDS)] for i in range(size))
        user = text[: size - len(system) - 160]
        body = (
            f'{{"model":"m","stream":{str(stream).lower()},"max_tokens":64,"temperature":0.7,"messages":'
            f'[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{seed} {user}"}}]}}'
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nuser-agent: OpenAI/Python 3.54.0\r\n"
            "accept: application/json\r\ncontent-type: application/json\r\nauthorization: Bearer sk-bench\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


def answers(stream: bool) -> list[bytes]:
    """The pieces of an answer as they arrive."""
    if not stream:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER)
        return [head + _ANSWER]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(_CHUNK), _CHUNK)
    return [head, *[chunk] * 1000, b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]


def worker(endpoints: int, connections: list[UpstreamConnection]) -> Worker:
    """A worker as it ships, whose connections are appended to `connections` and lead nowhere."""
    config = Configure(
        log_level="info",
        inlet=InletLimits(),
        pool=PoolLimits(),
        traffic=TrafficDefaults(),
        access_log=True,
        upstream_ca_file=None,
        drain_seconds=1.0,
    )
    made = Worker(
        index=0,
        config=config,
        board=LoadBoard(LoadBoard.create(1, _SLOTS), 1, _SLOTS),
        ledger=Ledger(Ledger.create(1, _SLOTS), 1, _SLOTS),
        prefixes=PrefixIndex(
            PrefixIndex.create(workers=1, capacity=_SLOTS, table_bytes=_TABLE_BYTES),
            worker=0,
            workers=1,
            capacity=_SLOTS,
            table_bytes=_TABLE_BYTES,
        ),
        health=HealthBoard(HealthBoard.create(1, _SLOTS), 1, _SLOTS),
        listener=socket.socket(),
        access=AccessLog(os.open(os.devnull, os.O_WRONLY)),
    )
    made._handler.install(snapshot(endpoints))
    pool = made._pool

    async def connect(peer: Any) -> UpstreamConnection:
        connection = UpstreamConnection(pool._released)
        connection.connection_made(NoTransport())  # type: ignore[arg-type]
        pool._peers[connection] = peer
        connections.append(connection)
        return connection

    pool.connect = connect  # type: ignore[method-assign]
    return made


def snapshot(endpoints: int) -> Snapshot:
    """One model behind one route and one server."""
    pods = tuple(Endpoint(i, f"engine-{i}", f"uid-{i}", f"127.4.1.{i}", 8000) for i in range(endpoints))
    rule = Rule("all", None, (Target("server", 100, 0),))
    return Snapshot(
        1, (Server("default", "server", None, "vLLM", pods),), (Route("default", "route", "m", (), (rule,)),)
    )


async def run_worker(count: int, endpoints: int, size: int, stream: bool, start: Callable[[], None]) -> int:
    """Answer `count` requests; returns how many pieces went through."""
    upstream: list[UpstreamConnection] = []
    made = worker(endpoints, upstream)
    inlet = made._inlet
    loop = asyncio.get_running_loop()
    sent, pieces = requests(size, stream), answers(stream)
    async with asyncio.TaskGroup() as tasks:
        inlet.tasks = tasks
        clients = []
        for _ in range(8):
            clients.append(_Connection(inlet, loop))
            clients[-1].connection_made(NoTransport())  # type: ignore[arg-type]
        warm = 200
        for number in range(count + warm):
            if number == warm:
                start()
            client = clients[number % 8]
            client.data_received(sent[number % len(sent)])
            while (asking := next((c for c in upstream if c._sink is not None), None)) is None:
                await asyncio.sleep(0)
            for piece in pieces:
                asking.data_received(piece)
            while client._busy:
                await asyncio.sleep(0)
        for client in clients:
            client.connection_lost(None)
    made._access.close(1)
    return count * (len(pieces) - 2 if stream else 1)


async def run_relay(count: int, size: int, stream: bool, start: Callable[[], None]) -> int:
    """The same through the bare relay."""
    idle: list[Engine] = []
    engine = Engine(idle)
    engine.connection_made(NoTransport())
    idle.append(engine)
    relay = Relay([("127.0.0.1", 8000)])
    relay.engines = iter(lambda: ("127.0.0.1", 8000, idle), None)  # type: ignore[assignment]
    client = Client(relay)
    client.connection_made(NoTransport())
    sent, pieces = requests(size, stream), answers(stream)
    start()
    for number in range(count):
        client.data_received(sent[number % len(sent)])
        for piece in pieces:
            engine.data_received(piece)
    return count * (len(pieces) - 2 if stream else 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="hotpath", description=__doc__)
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--stream", action="store_true", help="streams of 1,000 chunks instead of whole answers")
    parser.add_argument("--endpoints", type=int, default=8)
    parser.add_argument("--size", type=int, default=1800)
    parser.add_argument("--count", type=int, default=0)
    arguments = parser.parse_args()
    count = arguments.count or (20 if arguments.stream else 10_000)
    profile = cProfile.Profile()
    began = 0.0

    def start() -> None:
        nonlocal began
        if arguments.profile:
            profile.enable()
        began = time.process_time()

    best = {}
    for _ in range(1 if arguments.profile else 5):
        for name, run in (
            ("worker", lambda: run_worker(count, arguments.endpoints, arguments.size, arguments.stream, start)),
            ("relay", lambda: run_relay(count, arguments.size, arguments.stream, start)),
        ):
            if arguments.profile and name == "relay":
                continue
            pieces = uvloop.run(run())
            spent = (time.process_time() - began) / pieces * 1e6
            best[name] = min(best.get(name, spent), spent)
    what = "chunk" if arguments.stream else "request"
    sys.stdout.write("".join(f"{name}: {spent:.2f} µs per {what}\n" for name, spent in best.items()))
    if arguments.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    main()
