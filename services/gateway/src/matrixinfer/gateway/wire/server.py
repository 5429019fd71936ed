"""The inlet: HTTP/1.1 from clients, parsed strictly by llhttp, one request of a connection at a time.

Owns connections, framing, limits and deadlines towards clients; knows nothing of models. A request reaches the
handler only when it is complete and within its limits. The traps: a half-understood request must never leave bytes
behind for the next one (every refusal closes the connection), and a client that left must be noticed while its answer
is being made, so reading goes on during an answer.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from urllib.parse import unquote_to_bytes

import httptools

from matrixinfer.gateway.wire.message import Exchange, Headers, Refusal, Request, Watcher, has_no_body, response_head

__all__ = ["Answerer", "HttpInlet", "InletLimits"]

_SINGLE_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect"})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_END_OF_CHUNKS = b"0\r\n\r\n"
_LINGER_SECONDS = 1.0
# A body may take longer than its allowance when it keeps coming at this rate.
_BODY_BYTES_PER_SECOND = 16 * 1024


@dataclass(frozen=True, slots=True)
class InletLimits:
    """What one client may use. Sizes in bytes, times in seconds."""

    head_bytes: int = 64 * 1024
    body_bytes: int = 64 * 1024 * 1024
    buffered_bytes: int = 512 * 1024 * 1024
    """All bodies being received by one worker together."""
    connections: int = 20_000
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    write_stall_seconds: float = 60.0
    write_buffer_bytes: int = 256 * 1024


Answerer: TypeAlias = Callable[[Exchange], Awaitable[None]]
"""Answers one exchange. Must not raise; is cancelled when the client leaves."""

Refuser: TypeAlias = Callable[[Refusal], tuple[Headers, bytes]]
"""Turns a refusal into headers and body."""


class HttpInlet:
    """Listens on sockets that it is given, until drained."""

    def __init__(self, handler: Answerer, refuser: Refuser, limits: InletLimits, clock: Callable[[], float]) -> None:
        """`clock` stamps requests with the time at which they were complete."""
        self.clock = clock
        self.handler = handler
        self.refuser = refuser
        self.limits = limits
        self.draining = False
        """Set to answer with `Connection: close` from now on."""
        self.buffered_bytes = 0
        self.connections: set[_Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def serve(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        """Accept until `stopping`, then close idle connections, let busy ones finish, and return when all are closed.

        Cancellation cuts what is left.
        """
        async with asyncio.TaskGroup() as tasks:
            self.tasks = tasks
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: _Connection(self, loop), sock=listener, backlog=4096)
            try:
                await stopping.wait()
                server.close()
                self.draining = True
                for connection in tuple(self.connections):
                    connection.close_when_idle()
                await self._empty.wait()
            finally:
                server.close()
                for connection in tuple(self.connections):
                    connection.abort()

    def joined(self, connection: "_Connection") -> None:
        """Count a new connection."""
        self.connections.add(connection)
        self._empty.clear()

    def left(self, connection: "_Connection") -> None:
        """Count a connection that was closed."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()


class _Connection(asyncio.Protocol):
    """One client connection."""

    # An idle connection is held by the thousand: slots halve what it costs.
    __slots__ = (
        "_body",
        "_body_bytes",
        "_busy",
        "_close_after",
        "_deadline",
        "_exchange",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_is_slow",
        "_lingering",
        "_method",
        "_parser",
        "_paused_reading",
        "_peer",
        "_queue",
        "_resumed",
        "_started",
        "_target",
        "_task",
        "_timer",
        "_transport",
        "_version",
        "inlet",
        "loop",
    )

    def __init__(self, inlet: HttpInlet, loop: asyncio.AbstractEventLoop) -> None:
        self.inlet = inlet
        self.loop = loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._queue: deque[Request | Refusal] = deque()
        self._is_slow = False
        self._exchange: _Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._close_after = False
        self._lingering = False
        self._paused_reading = False
        self._resumed = False
        self._started = False
        self._method = self._version = ""
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._head_bytes = 0
        self._begin_message()

    # -- transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or refuse it when there are too many."""
        # A stream socket's transport reads and writes; uvloop's is no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self.inlet.limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.inlet.joined(self)
        if len(self.inlet.connections) > self.inlet.limits.connections:
            self._refuse(503, "Too many connections; try again in a moment.")
            return
        # The first head of a connection must come as fast as any other head.
        self._expect_within(self.inlet.limits.head_seconds)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the exchange in progress, and give everything back."""
        if self._timer is not None:
            self._timer.cancel()
        self._drop_body()
        self._queue.clear()
        self.inlet.left(self)
        if self._exchange is not None:
            self._exchange.lost()
        if self._task is not None:
            self._task.cancel()
        # Parser and protocol point at each other; without this every connection waits for the garbage collector.
        self._parser = None

    def eof_received(self) -> bool:
        """Treat a half-closed client as one that left: nobody can tell the two apart in time."""
        return False

    def pause_writing(self) -> None:
        """The client is slow."""
        self._is_slow = True
        if self._exchange is not None:
            self._exchange.paused()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_slow = False
        if self._exchange is not None:
            self._exchange.resumed()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._lingering or self._close_after:
            return
        if self._in_head:
            if not self._head_bytes and not self._busy:
                self._expect_within(self.inlet.limits.head_seconds)
            self._head_bytes += len(data)
        self._feed(data)
        if self._in_head and self._head_bytes > self.inlet.limits.head_bytes:
            self._refuse(431, "The request head is too large.")
        if len(self._queue) > 1 and not self._paused_reading:
            self._paused_reading = True
            self._transport.pause_reading()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._upgrade_ignored(data[exc.args[0] :])
        except httptools.HttpParserError as exc:
            self._refuse(400, f"The request is not valid HTTP/1.1: {exc}.")

    # -- parser callbacks -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start over."""
        self._started = True
        if not self._resumed:
            self._begin_message()

    def on_url(self, url: bytes) -> None:
        """Collect the target, which may come in pieces."""
        if not self._resumed:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; after the body it is a trailer and dropped."""
        if self._in_head and not self._resumed:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Judge the head before any of the body is taken."""
        if self._close_after or self._resumed:
            return
        self._in_head = False
        self._version = self._parser.get_http_version()
        self._method = self._parser.get_method().decode()
        refusal = self._judge_head()
        if refusal is not None:
            self._refuse(refusal.status, refusal.message)
            return
        if self._header(b"expect") is not None and self._version == "1.1" and not self._busy:
            self._transport.write(_CONTINUE)
        if not self._busy:
            self._expect_within(self.inlet.limits.body_seconds)

    def on_body(self, data: bytes) -> None:
        """Collect the body within the limits."""
        if self._close_after:
            return
        limits, inlet = self.inlet.limits, self.inlet
        self._body_bytes += len(data)
        inlet.buffered_bytes += len(data)
        if self._body_bytes > limits.body_bytes:
            self._refuse(413, f"The request body exceeds {limits.body_bytes} bytes.")
        elif inlet.buffered_bytes > limits.buffered_bytes:
            self._refuse(503, "The gateway is receiving too much at once; try again in a moment.")
        else:
            self._body.append(data)
            self._deadline += len(data) / _BODY_BYTES_PER_SECOND

    def on_message_complete(self) -> None:
        """Queue the request."""
        if self._close_after:
            return
        if self._parser.should_upgrade() and self._framing() and not self._resumed:
            # llhttp stops here with the body unread; `_upgrade_ignored` goes on.
            return
        self._resumed = self._started = False
        self._in_head, self._head_bytes = True, 0
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._drop_body()
        self._close_after = not self._stays_open()
        self._queue.append(self._request(body))
        self._next()

    # -- parsing --------------------------------------------------------------------------------------------------

    def _begin_message(self) -> None:
        self._in_head = True
        self._target = bytearray()
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0

    def _drop_body(self) -> None:
        self.inlet.buffered_bytes -= self._body_bytes
        self._body, self._body_bytes = [], 0

    def _header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self._headers if key == name), None)

    def _framing(self) -> bytes:
        """The header lines that say how long the body is; empty when there is none."""
        for name, value in self._headers:
            if name == b"transfer-encoding" or (name == b"content-length" and int(value)):
                return name + b": " + value + b"\r\n"
        return b""

    def _stays_open(self) -> bool:
        tokens = {t.strip().lower() for n, v in self._headers if n == b"connection" for t in v.split(b",")}
        return b"close" not in tokens and (self._version == "1.1" or b"keep-alive" in tokens)

    def _request(self, body: bytes) -> Request:
        target = bytes(self._target)
        url = httptools.parse_url(target) if target != b"*" else None
        path = (url.path or b"/") if url else target
        if url is not None and url.schema is not None:
            target = path + (b"?" + url.query if url.query else b"")
        return Request(
            self._method,
            target,
            unquote_to_bytes(path) if b"%" in path else path,
            self._headers,
            body,
            self._version == "1.0",
            self._peer,
            self.inlet.clock(),
        )

    def _judge_head(self) -> Refusal | None:
        size = len(self._target) + sum(len(n) + len(v) + 4 for n, v in self._headers)
        if size > self.inlet.limits.head_bytes:
            return Refusal(431, "The request head is too large.")
        if self._version not in ("1.1", "1.0"):
            return Refusal(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if self._method == "CONNECT":
            return Refusal(405, "CONNECT is not supported.")
        return self._judge_headers(self._version)

    def _judge_headers(self, version: str) -> Refusal | None:
        seen = [name for name, _ in self._headers if name in _SINGLE_HEADERS]
        if len(seen) != len(set(seen)):
            return Refusal(400, "A header that may occur once occurs twice.")
        if version == "1.1" and b"host" not in seen:
            return Refusal(400, "The request has no Host header.")
        coding = self._header(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            return Refusal(501, "The only transfer coding that is supported is 'chunked'.")
        expect = self._header(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            return Refusal(417, "The only expectation that is supported is '100-continue'.")
        length = self._header(b"content-length")
        if length is not None and int(length) > self.inlet.limits.body_bytes:
            return Refusal(413, f"The request body exceeds {self.inlet.limits.body_bytes} bytes.")
        return None

    def _upgrade_ignored(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 after a request that offered another protocol: llhttp stops behind its head.

        A new parser is told how the unread body is framed and gets the bytes that are left.
        """
        if self._close_after:
            return
        self._parser = httptools.HttpRequestParser(self)
        if framing := self._framing() if self._started else b"":
            self._resumed = True
            rest = b"POST / HTTP/1.1\r\nhost: resumed\r\n" + framing + b"\r\n" + rest
        if rest:
            self._feed(rest)

    # -- answering ------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str) -> None:
        self._close_after = True
        self._drop_body()
        path = bytes(self._target).partition(b"?")[0]
        self._queue.append(Refusal(status, message, self._method, path, tuple(self._headers)))
        self._next()

    def _next(self) -> None:
        if self._busy or not self._queue or self._transport.is_closing():
            return
        item = self._queue.popleft()
        if isinstance(item, Refusal):
            self._answer_refusal(item)
            return
        self._busy = True
        last = self._close_after and not self._queue
        self._exchange = _Exchange(self, item, self._transport, keep_alive=not last)
        if self._is_slow:
            # The answer before is not out yet, and asyncio tells of a full buffer only once.
            self._exchange.paused()
        self._task = self.inlet.tasks.create_task(self._run(self._exchange))

    async def _run(self, exchange: "_Exchange") -> None:
        try:
            await self.inlet.handler(exchange)
        finally:
            self._task = None
            self._done(exchange)

    def _done(self, exchange: "_Exchange") -> None:
        self._exchange = None
        self._busy = False
        if self._transport.is_closing():
            return
        if not exchange.ended:
            exchange.cut()
        if not exchange.keep_alive or self.inlet.draining:
            self._close_after = True
            self._queue.clear()
            self._linger()
            return
        self._next()
        if self._busy:
            return
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        limits = self.inlet.limits
        self._expect_within(limits.head_seconds if self._started else limits.keep_alive_seconds)

    def _answer_refusal(self, refusal: Refusal) -> None:
        headers, body = self.inlet.refuser(refusal)
        head = response_head(
            refusal.status, [*headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        )
        self._transport.write(head if refusal.method == "HEAD" else head + body)
        self._linger()

    def _linger(self) -> None:
        """Close so that the last answer survives: a reset for unread bytes would overtake it."""
        if self._transport.is_closing() or self._lingering:
            return
        self._lingering = True
        if self._paused_reading:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._expect_within(max(_LINGER_SECONDS, self.inlet.limits.write_stall_seconds * bool(self._unsent())))

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def close_when_idle(self) -> None:
        """Close now when nothing is being asked or answered, else after the answer."""
        if not self._busy and not self._started:
            self._transport.close()

    def abort(self) -> None:
        """Close without ceremony."""
        self._transport.abort()

    # -- deadlines ------------------------------------------------------------------------------------------------

    def _expect_within(self, seconds: float) -> None:
        # The timer is re-armed lazily: moving a deadline costs an addition, not a timer.
        self._deadline = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self._transport.is_closing():
            return
        if self._busy:
            # The exchange has deadlines of its own; `_done` arms this one again.
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._timer_fired)
        elif self._lingering:
            self._transport.abort()
        elif self._started:
            self._refuse(408, "The request did not arrive in time.")
        elif self._unsent():
            # A close would wait for ever for a client that takes nothing.
            self._transport.abort()
        else:
            self._transport.close()


class _Exchange:
    """One request on a connection and its answer."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_delimited_by_close",
        "_is_paused",
        "_out",
        "_stall",
        "_transport",
        "_watcher",
        "begun",
        "bytes_out",
        "ended",
        "gone",
        "keep_alive",
        "request",
        "stalled",
    )

    def __init__(
        self, connection: _Connection, request: Request, transport: asyncio.Transport, *, keep_alive: bool
    ) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.begun = False
        self.ended = False
        self.gone = False
        self.stalled = False
        self.bytes_out = 0
        self._connection = connection
        self._transport = transport
        self._chunked = False
        self._delimited_by_close = False
        self._is_paused = False
        self._out: list[bytes] = []
        self._watcher: Watcher | None = None
        self._stall: asyncio.TimerHandle | None = None

    def watch(self, watcher: Watcher | None) -> None:
        """Tell `watcher` from now on what the client does."""
        self._watcher = watcher
        if watcher is None:
            return
        if self.gone:
            watcher.client_gone()
        elif self._is_paused:
            watcher.client_paused()

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        """Write the head, framed for this client."""
        self.begun = True
        if self._connection.inlet.draining:
            self.keep_alive = False
        framing: list[tuple[bytes, bytes]] = []
        if has_no_body(status):
            pass
        elif length is not None:
            framing.append((b"content-length", b"%d" % length))
        elif self.request.http10:
            self.keep_alive = False
            self._delimited_by_close = True
        else:
            self._chunked = True
            framing.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            framing.append((b"connection", b"close"))
        elif self.request.http10:
            framing.append((b"connection", b"keep-alive"))
        self._out.append(response_head(status, (*headers, *framing)))

    def write(self, data: bytes) -> None:
        """Write a piece of the body."""
        if not data:
            return
        self.bytes_out += len(data)
        if self._chunked:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)

    def flush(self) -> None:
        """Hand what was written to the network, in one call."""
        if self._out and not self.gone:
            self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
        self._out.clear()

    def finish(self) -> None:
        """End the answer."""
        if self.ended:
            return
        self.ended = True
        if self._chunked:
            self._out.append(_END_OF_CHUNKS)
        self.flush()
        self._end_stall()

    def cut(self) -> None:
        """End the answer visibly incomplete."""
        self.ended = True
        self.flush()
        self._end_stall()
        if self._delimited_by_close:
            # The end of the connection would read as the end of the answer; a reset does not.
            self._transport.abort()
        self.keep_alive = False

    def lost(self) -> None:
        """The connection was lost."""
        self.gone = True
        self._end_stall()
        if self._watcher is not None:
            self._watcher.client_gone()

    def paused(self) -> None:
        """The connection takes no more for now."""
        self._is_paused = True
        seconds = self._connection.inlet.limits.write_stall_seconds
        self._stall = self._connection.loop.call_later(seconds, self._stall_fired)
        if self._watcher is not None:
            self._watcher.client_paused()

    def resumed(self) -> None:
        """The connection takes more again."""
        self._is_paused = False
        self._end_stall()
        if self._watcher is not None:
            self._watcher.client_resumed()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stall_fired(self) -> None:
        self._stall = None
        self.stalled = True
        self._transport.abort()
