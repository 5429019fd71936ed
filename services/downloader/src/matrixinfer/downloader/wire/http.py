"""A small HTTP/1.1 client for large bodies: blocking, for threads, without a copy between the socket and our buffer.

Owns connections (kept per origin, TLS, proxies by CONNECT), the framing of answers, and redirects: those lead only
where the caller allows, and credentials never travel to another origin. Refuses to own meaning and retries: an
answer of any status is an answer; what went wrong on the way is a `WireError`. Why not a library: see
docs/adr on the engine of the downloader; what costs there is copying and parsing per chunk.

The traps: a kept connection may have been closed by the other side meanwhile, so a request that fails on one before a
byte of the answer came is sent again on a new one, once; and an answer that was not read to its end would be read as
the next one's beginning, so its connection is closed.
"""

import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies_environment

__all__ = ["Answer", "Client", "Origin", "RedirectRefused", "TimedOut", "WireError", "origin_of"]

_HEAD_BYTES = 1 << 16
_FIRST_READ_BYTES = 1 << 14
_ERROR_BODY_BYTES = 1 << 16
_REDIRECTS = 5
# Scheme and authority, the same for all files of a source.
_PLACE = re.compile(r"[^/?#]*//[^/?#]*")
_ORIGINS = 1024
_REDIRECT_CODES = frozenset((301, 302, 303, 307, 308))
# What says who we are; none of it goes to another origin than it was meant for.
_PRIVATE = frozenset(("authorization", "cookie", "proxy-authorization", "x-amz-security-token"))


class WireError(Exception):
    """The exchange failed on the way: no connection, broken off, or not HTTP."""


class RedirectRefused(Exception):
    """The answer leads to where it must not go; another try would not change that."""


class TimedOut(WireError):
    """The other side was silent for longer than it may be."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


def origin_of(url: str) -> Origin:
    """Return the origin of an absolute URL; raises WireError when it is none."""
    return _origin(url[: _place_end(url)])


@lru_cache(maxsize=_ORIGINS)
def _origin(place: str) -> Origin:
    parts = urlsplit(place)
    try:
        port = parts.port
    except ValueError as exc:
        raise WireError("the address has no valid port") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise WireError("the address is not one of http:// or https:// with a host and without credentials")
    return Origin(parts.scheme, parts.hostname, port or _default_port(parts.scheme))


class Answer:
    """Status and headers of an answer, and its body while the exchange is open."""

    def __init__(
        self, connection: "_Connection", url: str, status: int, headers: Mapping[str, str], *, has_body: bool = True
    ) -> None:
        self.url = url
        """Where it came from in the end."""
        self.status = status
        self.headers = headers
        """By lower-case name."""
        self._connection = connection
        self._left = _body_bytes(status, headers) if has_body else 0
        self._chunked = self._left is None and "chunked" in headers.get("transfer-encoding", "").lower()
        self._chunk_left = 0
        self._ended = self._left == 0

    @property
    def at_end(self) -> bool:
        """True when the whole body was read."""
        return self._ended

    @property
    def reusable(self) -> bool:
        """True when the connection may carry another exchange."""
        return self._ended and self.headers.get("connection", "").lower() != "close"

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the other side wants to be asked again."""
        value = self.headers.get("retry-after", "")
        return float(value) if value.isdigit() else None

    def readinto(self, view: memoryview) -> int:
        """Fill the buffer as far as the body goes; 0 at its end. A body that breaks off raises WireError."""
        if self._ended or not view:
            return 0
        if self._chunked:
            return self._read_chunked(view)
        wanted = view if self._left is None else view[: self._left]
        count = self._connection.readinto(wanted)
        if self._left is None:
            self._ended = not count
            return count
        if not count:
            raise WireError(f"the connection ended {self._left} bytes before the end of the answer")
        self._left -= count
        self._ended = not self._left
        return count

    def read(self, limit: int = _ERROR_BODY_BYTES) -> bytes:
        """Return the body, which must not be longer than `limit`."""
        found = bytearray()
        buffer = memoryview(bytearray(min(limit + 1, _ERROR_BODY_BYTES)))
        while count := self.readinto(buffer):
            found += buffer[:count]
            if len(found) > limit:
                raise WireError(f"the answer is longer than {limit} bytes")
        return bytes(found)

    def _read_chunked(self, view: memoryview) -> int:
        if not self._chunk_left:
            size = self._connection.read_line().partition(b";")[0].strip()
            try:
                self._chunk_left = int(size, 16)
            except ValueError as exc:
                raise WireError("the answer is not framed as HTTP says") from exc
            if not self._chunk_left:
                while self._connection.read_line():
                    pass
                self._ended = True
                return 0
        count = self._connection.readinto(view[: self._chunk_left])
        if not count:
            raise WireError("the connection ended before the end of the answer")
        self._chunk_left -= count
        if not self._chunk_left:
            self._connection.read_line()
        return count


@dataclass(frozen=True, slots=True)
class _Proxies:
    """What the environment says about proxies."""

    by_scheme: Mapping[str, str] = field(default_factory=getproxies_environment)

    def of(self, origin: Origin) -> str | None:
        """The proxy's address for an origin."""
        found = self.by_scheme.get(origin.scheme)
        if not found or _bypasses(origin.host, self.by_scheme.get("no", "")):
            return None
        return found if "://" in found else f"http://{found}"


class Client:
    """Keeps connections; any number of threads may use it."""

    def __init__(
        self,
        *,
        agent: str,
        connect_seconds: float,
        read_seconds: float,
        ca_bundle: str = "",
        may_redirect: Callable[[str, str], bool] = lambda _from, _to: False,
        is_direct: bool = False,
    ) -> None:
        """`may_redirect` is told from which host to which an answer leads, before anything is sent there.

        With `is_direct` no proxy is asked, whatever the environment says.
        """
        self._agent = agent
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._ca_bundle = ca_bundle
        self._may_redirect = may_redirect
        self._proxies = _Proxies({}) if is_direct else _Proxies()
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None

    @contextmanager
    def exchange(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Send one request without a body and yield the answer, after redirects that are allowed."""
        for _ in range(_REDIRECTS + 1):
            connection, answer = self._send(method, url, headers)
            try:
                target = _target(answer)
                if target is None:
                    yield answer
                    return
            finally:
                self._give_back(connection, reusable=answer.reusable)
            here, there = origin_of(url), origin_of(target)
            if here != there:
                if (here.scheme == "https" and there.scheme == "http") or not self._may_redirect(here.host, there.host):
                    raise RedirectRefused(
                        f"{here.host} leads to {there.scheme}://{there.host}, which is not allowed; "
                        "name the host in MATRIXINFER_DOWNLOADER_REDIRECT_HOSTS if it should be"
                    )
                headers = {name: value for name, value in headers.items() if name.lower() not in _PRIVATE}
            url = target
        raise WireError(f"{origin_of(url).host} redirects again and again")

    def abort(self) -> None:
        """End every exchange that waits; what is asked afterwards goes over new connections."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            connection.shut()

    def _send(self, method: str, url: str, headers: Mapping[str, str]) -> "tuple[_Connection, Answer]":
        origin = origin_of(url)
        connection = self._kept(origin)
        if connection is not None:
            try:
                return connection, connection.ask(method, url, self._all(origin, headers))
            except TimedOut:
                self._drop(connection)
                raise
            except WireError:
                # Most likely closed while it was idle. Nothing of an answer came, so it is safe to ask again.
                self._drop(connection)
        connection = self._connect(origin)
        try:
            return connection, connection.ask(method, url, self._all(origin, headers))
        except BaseException:
            self._drop(connection)
            raise

    def _all(self, origin: Origin, headers: Mapping[str, str]) -> dict[str, str]:
        # Compressed bytes have no ranges, and their length is another.
        fixed = {"Host": origin.authority, "User-Agent": self._agent, "Accept-Encoding": "identity"}
        return {**fixed, **{name: value for name, value in headers.items() if name.lower() != "host"}}

    def _kept(self, origin: Origin) -> "_Connection | None":
        with self._lock:
            idle = self._idle.get(origin)
            return idle.pop() if idle else None

    def _connect(self, origin: Origin) -> "_Connection":
        made = _Connection(self._socket(origin), self._read_seconds, in_full=self._in_full(origin))
        with self._lock:
            self._open.add(made)
        return made

    def _in_full(self, origin: Origin) -> bool:
        """True when a plain proxy needs the whole address in the request line."""
        return origin.scheme == "http" and self._proxies.of(origin) is not None

    def _socket(self, origin: Origin) -> socket.socket:
        proxy = self._proxies.of(origin)
        first = origin_of(proxy) if proxy else origin
        try:
            made = socket.create_connection((first.host, first.port), timeout=self._connect_seconds)
        except TimeoutError as exc:
            raise TimedOut(f"{first.host} did not accept a connection within {self._connect_seconds:.0f} s") from exc
        except OSError as exc:
            raise WireError(f"no connection to {first.host}: {exc.strerror or exc}") from exc
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if origin.scheme == "http":
                return made
            if proxy:
                _tunnel(made, origin)
            return self._context().wrap_socket(made, server_hostname=origin.host)
        except ssl.SSLCertVerificationError as exc:
            made.close()
            raise WireError(f"the certificate of {origin.host} is not trusted: {exc.verify_message}") from exc
        except OSError as exc:
            made.close()
            raise WireError(f"no secure connection to {origin.host}: {exc}") from exc
        except WireError:
            made.close()
            raise

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._ca_bundle or os.environ.get("SSL_CERT_FILE"))
                self._tls.set_alpn_protocols(["http/1.1"])
            return self._tls

    def _give_back(self, connection: "_Connection", *, reusable: bool) -> None:
        if not reusable:
            self._drop(connection)
            return
        with self._lock:
            self._idle.setdefault(connection.origin, []).append(connection)

    def _drop(self, connection: "_Connection") -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()


class _Connection:
    """One connection, used by one thread at a time."""

    def __init__(self, opened: socket.socket, read_seconds: float, *, in_full: bool) -> None:
        self._socket = opened
        self._in_full = in_full
        self._read_seconds = read_seconds
        self._rest = memoryview(b"")
        self._flags = 0
        self.origin = Origin("", "", 0)
        if isinstance(opened, ssl.SSLSocket):
            opened.settimeout(read_seconds)
        else:
            # The kernel keeps the deadline and fills the whole buffer: one call instead of two for each packet.
            opened.settimeout(None)
            deadline = struct.pack("ll", int(read_seconds), int(read_seconds % 1 * 1_000_000))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, deadline)
            self._flags = socket.MSG_WAITALL

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """Send a request, read the head of the answer."""
        self.origin = origin_of(url)
        target = url if self._in_full else _request_target(url)
        lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()], "", ""]
        head, ends = "\r\n".join(lines), len(lines) - 1
        if head.count("\r") != ends or head.count("\n") != ends:
            raise WireError("a header of the request holds a line break")
        try:
            self._socket.sendall(head.encode("utf-8"))
        except OSError as exc:
            raise _translated(exc, self._read_seconds) from exc
        while True:
            status, found = _parse_head(self._read_head())
            if status >= 200:
                break
        return Answer(self, url, status, found, has_body=method != "HEAD")

    def readinto(self, view: memoryview) -> int:
        """Fill the buffer, or as much of it as there is before the end."""
        if self._rest:
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
            # What came with the head is little: with the bytes behind it, it is one write and one hash, not two.
            return count + (self._receive(view[count:]) if count < len(view) else 0)
        return self._receive(view)

    def _receive(self, view: memoryview) -> int:
        try:
            return self._socket.recv_into(view, len(view), self._flags)
        except OSError as exc:
            raise _translated(exc, self._read_seconds) from exc

    def read_line(self) -> bytes:
        """Return the next line without its end; for the framing of chunks only."""
        line = bytearray()
        one = memoryview(bytearray(1))
        while not line.endswith(b"\r\n"):
            if len(line) > _HEAD_BYTES or not self.readinto(one):
                raise WireError("the answer is not framed as HTTP says")
            line += one
        return bytes(line[:-2])

    def shut(self) -> None:
        """Wake up whoever waits on it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _read_head(self) -> bytes:
        head = bytearray(self._rest)
        while (end := head.find(b"\r\n\r\n")) < 0:
            if len(head) > _HEAD_BYTES:
                raise WireError("the head of the answer is too long")
            try:
                chunk = self._socket.recv(_FIRST_READ_BYTES)
            except OSError as exc:
                raise _translated(exc, self._read_seconds) from exc
            if not chunk:
                raise WireError("the connection ended before an answer came")
            head += chunk
        self._rest = memoryview(bytes(head[end + 4 :]))
        return bytes(head[:end])


def _bypasses(host: str, exceptions: str) -> bool:
    """True when NO_PROXY names the host, or a domain above it."""
    names = [name.strip().lstrip(".").lower() for name in exceptions.split(",") if name.strip()]
    return "*" in names or any(host.lower() == name or host.lower().endswith(f".{name}") for name in names)


def _place_end(url: str) -> int:
    place = _PLACE.match(url)
    return place.end() if place else 0


def _request_target(url: str) -> str:
    """Path and query, as they stand in a request line."""
    target = url[_place_end(url) :].partition("#")[0]
    return target if target.startswith("/") else f"/{target}"


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _target(answer: Answer) -> str | None:
    """Where an answer leads, None when it is the end of the way."""
    location = answer.headers.get("location")
    return urljoin(answer.url, location) if location and answer.status in _REDIRECT_CODES else None


def _tunnel(opened: socket.socket, origin: Origin) -> None:
    place = f"{origin.host}:{origin.port}"
    opened.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    head = bytearray()
    while b"\r\n\r\n" not in head:
        chunk = opened.recv(1)
        if not chunk or len(head) > _HEAD_BYTES:
            raise WireError(f"the proxy made no way to {origin.host}")
        head += chunk
    status, _ = _parse_head(bytes(head[:-4]))
    if status != 200:
        raise WireError(f"the proxy answered {status} for {origin.host}")


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdigit():
        raise WireError("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return int(code), headers


def _body_bytes(status: int, headers: Mapping[str, str]) -> int | None:
    """Length of the body; None when only its framing tells."""
    if status in (204, 304):
        return 0
    if "transfer-encoding" in headers:
        return None
    given = headers.get("content-length")
    if given is None:
        return None
    if not given.isdigit():
        raise WireError("the length of the answer is no number")
    return int(given)


def _translated(exc: OSError, seconds: float) -> WireError:
    if isinstance(exc, TimeoutError | BlockingIOError):
        return TimedOut(f"nothing came for {seconds:.0f} s")
    return WireError(f"the connection broke: {exc.strerror or type(exc).__name__}")
