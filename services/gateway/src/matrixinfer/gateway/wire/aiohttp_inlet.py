"""The other inlet: connections, parsing and keep-alive by aiohttp's low-level server, all else by what is ours.

It is there to be compared with and to fall back to; heads are judged, and answers written, by the code that the first
inlet uses. The traps of aiohttp that this module is about: without `handler_cancellation` a client that leaves is
noticed when its answer is complete; it gives a client all the time of the world to send a head or a body; bodies are
inflated unless told otherwise; and its refusals are plain text.

Requests behind the one that is answered are parsed ahead, at most 32 of them.
"""

import asyncio
import logging
import socket
from dataclasses import replace
from enum import Enum
from typing import cast
from urllib.parse import unquote_to_bytes

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from matrixinfer.gateway.wire.exchange import ClientExchange
from matrixinfer.gateway.wire.inlet import CONTINUE, LINGER_SECONDS, REFUSED_AT_A_TIME, BaseInlet, body_allowance
from matrixinfer.gateway.wire.judge import judge
from matrixinfer.gateway.wire.message import Refusal, Request
from matrixinfer.service.logging import get_logger

__all__ = ["AiohttpInlet"]

log = get_logger("inlet")
# Of aiohttp's own: hostile bytes must not fill the log.
_silent = logging.Logger("aiohttp", logging.CRITICAL + 1)


class AiohttpInlet(BaseInlet["_Connection"]):
    """The inlet on aiohttp's low-level server."""

    async def serve(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        """See Inlet."""
        loop = asyncio.get_running_loop()
        manager = web.Server(_serve, request_factory=_take, handler_cancellation=True)
        await self.listen(lambda: _Connection(self, manager, loop), listener, stopping)


def _take(
    message: RawRequestMessage,
    content: StreamReader,
    connection: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    # Called as the request leaves the queue: `serve` begins a tick later, and more of the body may come before.
    cast("_Connection", connection).take(content)
    return web.BaseRequest(message, content, connection, writer, task, asyncio.get_running_loop())


async def _serve(request: web.BaseRequest) -> web.StreamResponse:
    return await cast("_Connection", request.protocol).serve(request)


class _Written(web.StreamResponse):
    """Tells aiohttp that the answer is out, and whether the connection goes on."""

    def __init__(self, *, keep_alive: bool, linger_seconds: float = 0.0) -> None:
        super().__init__()
        self._goes_on = keep_alive
        self._linger_seconds = linger_seconds

    @property
    def keep_alive(self) -> bool:
        return self._goes_on

    async def prepare(self, _request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, _data: bytes = b"") -> None:
        # A reset for unread bytes would overtake the answer. Ends when the client leaves.
        if self._linger_seconds:
            await asyncio.sleep(self._linger_seconds)


class _Phase(Enum):
    """What the newest bytes of a connection belong to."""

    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"


class _Connection(web.RequestHandler):
    """One client connection."""

    __slots__ = (
        "_charged_bytes",
        "_content",
        "_exchange",
        "_has_begun",
        "_head_timer",
        "_is_over",
        "_is_slow",
        "_phase",
        "_unproductive_bytes",
        "_wire",
        "inlet",
        "loop",
    )

    def __init__(self, inlet: AiohttpInlet, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        limits = inlet.limits
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=limits.keep_alive_seconds,
            logger=_silent,
            # Off, as aiohttp's own applications do it; its annotation does not know.
            access_log=None,  # type: ignore[arg-type]
            max_line_size=limits.head_bytes,
            max_field_size=limits.head_bytes,
            max_headers=limits.head_fields,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
        )
        self.inlet = inlet
        self.loop = loop
        self._phase = _Phase.HEAD
        self._exchange: ClientExchange | None = None
        self._content: StreamReader | None = None
        self._is_slow = False
        # The last word was said: what still comes is read, so that it is no reason for a reset, and dropped.
        self._is_over = False
        # Whether bytes of a request came that is not being served yet.
        self._has_begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._unproductive_bytes = 0
        self._charged_bytes = 0

    # -- transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or refuse it when there are too many."""
        super().connection_made(transport)
        self._wire = cast("asyncio.Transport", transport)
        self._wire.set_write_buffer_limits(high=self.inlet.limits.write_buffer_bytes)
        self.inlet.joined(self)
        surplus = self.inlet.open_connections - self.inlet.limits.connections
        if surplus > REFUSED_AT_A_TIME:
            self._wire.abort()
        elif surplus > 0:
            self._refuse_now(Refusal(503, "Too many connections; try again in a moment."))
        else:
            self._expect_a_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the exchange in progress in this very moment, and give everything back."""
        self._end_head_timer()
        self.give_back(self._charged_bytes)
        self.inlet.left(self)
        if self._exchange is not None:
            self._exchange.lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is slow."""
        super().pause_writing()
        self._is_slow = True
        if self._exchange is not None:
            self._exchange.paused()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._is_slow = False
        if self._exchange is not None:
            self._exchange.resumed()

    def data_received(self, data: bytes) -> None:
        """Have it parsed, and watch that it leads somewhere."""
        if self._is_over:
            return
        body_before = self._body_bytes()
        super().data_received(data)
        if not data or self._wire.is_closing():
            return
        if self._phase is not _Phase.BODY:
            self._has_begun = True
            if self._phase is _Phase.HEAD and self._head_timer is None:
                self._expect_a_head()
        is_waiting = not self._takes_body and not self._messages
        is_barren = self._takes_body and self._body_bytes() == body_before
        self._unproductive_bytes = self._unproductive_bytes + len(data) if is_waiting or is_barren else 0
        if self._unproductive_bytes > self.inlet.limits.head_bytes:
            self._too_much()
        else:
            self._see_fault()

    def _too_much(self) -> None:
        if self._phase is _Phase.HEAD:
            self._refuse_now(Refusal(431, "The request head is too large."))
        elif self._takes_body and self._content is not None:
            self._content.set_exception(web.RequestPayloadError("The request carries too much besides its body."))
        else:
            # An answer is under way: it is the last one.
            self.close()

    def _see_fault(self) -> None:
        """End a body that turned out not to be one: aiohttp only queues the fault behind it, and waits."""
        content = self._content
        if content is None or content.is_eof() or not self._messages:
            return
        if not isinstance(self._messages[-1][0], RawRequestMessage):
            content.set_exception(web.RequestPayloadError("The request is not valid HTTP/1.1."))

    @property
    def _takes_body(self) -> bool:
        """Whether what comes belongs to the request being heard, and not to one behind it."""
        return self._phase is _Phase.BODY and self._content is not None and not self._content.is_eof()

    def _body_bytes(self) -> int:
        return 0 if self._content is None else self._content.total_bytes

    # -- one request ----------------------------------------------------------------------------------------------

    def take(self, content: StreamReader) -> None:
        """Note that a head is complete, and where its body goes."""
        self._end_head_timer()
        self._phase, self._content = _Phase.BODY, content
        self._has_begun, self._unproductive_bytes = False, 0

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Hear one request and have it answered."""
        try:
            heard = await self._hear(request)
            self._phase, self._content = _Phase.ANSWER, None
            if isinstance(heard, Refusal):
                self._write_last(heard)
                return _Written(keep_alive=False, linger_seconds=LINGER_SECONDS)
            return await self._answer(*heard)
        finally:
            self._phase, self._content = _Phase.HEAD, None
            if self._has_begun and not self._is_over and not self._wire.is_closing():
                self._expect_a_head()

    async def _hear(self, message: web.BaseRequest) -> tuple[Request, bool] | Refusal:
        """Return the request and whether the connection may go on after it."""
        headers = [(name.lower(), value) for name, value in message.raw_headers]
        target = message.raw_path.encode("utf-8", "surrogateescape")
        version = f"{message.version.major}.{message.version.minor}"
        head = judge(message.method, target, version, headers, self.inlet.limits)
        if isinstance(head, Refusal):
            return replace(head, method=message.method, path=target.partition(b"?")[0], headers=headers)
        if head.expects_continue:
            self._wire.write(CONTINUE)
        self._see_fault()
        body = await self._read_body(message.content)
        if isinstance(body, Refusal):
            return replace(body, method=message.method, path=head.path, headers=headers)
        path = unquote_to_bytes(head.path) if b"%" in head.path else head.path
        request = Request(
            message.method,
            head.target,
            path,
            headers,
            body,
            version == "1.0",
            self._peer(),
            self.inlet.clock(),
        )
        # aiohttp drops what came in one read behind an offer of another protocol, and takes the last trailer of a body
        # in chunks for a header of the request behind it: nothing behind either may be served.
        is_last = head.length is None or any(name == b"upgrade" for name, _ in headers)
        return request, head.keep_alive and not is_last

    async def _read_body(self, content: StreamReader) -> bytes | Refusal:
        inlet, limits = self.inlet, self.inlet.limits
        body = bytearray()
        began = self.loop.time()
        try:
            async with asyncio.timeout_at(began + limits.body_seconds) as deadline:
                while piece := await content.readany():
                    body += piece
                    self._charged_bytes += len(piece)
                    inlet.buffered_bytes += len(piece)
                    if len(body) > limits.body_bytes:
                        return self._let_go(body, 413, f"The request body exceeds {limits.body_bytes} bytes.")
                    if inlet.buffered_bytes > limits.buffered_bytes:
                        message = "The gateway is receiving too much at once; try again in a moment."
                        return self._let_go(body, 503, message)
                    deadline.reschedule(began + limits.body_seconds + body_allowance(len(body)))
        except TimeoutError:
            return self._let_go(body, 408, "The request did not arrive in time.")
        except web.RequestPayloadError as exc:
            return self._let_go(body, 400, str(exc))
        return bytes(body)

    def _let_go(self, body: bytearray, status: int, message: str) -> Refusal:
        self.give_back(len(body))
        return Refusal(status, message)

    async def _answer(self, request: Request, keep_alive: bool) -> web.StreamResponse:
        exchange = ClientExchange(self, request, self._wire, keep_alive=keep_alive)
        self._exchange = exchange
        if self._is_slow:
            exchange.paused()
        try:
            await self.inlet.handler(exchange)
        # The edge of one connection: whatever breaks here costs this one only.
        except Exception:
            log.exception("answerer_failed")
            self._wire.abort()
        finally:
            self._exchange = None
            exchange.release_body()
        if not exchange.ended and not self._wire.is_closing():
            exchange.cut()
        return _Written(keep_alive=exchange.keep_alive and not self.inlet.draining)

    def give_back(self, size: int) -> None:
        """Return bytes to the inlet's budget."""
        size = min(size, self._charged_bytes)
        self._charged_bytes -= size
        self.inlet.buffered_bytes -= size

    # -- refusals and ends ----------------------------------------------------------------------------------------

    def handle_error(
        self,
        # These two are aiohttp's to give: the request is a placeholder, and the status is judged here.
        request: web.BaseRequest,  # noqa: ARG002
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer in our words what aiohttp's parser could not accept."""
        refusal = Refusal(400, f"The request is not valid HTTP/1.1: {_first_line(message)}.")
        if isinstance(exc, LineTooLong) or (isinstance(exc, BadHttpMessage) and "Too many headers" in exc.message):
            refusal = Refusal(431, "The request head is too large.")
        self._write_last(refusal)
        return _Written(keep_alive=False, linger_seconds=LINGER_SECONDS)

    def _write_last(self, refusal: Refusal) -> None:
        self._is_over = True
        self._wire.write(self.inlet.refusal(replace(refusal, peer=self._peer())))
        if self._wire.can_write_eof():
            self._wire.write_eof()

    def _peer(self) -> str:
        peer = self._wire.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def _refuse_now(self, refusal: Refusal) -> None:
        self._write_last(refusal)
        self._end_head_timer()
        self._head_timer = self.loop.call_later(LINGER_SECONDS, self.force_close)

    def close_when_idle(self) -> None:
        """Close now when nothing is being asked or answered, else after the answer."""
        if self._phase is _Phase.HEAD and not self._has_begun:
            self.force_close()

    def abort(self) -> None:
        """Close without ceremony."""
        self._wire.abort()

    def _expect_a_head(self) -> None:
        self._end_head_timer()
        self._head_timer = self.loop.call_later(self.inlet.limits.head_seconds, self._head_is_late)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._phase is not _Phase.HEAD or self._messages or self._wire.is_closing():
            return
        if self._has_begun:
            self._refuse_now(Refusal(408, "The request did not arrive in time."))
        else:
            self.force_close()


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0].strip().rstrip(":.")[:200]
