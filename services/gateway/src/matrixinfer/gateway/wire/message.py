"""HTTP messages as the gateway handles them, and the rendering of heads. No I/O.

Header names are lower-case bytes. The trap: hop-by-hop fields speak about one connection; passing one on is how
requests get smuggled, so both directions go through `end_to_end`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from operator import itemgetter
from typing import Protocol, TypeAlias

import msgspec

__all__ = [
    "HOP_BY_HOP",
    "Exchange",
    "Headers",
    "Refusal",
    "Request",
    "Watcher",
    "authority",
    "end_to_end",
    "has_no_body",
    "header",
    "request_head",
    "response_head",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}".encode() for s in HTTPStatus}
_name_of = itemgetter(0)
_line_of = b": ".join


class Request(msgspec.Struct):
    """One complete request. `target` is the path and query as they came."""

    method: str
    target: bytes
    path: bytes
    headers: Headers
    body: bytes
    http10: bool
    peer: str
    received: float
    """When the last byte arrived, by the inlet's clock."""
    fields: dict[bytes, bytes] | None = None
    """The first value of each header, when whoever made this knew them."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header."""
        if self.fields is None:
            # Backwards, so that of a header which came twice the first value stays.
            self.fields = dict(reversed(self.headers))
        return self.fields.get(name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that never became one: what is wrong with it, for an answer after which the connection closes."""

    status: int
    message: str
    method: str = ""
    path: bytes = b""
    headers: Headers = ()
    """As far as they came."""
    peer: str = ""
    """The client's address."""


class Watcher(Protocol):
    """Who wants to know at once how the client takes its answer."""

    def client_gone(self) -> None:
        """The client left; nothing can be written any more."""
        ...

    def client_paused(self) -> None:
        """The client reads slower than it is written to: stop writing."""
        ...

    def client_resumed(self) -> None:
        """The client has caught up."""
        ...


class Exchange(Protocol):
    """One request and the way to answer it: what an inlet hands to the handler."""

    @property
    def request(self) -> Request:
        """The request."""
        ...

    @property
    def begun(self) -> bool:
        """Whether a head was written: from then on nothing can be taken back."""
        ...

    @property
    def bytes_in(self) -> int:
        """Size of the request's body, which is let go when the answer begins."""
        ...

    @property
    def bytes_out(self) -> int:
        """Body bytes written so far."""
        ...

    @property
    def gone(self) -> bool:
        """Whether the client left."""
        ...

    @property
    def stalled(self) -> bool:
        """Whether the client was given up because it stopped reading."""
        ...

    def watch(self, watcher: Watcher | None) -> None:
        """Tell `watcher` from now on, instead of the one before."""
        ...

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        """Write the head. `length` None means that it is not known yet."""
        ...

    def write(self, data: bytes) -> None:
        """Write a piece of the body; it goes out with the next `flush`."""
        ...

    def flush(self) -> None:
        """Hand what was written to the network."""
        ...

    def finish(self) -> None:
        """End the answer properly."""
        ...

    def cut(self) -> None:
        """End the answer so that the client can tell that it is not complete; what was written still goes out."""
        ...


def end_to_end(headers: Headers, *, drop: frozenset[bytes] = HOP_BY_HOP) -> Headers:
    """Return the headers that may travel on: neither in `drop`, which has those of HOP_BY_HOP and what else the caller
    wants left out, nor named by `Connection`.
    """
    kept = [pair for pair in headers if pair[0] not in drop]
    if b"connection" not in map(_name_of, headers):
        return kept
    wishes = [value for name, value in headers if name == b"connection"]
    named = {token.strip().lower() for value in wishes for token in value.split(b",")}
    return [pair for pair in kept if pair[0] not in named]


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of a header."""
    for key, value in headers:
        if key == name:
            return value
    return None


def has_no_body(status: int) -> bool:
    """Whether answers of this status never have a body."""
    return status in (204, 304) or status < 200


@lru_cache(maxsize=4096)
def authority(address: str, port: int) -> bytes:
    """Render where a peer listens as a `Host` header names it (RFC 3986 section 3.2.2)."""
    return f"[{address}]:{port}".encode() if ":" in address else f"{address}:{port}".encode()


def request_head(method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Render the head of a request."""
    return b"\r\n".join((b"%b %b HTTP/1.1" % (method.encode(), target), *map(_line_of, headers), b"", b""))


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]], framing: bytes = b"") -> bytes:
    """Render the head of a response; `framing` are the lines, each with its end, that say how its body ends."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown" % status
    return b"\r\n".join((line, *map(_line_of, headers), framing, b""))
