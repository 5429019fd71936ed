"""The yardstick: the smallest HTTP/1.1 relay that asyncio, uvloop and httptools allow. Round robin and nothing else.

It frames both messages properly and writes both heads anew, as any relay must; it has no deadlines, limits, retries,
back-pressure, routing, metrics, log or error answers. What a gateway needs beyond this is its own cost.

`python -m tests.bench.gateway.bare_relay 127.0.0.1:8080 127.4.0.1:8000 127.4.0.2:8000 …`
"""

import asyncio
import sys
from itertools import cycle
from typing import Any

import httptools
import uvloop

_HOP_BY_HOP = frozenset({b"connection", b"content-length", b"host", b"keep-alive", b"transfer-encoding"})


class Engine(asyncio.Protocol):
    """A connection to an engine, for one request at a time."""

    def __init__(self, idle: "list[Engine]") -> None:
        self.idle = idle
        self.client: Client
        self.transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, client: "Client", data: bytes) -> None:
        self.client = client
        self.parser = httptools.HttpResponseParser(self)
        self.headers: list[bytes] = []
        self.out: list[bytes] = []
        self.is_chunked = self.is_done = False
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        client = self.client
        if self.is_done:
            self.idle.append(self)
        if self.out:
            client.transport.write(b"".join(self.out))
            self.out.clear()
        if self.is_done:
            client.answered()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"transfer-encoding":
            self.is_chunked = True
        elif name not in _HOP_BY_HOP or name == b"content-length":
            self.headers += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        framing = b"transfer-encoding: chunked\r\n\r\n" if self.is_chunked else b"\r\n"
        self.out += (b"HTTP/1.1 %d OK\r\n" % self.parser.get_status_code(), *self.headers, framing)

    def on_body(self, data: bytes) -> None:
        self.out += (b"%x\r\n" % len(data), data, b"\r\n") if self.is_chunked else (data,)

    def on_message_complete(self) -> None:
        self.is_done = True
        if self.is_chunked:
            self.out.append(b"0\r\n\r\n")


class Client(asyncio.Protocol):
    """A connection of a client."""

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.headers: list[bytes] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in _HOP_BY_HOP:
            self.headers += (name, b": ", value, b"\r\n")

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        host, port, idle = next(self.relay.engines)
        body = b"".join(self.body)
        request = b"".join(
            (
                self.parser.get_method(),
                b" %b HTTP/1.1\r\nhost: %b:%d\r\n" % (self.url, host.encode(), port),
                *self.headers,
                b"content-length: %d\r\n\r\n" % len(body),
                body,
            )
        )
        if idle:
            idle.pop().ask(self, request)
        else:
            self.opening = asyncio.get_running_loop().create_task(self.ask_anew(host, port, idle, request))

    async def ask_anew(self, host: str, port: int, idle: list[Engine], request: bytes) -> None:
        _, engine = await asyncio.get_running_loop().create_connection(lambda: Engine(idle), host, port)
        engine.ask(self, request)

    def answered(self) -> None:
        """Ready for the next request: one at a time, the load does not pipeline."""


class Relay:
    """All engines, in turn."""

    def __init__(self, engines: list[tuple[str, int]]) -> None:
        pools: list[tuple[str, int, list[Engine]]] = [(host, port, []) for host, port in engines]
        self.engines = cycle(pools)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def main(listen: str, engines: list[str]) -> None:
    relay = Relay([_address(engine) for engine in engines])
    server = await asyncio.get_running_loop().create_server(lambda: Client(relay), *_address(listen), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2:]))
