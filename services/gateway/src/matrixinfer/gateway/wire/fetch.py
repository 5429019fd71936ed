"""A page of an engine, fetched whole: for those who ask engines in the gateway's own name.

Owns one GET over a kept connection and the bounds of its answer. Engines are not trusted: redirects are not followed,
a page has a size, a compressed one is unpacked within it. Refuses deadlines and retries, which are the caller's, with
one exception: a kept connection that the engine closed as it was used is replaced once.
"""

import asyncio
import zlib
from enum import StrEnum
from typing import Final

from matrixinfer.gateway.wire.message import Headers, authority, request_head
from matrixinfer.gateway.wire.pool import ConnectError, Peer, UpstreamPool
from matrixinfer.gateway.wire.upstream import UpstreamConnection

__all__ = ["FetchFailed", "Fetcher", "Reason"]

_UNPACKABLE: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})
_GZIP_OR_ZLIB: Final = 47


class Reason(StrEnum):
    """Why there is no page."""

    REFUSED = "refused"
    STATUS = "status"
    SIZE = "size"
    BROKEN = "broken"


class FetchFailed(Exception):
    """There is no page; the text says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fetcher:
    """Fetches pages over one pool of connections."""

    def __init__(self, pool: UpstreamPool, *, limit_bytes: int) -> None:
        """No page may be larger than `limit_bytes`, packed or not."""
        self._pool = pool
        self._limit_bytes = limit_bytes

    async def get(self, peer: Peer, path: str, accept: str) -> bytes:
        """Return the body of a 200. Raises FetchFailed. Cancelled, it closes the connection."""
        headers = [(b"host", authority(peer.address, peer.port)), (b"accept", accept.encode())]
        data = request_head("GET", path.encode(), headers)
        page = _Page(self._limit_bytes)
        connection = self._pool.take(peer, asyncio.get_running_loop().time())
        if connection is not None:
            await page.came_over(connection, data)
            if not page.is_untouched:
                return page.content()
            page = _Page(self._limit_bytes)
        try:
            connection = await self._pool.connect(peer)
        except ConnectError as exc:
            raise FetchFailed(Reason.REFUSED, str(exc)) from exc
        await page.came_over(connection, data)
        return page.content()


class _Page:
    """Sink of one answer."""

    def __init__(self, limit_bytes: int) -> None:
        self.is_untouched = False
        """Whether the connection was lost before a byte of the answer came."""
        self._limit_bytes = limit_bytes
        self._status = 0
        self._encoding = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._failure: FetchFailed | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def came_over(self, connection: UpstreamConnection, data: bytes) -> None:
        """Send the request and wait for the end of its answer, whatever that is."""
        connection.send(data, self)
        try:
            await self._over
        finally:
            # What is cancelled, or refused half-way, must not leave bytes for whoever uses the connection next.
            if self._over.cancelled() or self._failure is not None:
                connection.abort()

    def content(self) -> bytes:
        """Return the page. Raises FetchFailed."""
        if self._failure is not None:
            raise self._failure
        body = b"".join(self._parts)
        if not self._encoding or self._encoding == b"identity":
            return body
        if self._encoding not in _UNPACKABLE:
            raise FetchFailed(Reason.BROKEN, f"the answer is packed as {self._encoding.decode(errors='replace')!r}")
        unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            content = unpacker.decompress(body, self._limit_bytes + 1)
        except zlib.error as exc:
            raise FetchFailed(Reason.BROKEN, f"the answer cannot be unpacked: {exc}") from exc
        if len(content) > self._limit_bytes:
            raise self._too_large()
        return content

    # -- from the engine ------------------------------------------------------------------------------------------

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Judge the head."""
        self._status = status
        self._encoding = next((value.strip().lower() for name, value in headers if name == b"content-encoding"), b"")
        if status != 200:
            self._fail(FetchFailed(Reason.STATUS, f"the answer is {status}"))
        elif length is not None and length > self._limit_bytes:
            self._fail(self._too_large())

    def body(self, data: bytes) -> None:
        """Keep a piece."""
        self._size += len(data)
        if self._size > self._limit_bytes:
            self._fail(self._too_large())
        else:
            self._parts.append(data)

    def flush(self) -> None:
        """Nothing waits for pieces."""

    def end(self) -> None:
        """The page is complete."""
        self._finish()

    def lost(self, error: Exception | None, *, untouched: bool) -> None:
        """There will be no more."""
        self.is_untouched = untouched
        message = str(error) if error else "the connection was closed within the answer"
        self._fail(FetchFailed(Reason.BROKEN, message))

    def _too_large(self) -> FetchFailed:
        return FetchFailed(Reason.SIZE, f"the answer is larger than {self._limit_bytes} bytes")

    def _fail(self, failure: FetchFailed) -> None:
        self._failure = self._failure or failure
        self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
