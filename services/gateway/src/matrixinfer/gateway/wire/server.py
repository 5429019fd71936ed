"""The inlet: HTTP/1.1 from clients, parsed strictly by llhttp, one request of a connection at a time.

Owns connections, framing, limits and deadlines towards clients; knows nothing of models. A request reaches the
handler only when it is complete and within its limits. The traps: a half-understood request must never leave bytes
behind for the next one (every refusal closes the connection); a client that left must be noticed while its answer is
being made, so reading goes on during an answer, until two requests wait behind it; and answers that take no time must
take no other connection's: who sends many requests at once, or reads no answers, waits for its turn.
"""

import asyncio
import socket
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import httptools

from matrixinfer.gateway.wire.exchange import ClientExchange
from matrixinfer.gateway.wire.inlet import CONTINUE, LINGER_SECONDS, REFUSED_AT_A_TIME, BaseInlet, body_allowance
from matrixinfer.gateway.wire.judge import Head, judge
from matrixinfer.gateway.wire.message import Refusal, Request
from matrixinfer.gateway.wire.running import Running
from matrixinfer.service.logging import get_logger

__all__ = ["HttpInlet"]

log = get_logger("inlet")

# What may hold many requests is parsed in slices: those that wait their turn wait as bytes, not as objects.
_SLICE_BYTES = 4096
_QUEUE_LIMIT = 8
# Pieces of a body below this size are gathered in one buffer: as objects they would weigh more than their bytes.
_SMALL_PIECE_BYTES = 2048


class HttpInlet(BaseInlet["_Connection"]):
    """The inlet on httptools."""

    async def serve(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        """See Inlet."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            self.tasks = tasks
            await self.listen(lambda: _Connection(self, loop), listener, stopping)


class _Connection(asyncio.Protocol):
    """One client connection."""

    # An idle connection is held by the thousand: slots halve what it costs.
    __slots__ = (
        "_body_bytes",
        "_busy",
        "_charged_bytes",
        "_close_after",
        "_deadline",
        "_exchange",
        "_head",
        "_headers",
        "_is_slow",
        "_lingering",
        "_method",
        "_parser",
        "_paused_reading",
        "_peer",
        "_pieces",
        "_queue",
        "_running",
        "_started",
        "_starting",
        "_target",
        "_timer",
        "_transport",
        "_unparsed",
        "_unproductive_bytes",
        "_version",
        "inlet",
        "loop",
    )

    def __init__(self, inlet: HttpInlet, loop: asyncio.AbstractEventLoop) -> None:
        self.inlet = inlet
        self.loop = loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._queue: list[Request | Refusal] = []
        self._is_slow = False
        self._exchange: ClientExchange | None = None
        self._running: Running | None = None
        self._busy = False
        # Within `_answer_next`, where answers may be over as soon as they are begun.
        self._starting = False
        self._close_after = False
        self._lingering = False
        self._paused_reading = False
        self._started = False
        self._head: Head | None = None
        self._method = self._version = ""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes | bytearray] = []
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        # Requests behind the one that is answered, not yet parsed.
        self._unparsed = b""
        # Received since the parser last gave something away: an unfinished head, trailers, chunk extensions.
        self._unproductive_bytes = 0
        # Of the inlet's budget: the body being received, those in the queue, and that of the exchange until it begins.
        self._charged_bytes = 0

    # -- transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or refuse it when there are too many."""
        # A stream socket's transport reads and writes; uvloop's is no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self.inlet.limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.inlet.joined(self)
        surplus = len(self.inlet.connections) - self.inlet.limits.connections
        if surplus > REFUSED_AT_A_TIME:
            self._transport.abort()
        elif surplus > 0:
            self._refuse(503, "Too many connections; try again in a moment.")
            self._answer_next()
        else:
            # The first head of a connection must come as fast as any other head.
            self._expect_within(self.inlet.limits.head_seconds)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the exchange in progress, and give everything back."""
        if self._timer is not None:
            self._timer.cancel()
        self.give_back(self._charged_bytes)
        self._queue.clear()
        self.inlet.left(self)
        if self._exchange is not None:
            self._exchange.lost()
        if self._running is not None:
            self._running.cancel()
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
        else:
            self._expect_within(self.inlet.limits.write_stall_seconds)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_slow = False
        if self._exchange is not None:
            self._exchange.resumed()
        else:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        """Parse, as far as what was asked before leaves room."""
        if self._lingering or self._close_after:
            return
        if self._unparsed:
            self._unparsed += data
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size and not self._close_after:
            if len(self._queue) >= _QUEUE_LIMIT or (self._is_slow and not self._busy):
                self._unparsed = data[at:]
                break
            step = self._slice_bytes()
            piece = data[at : at + step] if at or size > step else data
            at += len(piece)
            if self._head is None and not self._unproductive_bytes and not self._busy:
                self._expect_within(self.inlet.limits.head_seconds)
            self._unproductive_bytes += len(piece)
            self._feed(piece)
            if not self._close_after:
                self._judge_progress()
            # Not from within the parser, which must not be fed again before it has returned.
            if self._queue:
                self._answer_next()
                if at < size and not self._busy and not self._close_after:
                    # However fast its answers are: the other connections have their turn in between.
                    self._unparsed = data[at:]
                    self.loop.call_soon(self._go_on)
                    break
        if not self._paused_reading and (self._unparsed or len(self._queue) > 1):
            self._paused_reading = True
            self._transport.pause_reading()

    def _slice_bytes(self) -> int:
        """How much may be parsed at a time: all that can only be the body of one request, else a slice."""
        rest = 0 if self._head is None else (self._head.length or 0) - self._body_bytes
        return rest if rest > _SLICE_BYTES else _SLICE_BYTES

    def _feed(self, data: bytes) -> None:
        while data and not self._close_after:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                data = self._without_upgrade(data[exc.args[0] :])
            except httptools.HttpParserCallbackError:
                # A fault of ours, not of the client's bytes: it must be seen.
                raise
            except httptools.HttpParserError as exc:
                self._refuse(400, f"The request is not valid HTTP/1.1: {exc}.")
            else:
                return

    def _judge_progress(self) -> None:
        """Bound what the parser keeps without telling: heads, trailers and chunk extensions."""
        limits = self.inlet.limits
        if self._head is not None:
            if self._unproductive_bytes > limits.head_bytes:
                self._refuse(400, "The request carries too much besides its body.")
        elif self._unproductive_bytes > limits.head_bytes or len(self._headers) > limits.head_fields:
            self._refuse(431, "The request head is too large.")

    # -- parser callbacks -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start over, unless this is the rest of a request that offered another protocol."""
        self._started = True
        if self._head is None:
            self._begin_message()

    def on_url(self, url: bytes) -> None:
        """Collect the target, which may come in pieces."""
        if self._head is None:
            self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; after the body it is a trailer and dropped."""
        if self._head is None:
            self._headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        """Judge the head before any of the body is taken."""
        if self._close_after or self._head is not None:
            return
        self._version = self._parser.get_http_version()
        self._method = self._parser.get_method().decode()
        limits = self.inlet.limits
        head = judge(self._method, self._target, self._version, self._headers, limits)
        if isinstance(head, Refusal):
            self._refuse(head.status, head.message)
            return
        self._head = head
        self._unproductive_bytes = 0
        if not self._busy and not self._queue:
            self._await_body(head)

    def on_body(self, data: bytes) -> None:
        """Collect the body within the limits."""
        if self._close_after:
            return
        inlet, limits, size = self.inlet, self.inlet.limits, len(data)
        self._unproductive_bytes = 0
        self._body_bytes += size
        self._charged_bytes += size
        inlet.buffered_bytes += size
        if self._body_bytes > limits.body_bytes:
            self._refuse(413, f"The request body exceeds {limits.body_bytes} bytes.")
        elif inlet.buffered_bytes > limits.buffered_bytes:
            self._refuse(503, "The gateway is receiving too much at once; try again in a moment.")
        else:
            self._keep(data)
            self._deadline += body_allowance(size)

    def on_message_complete(self) -> None:
        """Queue the request."""
        head = self._head
        if self._close_after or head is None:
            return
        if head.length != 0 and self._parser.should_upgrade():
            # llhttp stops here with the body unread; `_without_upgrade` goes on.
            return
        self._started = False
        self._unproductive_bytes = 0
        self._close_after = not head.keep_alive
        self._queue.append(self._request(head))
        self._begin_message()

    # -- parsing --------------------------------------------------------------------------------------------------

    def _begin_message(self) -> None:
        self._head = None
        self._method, self._target = "", b""
        self._headers, self._pieces = [], []
        self._body_bytes = 0

    def _await_body(self, head: Head) -> None:
        self._expect_within(self.inlet.limits.body_seconds)
        if head.expects_continue:
            self._transport.write(CONTINUE)

    def _keep(self, data: bytes) -> None:
        pieces = self._pieces
        if not pieces or len(data) >= _SMALL_PIECE_BYTES:
            pieces.append(data)
        elif isinstance(pieces[-1], bytearray):
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))

    def _request(self, head: Head) -> Request:
        pieces, path = self._pieces, head.path
        return Request(
            self._method,
            head.target,
            unquote_to_bytes(path) if b"%" in path else path,
            self._headers,
            bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces),
            self._version == "1.0",
            self._peer,
            self.inlet.clock(),
            head.fields,
        )

    def give_back(self, size: int) -> None:
        """Return bytes to the inlet's budget."""
        if size > self._charged_bytes:
            size = self._charged_bytes
        self._charged_bytes -= size
        self.inlet.buffered_bytes -= size

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Go on in HTTP/1.1 after a request that offered another protocol: llhttp stops behind its head.

        Returns what a new parser is to be fed: how the body is framed that is still to come, and the bytes left.
        """
        self._parser = httptools.HttpRequestParser(self)
        head = self._head
        if head is None:
            return rest
        framing = b"transfer-encoding: chunked" if head.length is None else b"content-length: %d" % head.length
        return b"POST / HTTP/1.1\r\nhost: resumed\r\n" + framing + b"\r\n\r\n" + rest

    # -- answering ------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str) -> None:
        """Answer this and nothing more. Only the first refusal counts: what follows a fault has no meaning."""
        if self._close_after:
            return
        self._close_after = True
        path = self._target.partition(b"?")[0]
        self._queue.append(Refusal(status, message, self._method, path, tuple(self._headers), self._peer))
        self._unparsed = b""
        self.give_back(self._body_bytes)
        self._begin_message()

    def _answer_next(self) -> None:
        """Answer what is queued until an answer takes its time; then be ready for more."""
        if self._busy or self._starting:
            return
        self._starting = True
        while self._queue and not self._busy and not self._is_slow and not self._transport.is_closing():
            item = self._queue.pop(0)
            if isinstance(item, Refusal):
                self._answer_refusal(item)
            else:
                self._answer(item)
        self._starting = False
        if not self._busy and (self._queue or not self._close_after):
            self._await_more()

    def _answer(self, request: Request) -> None:
        self._busy = True
        last = self._close_after and not self._queue
        exchange = self._exchange = ClientExchange(self, request, self._transport, keep_alive=not last)
        self._running = Running(self.inlet.handler(exchange), self.inlet.tasks, self._answered)
        self._running.go_on()

    def _answered(self, error: BaseException | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._running, self._busy = None, False
        if isinstance(error, Exception):
            # The edge of one connection: whatever breaks here must not end the others, which share the task group.
            log.error("answerer_failed", exc_info=error)
            self._transport.abort()
        if exchange is None:
            return
        exchange.release_body()
        if self._transport.is_closing():
            return
        if not exchange.ended:
            exchange.cut()
        if not exchange.keep_alive or self.inlet.draining:
            self._close_after = True
            self._queue.clear()
            self._linger(is_refusal=False)
        elif not self._starting:
            self._go_on()

    def _go_on(self) -> None:
        """Take up what came while an answer was made, or not yet read."""
        if self._transport.is_closing():
            return
        self._answer_next()
        if self._unparsed and not self._busy and not self._close_after:
            data, self._unparsed = self._unparsed, b""
            self._take(data)
        if self._paused_reading and not (self._busy or self._is_slow or self._unparsed or self._close_after):
            self._paused_reading = False
            self._transport.resume_reading()

    def _await_more(self) -> None:
        limits = self.inlet.limits
        if self._is_slow:
            self._expect_within(limits.write_stall_seconds)
        elif self._head is not None:
            self._await_body(self._head)
        else:
            self._expect_within(limits.head_seconds if self._started else limits.keep_alive_seconds)

    def _answer_refusal(self, refusal: Refusal) -> None:
        self._transport.write(self.inlet.refusal(refusal))
        self._linger(is_refusal=True)

    def _linger(self, *, is_refusal: bool) -> None:
        """Close so that the last answer survives: a reset for unread bytes would overtake it."""
        if self._transport.is_closing() or self._lingering:
            return
        self._lingering = True
        if self._paused_reading:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:
                # The client has reset the connection, of which the loop does not know yet.
                self._transport.abort()
                return
        elif not is_refusal:
            # TLS cannot half-close. Nothing is left to read, and an answer may end with the connection.
            self._transport.close()
            return
        self._expect_within(max(LINGER_SECONDS, self.inlet.limits.write_stall_seconds * bool(self._unsent())))

    def _end_lingering(self) -> None:
        if self._transport.can_write_eof():
            self._transport.abort()
        else:
            # Without a farewell the end of a TLS connection looks like an attack.
            self._transport.close()

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def close_when_idle(self) -> None:
        """Close now when nothing is being asked or answered, else after the answer."""
        if not (self._busy or self._started or self._queue or self._unparsed):
            self._transport.close()

    def abort(self) -> None:
        """Close without ceremony."""
        self._transport.abort()
        if self._running is not None:
            self._running.cancel()

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
            # The exchange has deadlines of its own; `_answer_next` arms this one again.
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._timer_fired)
        elif self._lingering:
            self._end_lingering()
        elif self._is_slow:
            # Answers wait that it does not take.
            self._transport.abort()
        elif self._started:
            self._refuse(408, "The request did not arrive in time.")
            self._answer_next()
        elif self._unsent():
            # A close would wait for ever for a client that takes nothing.
            self._transport.abort()
        else:
            self._transport.close()
