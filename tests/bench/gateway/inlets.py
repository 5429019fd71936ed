"""Which inlet: the processor time and the memory that each needs for the same work, taken in turns in one run.

`python -m tests.bench.gateway.inlets`: 1.8 kB chat requests over kept connections, answered at once, and connections
that do nothing. Processor time is the serving process's own, so it counts even where others use the machine.
"""

import argparse
import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import uvloop

from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.message import Exchange
from matrixinfer.gateway.wire.server import HttpInlet

INLETS: dict[str, type[Any]] = {"httptools": HttpInlet, "aiohttp": AiohttpInlet}
CONNECTIONS = 32
IDLE = 2000
_BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"word " * 340)
_ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"%s"}}]}' % (b"answer " * 60)
# What a client library sends.
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway:8080\r\naccept: application/json\r\n"
    b"accept-encoding: gzip, deflate\r\nuser-agent: OpenAI/Python 3.54.0\r\nauthorization: Bearer sk-0123456789\r\n"
    b"content-type: application/json\r\nconnection: keep-alive\r\nx-stainless-lang: python\r\n"
    b"content-length: %d\r\n\r\n" % len(_BODY)
) + _BODY


async def _serve(kind: str, listener: socket.socket) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.begin(200, [(b"content-type", b"application/json"), (b"x-request-id", b"0123456789")], len(_ANSWER))
        exchange.write(_ANSWER)
        exchange.finish()

    inlet = INLETS[kind](answer, lambda refusal: ([], refusal.message.encode()), InletLimits(), time.monotonic)
    listener.setblocking(False)
    await inlet.serve(listener, asyncio.Event())


class _Client(asyncio.Protocol):
    """Asks again as soon as it is answered."""

    def __init__(self, times: int, done: asyncio.Event) -> None:
        self.left = times
        self.done = done
        self.out: Any = None
        self.received = 0

    def connection_made(self, transport: Any) -> None:
        self.out = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not data.endswith(_ANSWER[-20:]):
            return
        self.left -= 1
        if self.left:
            self.out.write(REQUEST)
        else:
            self.out.close()
            self.done.set()


class Subject:
    """One serving process."""

    def __init__(self, kind: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "tests.bench.gateway.inlets", "--serve", kind, "--fd", str(listener.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        listener.close()

    def cpu_seconds(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as file:  # noqa: PTH123 - a file of /proc is no path of ours
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        with open(f"/proc/{self.process.pid}/statm") as file:  # noqa: PTH123 - likewise
            return int(file.read().split()[1]) * resource.getpagesize()

    async def ask(self, times: int) -> float:
        """Return the microseconds of processor time that a request cost."""
        before, ends = self.cpu_seconds(), [asyncio.Event() for _ in range(CONNECTIONS)]
        loop = asyncio.get_running_loop()
        for end in ends:
            await loop.create_connection(lambda end=end: _Client(times // CONNECTIONS, end), "127.0.0.1", self.port)
        for end in ends:
            await end.wait()
        return (self.cpu_seconds() - before) / times * 1e6

    async def idle(self, count: int) -> float:
        """Return the bytes that a connection costs which has been used once and does nothing."""
        before = self.resident_bytes()
        clients = [await self.asked_once() for _ in range(count)]
        cost = (self.resident_bytes() - before) / count
        for client in clients:
            client.close()
        return cost

    async def asked_once(self) -> asyncio.StreamWriter:
        """Return a connection that has had one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(REQUEST)
        await reader.readuntil(_ANSWER[-20:])
        return writer

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


async def _measure(requests: int, rounds: int) -> None:
    subjects = {kind: Subject(kind) for kind in INLETS}
    try:
        costs: dict[str, list[float]] = {kind: [] for kind in INLETS}
        for subject in subjects.values():
            await subject.ask(CONNECTIONS * 20)
        for _ in range(rounds):
            for kind, subject in subjects.items():
                costs[kind].append(await subject.ask(requests))
        medians = {kind: statistics.median(found) for kind, found in costs.items()}
        for kind, subject in subjects.items():
            idle = await subject.idle(IDLE) / 1024
            _say(f"{kind:10} {medians[kind]:6.1f} µs of processor time a request, {idle:5.1f} KiB an idle connection")
        _say(f"aiohttp / httptools: {medians['aiohttp'] / medians['httptools']:.2f}")
    finally:
        for subject in subjects.values():
            subject.stop()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=INLETS, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    work = (
        _serve(asked.serve, socket.socket(fileno=asked.fd)) if asked.serve else _measure(asked.requests, asked.rounds)
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
