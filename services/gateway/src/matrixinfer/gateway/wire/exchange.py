"""The answer to one request, framed for the client that made it: what every inlet hands to the handler.

Writes straight to the transport, nothing here awaits. The traps: an answer to HEAD and one of status 204 or 304 have no
body whatever is written; an answer that is cut must be seen to be incomplete; and a client that takes nothing must not
be waited for.
"""

import asyncio
from typing import Protocol

from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.message import Headers, Request, Watcher, has_no_body, response_head

__all__ = ["ClientExchange", "Line"]

_END_OF_CHUNKS = b"0\r\n\r\n"


class _Owner(Protocol):
    draining: bool
    limits: InletLimits


class Line(Protocol):
    """The connection that an exchange belongs to."""

    @property
    def inlet(self) -> _Owner:
        """Whose connection it is."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs in."""
        ...

    def give_back(self, size: int) -> None:
        """Return bytes of a body to the inlet's budget."""
        ...


class ClientExchange:
    """One request on a connection and its answer: an Exchange."""

    __slots__ = (
        "_chunked",
        "_delimited_by_close",
        "_is_bodiless",
        "_is_paused",
        "_line",
        "_out",
        "_stall",
        "_transport",
        "_watcher",
        "begun",
        "bytes_in",
        "bytes_out",
        "ended",
        "gone",
        "keep_alive",
        "request",
        "stalled",
    )

    def __init__(self, line: Line, request: Request, transport: asyncio.Transport, *, keep_alive: bool) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.begun = False
        self.ended = False
        self.gone = False
        self.stalled = False
        self.bytes_in = len(request.body)
        self.bytes_out = 0
        self._line = line
        self._is_bodiless = request.method == "HEAD"
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
        self.release_body()
        if self._line.inlet.draining:
            self.keep_alive = False
        framing = b""
        if has_no_body(status):
            self._is_bodiless = True
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self.request.http10:
            self.keep_alive = False
            self._delimited_by_close = True
        else:
            self._chunked = not self._is_bodiless
            framing = b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        elif self.request.http10:
            framing += b"connection: keep-alive\r\n"
        self._out.append(response_head(status, headers, framing))

    def write(self, data: bytes) -> None:
        """Write a piece of the body."""
        if not data or self._is_bodiless:
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

    def release_body(self) -> None:
        """Let the body go: once the answer has begun, no other endpoint will be sent it."""
        if self.request.body:
            self._line.give_back(len(self.request.body))
            self.request.body = b""

    def lost(self) -> None:
        """The connection was lost."""
        self.gone = True
        self._end_stall()
        if self._watcher is not None:
            self._watcher.client_gone()

    def paused(self) -> None:
        """The connection takes no more for now."""
        self._is_paused = True
        seconds = self._line.inlet.limits.write_stall_seconds
        self._stall = self._line.loop.call_later(seconds, self._stall_fired)
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
