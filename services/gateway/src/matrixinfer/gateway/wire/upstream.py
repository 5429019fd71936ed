"""One connection to an engine: sends a request, hands the answer on piece by piece as it arrives.

Owns framing towards engines; knows nothing of clients or retries. The traps: an engine may close a pooled connection
at the moment it is used (`lost` with `untouched` says that nothing of an answer was seen), an answer without a length
ends with the connection, and bytes behind an answer poison the connection for the next one. An engine may be broken or
hostile: what two parsers could read differently is no answer, and what it sends without an end is cut off.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, cast

import httptools

from matrixinfer.gateway.wire.message import Headers, has_no_body

__all__ = ["Sink", "UpstreamConnection", "UpstreamError"]

# Of a head, of trailers, of chunk extensions: the parser keeps them until they are complete.
_UNPRODUCTIVE_LIMIT_BYTES = 256 * 1024
_FINAL_STATUSES = range(200, 600)


class UpstreamError(Exception):
    """The engine's answer cannot be understood."""


class Sink(Protocol):
    """Who takes an answer. `end` or `lost` is the last call, and exactly one of them is made."""

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        """The head came; `length` is None when the body's length is not known."""
        ...

    def body(self, data: bytes) -> None:
        """A piece of the body came."""
        ...

    def flush(self) -> None:
        """All that arrived together was handed over."""
        ...

    def end(self) -> None:
        """The answer is complete."""
        ...

    def lost(self, error: Exception | None, *, untouched: bool) -> None:
        """The connection failed; `untouched` when not a byte of an answer had come."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    __slots__ = (
        "_check",
        "_close_delimited",
        "_ended",
        "_failure",
        "_headers",
        "_in_head",
        "_interim",
        "_parser",
        "_released",
        "_reusable",
        "_sink",
        "_timer",
        "_transport",
        "_unproductive_bytes",
        "idle_limit",
        "idle_since",
    )

    def __init__(self, released: "Callable[[UpstreamConnection, bool], None]") -> None:
        """`released` is called after each answer with whether the connection can be used again, and when it is lost."""
        self._released = released
        # One for all answers: what it cannot be sure to begin anew with is a connection that is not used again.
        self._parser: Any = httptools.HttpResponseParser(self)
        self._sink: Sink | None = None
        self._failure: Exception | None = None
        # Left running from one answer to the next: the deadlines of most are never reached.
        self._timer: asyncio.TimerHandle | None = None
        self._check: Callable[[], float | None] | None = None
        self.idle_since = 0.0
        self.idle_limit: float | None = None
        """Seconds for which the engine promised to keep it open, if it said so."""
        self._start_over()

    def _start_over(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        # Received since the parser last gave away a head or a piece of the body.
        self._unproductive_bytes = 0
        self._in_head = True
        self._interim = self._close_delimited = self._ended = False
        self._reusable = True

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return not self._transport.is_closing()

    def send(self, data: bytes, sink: Sink) -> None:
        """Send one request, head and body; the answer goes to `sink`."""
        self._sink = sink
        # The client of the answer before may have paused us with its last piece.
        self._transport.resume_reading()
        self._transport.write(data)

    def look_at(self, when: float, check: "Callable[[], float | None]") -> None:
        """Call `check` at that time of the loop, and again whenever it says, as long as the answer is not over."""
        self._check = check
        if self._timer is None or self._timer.when() > when:
            self._look_again(when)

    def _look_again(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        when = None if self._check is None else self._check()
        if when is not None and self._timer is None:
            self._look_again(when)

    def pause(self) -> None:
        """Stop reading: the client cannot take more. A connection that is back in the pool is nobody's to pause."""
        if self._sink is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Give up at once, so that the engine stops working; the sink hears no more."""
        self._sink = self._check = None
        self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    # -- transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # A stream socket's transport reads and writes; uvloop's is no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End an answer that ends with the connection; fail any other."""
        sink, self._sink, self._check = self._sink, None, None
        self._parser = None
        if self._timer is not None:
            self._timer.cancel()
        self._released(self, False)
        if sink is None:
            return
        if self._close_delimited and not self._in_head and exc is None and self._failure is None:
            sink.end()
            return
        sink.lost(self._failure or exc, untouched=self._in_head and not self._unproductive_bytes)

    def data_received(self, data: bytes) -> None:
        """Parse and hand on."""
        sink = self._sink
        if sink is None:
            # Bytes that nobody asked for: whatever they are, the next answer must not begin with them.
            self._transport.abort()
            return
        self._unproductive_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            if self._failure is None:
                # A fault of ours, not of the engine's bytes: it must be seen.
                raise
            self._transport.abort()
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            # What came before the fault was parsed: a complete answer stays one, its connection is finished.
            if not self._ended:
                is_upgrade = isinstance(exc, httptools.HttpParserUpgrade)
                self._fail("the engine switched protocols" if is_upgrade else f"the answer is not valid HTTP: {exc}")
                return
            self._reusable = False
        if self._unproductive_bytes > _UNPRODUCTIVE_LIMIT_BYTES and not self._ended:
            self._fail("the engine sends too much besides its answer's body")
            return
        if self._ended:
            self._finish(sink)
        elif not self._in_head:
            sink.flush()

    # -- parser ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Notice an answer behind the answer: nobody asked for it, and part of it may still be on its way."""
        if self._ended:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if self._in_head:
            self._headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        """Hand the head on, unless it is an interim answer."""
        if self._ended:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._interim = True
            self._headers = []
            return
        self._in_head = False
        self._unproductive_bytes = 0
        length, coding = None, b""
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                coding += value.lower()
            elif name == b"keep-alive":
                self.idle_limit = _promised_seconds(value)
        version = self._parser.get_http_version()
        if coding or version != "1.1" or status not in _FINAL_STATUSES:
            self._refuse_faults(version, status, coding)
        self._close_delimited = length is None and not coding and not has_no_body(status)
        if self._sink is not None:
            self._sink.head(status, self._headers, length)

    def on_body(self, data: bytes) -> None:
        """Hand a piece on."""
        if self._in_head:
            # llhttp gives some interim answers a body. To a client it would be the head of something.
            self._stop_parsing("the engine's interim answer has a body")
        self._unproductive_bytes = 0
        if self._sink is not None and not self._ended:
            self._sink.body(data)

    def on_message_complete(self) -> None:
        """Note the end; an interim answer is none."""
        if self._interim:
            self._interim = False
            return
        if not self._ended:
            self._ended = True
            self._reusable = self._parser.should_keep_alive()

    # -- ends -----------------------------------------------------------------------------------------------------

    def _finish(self, sink: Sink) -> None:
        unsent = self._transport.get_write_buffer_size()
        reusable = self._reusable and not unsent and not self._transport.is_closing()
        self._sink = self._check = None
        self._start_over()
        if unsent:
            # It answered before it had read the request. A close would wait for it to read the rest, perhaps for ever.
            self._transport.abort()
        elif not reusable:
            self._transport.close()
        # First the pool, then the sink: whoever asks next finds this connection.
        self._released(self, reusable)
        sink.end()

    def _refuse_faults(self, version: str, status: int, coding: bytes) -> None:
        if version not in ("1.1", "1.0"):
            self._stop_parsing(f"the engine speaks HTTP/{version}")
        if status not in _FINAL_STATUSES:
            self._stop_parsing(f"the engine answered with the status {status}")
        if coding and (coding != b"chunked" or version == "1.0"):
            self._stop_parsing("the engine's answer has a transfer coding that is not 'chunked'")

    def _stop_parsing(self, reason: str) -> NoReturn:
        """Fail from within the parser, so that it gives away nothing more."""
        self._failure = UpstreamError(reason)
        raise self._failure

    def _fail(self, reason: str) -> None:
        self._failure = UpstreamError(reason)
        self._transport.abort()


def _promised_seconds(value: bytes) -> float | None:
    for part in value.split(b","):
        name, _, number = part.strip().partition(b"=")
        if name.lower() == b"timeout" and number.isdigit():
            return float(number)
    return None
