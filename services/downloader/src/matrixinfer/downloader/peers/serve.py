"""Gives what a cache holds to other pods of the namespace: a small HTTP server, for whoever has the token.

Owns who is answered and how much at once; what there is to give is the business of `holdings`. A request that is not
signed is refused before its path is looked at, so nothing can be learnt without the token; everything that is not here
is the same 404. Beyond so many transfers at once the answer is 503: whoever asks has other peers, and the origin. The
trap: a reader that stands still holds a place, so each transfer has a deadline, and is broken off when it is over.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiohttp import web
from prometheus_client import Counter, Gauge

from matrixinfer.downloader.blocking import in_thread
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.sharing import FileName, is_key, is_sha256, whole_range
from matrixinfer.downloader.core.signature import is_signed
from matrixinfer.downloader.peers.holdings import Holdings, Opened
from matrixinfer.service.logging import get_logger

__all__ = ["ServeLimits", "serving"]

log = get_logger("serve")

_CHUNK_BYTES = 1 << 20
_KEEP_SECONDS = 30.0
_STOP_SECONDS = 2.0

_SERVED = Counter("matrixinfer_downloader_served_bytes_total", "Bytes given to peers.")
_ANSWERS = Counter("matrixinfer_downloader_peer_requests_total", "Requests of peers, by what they got.", ["answer"])
_TRANSFERS = Gauge("matrixinfer_downloader_serving", "Transfers to peers under way.")
_ANSWER = {name: _ANSWERS.labels(name) for name in ("given", "told", "absent", "refused", "busy", "broken")}


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """How much at once."""

    connections: int = 16
    bytes_per_second: int = 0
    """Of all transfers together; 0 means as fast as it goes."""
    transfer_seconds: float = 60.0


@asynccontextmanager
async def serving(
    holdings: Holdings, token: str, limits: ServeLimits, host: str, port: int, now: Callable[[], float]
) -> AsyncIterator[int]:
    """Serve until left; yields the port. Running transfers get a moment to end. Raises OSError when it is taken."""
    app = web.Application(client_max_size=1)
    app.router.add_route("*", "/{path:.*}", _Server(holdings, token, limits, now).answer)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=_KEEP_SECONDS,
        shutdown_timeout=_STOP_SECONDS,
        # What nobody waits for any more is not read from the disk either.
        handler_cancellation=True,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=4 * limits.connections)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


class _Server:
    def __init__(self, holdings: Holdings, token: str, limits: ServeLimits, now: Callable[[], float]) -> None:
        self._holdings = holdings
        self._token = token
        self._limits = limits
        self._now = now
        self._under_way = 0
        self._throttle = _Throttle(limits.bytes_per_second)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, whatever it asks for."""
        # As it was sent: what was signed is the text, not what it may mean.
        path, asked = request.raw_path, request.headers.get("Range", "")
        signed = is_signed(self._token, request.headers.get("Authorization", ""), path, asked, self._now())
        if not signed or request.method != "GET":
            return _plain("refused", 401)
        kind, _, place = path.removeprefix("/v1/").partition("/")
        match kind:
            case "bytes":
                return await self._bytes(request, FileName.parse(place), whole_range(asked))
            case "held" if name := FileName.parse(place):
                return await self._told(partial(self._held, name))
            case "origins" if is_key(place):
                return await self._told(partial(self._holdings.origin, place))
            case "models" if is_sha256(place):
                return await self._told(partial(self._holdings.ready, place))
        return _plain("absent", 404)

    async def _told(self, look: Callable[[], bytes | None]) -> web.Response:
        found = await in_thread(look, name="look")
        if found is None:
            return _plain("absent", 404)
        _ANSWER["told"].inc()
        return web.Response(body=found, content_type="application/json")

    def _held(self, name: FileName) -> bytes | None:
        opened = self._holdings.open(name)
        if opened is None:
            return None
        with opened.file:
            return opened.held.to_json()

    async def _bytes(self, request: web.Request, name: FileName | None, part: Part | None) -> web.StreamResponse:
        if name is None or part is None:
            return _plain("absent", 404)
        if self._under_way >= self._limits.connections:
            return _plain("busy", 503, {"Retry-After": "1"})
        self._under_way += 1
        _TRANSFERS.inc()
        try:
            opened = await in_thread(partial(self._holdings.open, name), name="open")
            if opened is None:
                return _plain("absent", 404)
            with opened.file:
                return await self._send(request, opened, part)
        finally:
            _TRANSFERS.dec()
            self._under_way -= 1

    async def _send(self, request: web.Request, opened: Opened, part: Part) -> web.StreamResponse:
        if not opened.held.has(part):
            return _plain("absent", 404)
        response = web.StreamResponse(status=206)
        response.content_type = "application/octet-stream"
        response.content_length = part.length
        response.headers["Content-Range"] = f"bytes {part.offset}-{part.end - 1}/{opened.held.size}"
        try:
            async with asyncio.timeout(self._limits.transfer_seconds):
                await response.prepare(request)
                await self._write(response, opened, part)
                await response.write_eof()
        except (OSError, TimeoutError) as exc:
            # Fewer bytes came than were announced, so the other side knows; it asks elsewhere.
            _ANSWER["broken"].inc()
            log.info("transfer_broken", reason=str(exc) or type(exc).__name__)
            if request.transport is not None:
                request.transport.abort()
            return response
        _ANSWER["given"].inc()
        return response

    async def _write(self, response: web.StreamResponse, opened: Opened, part: Part) -> None:
        position = part.offset
        while position < part.end:
            wanted = min(_CHUNK_BYTES, part.end - position)
            await self._throttle.pass_(wanted)
            chunk = await in_thread(partial(opened.read, wanted, position), name="read")
            if not chunk:
                raise OSError("the file ended early")
            await response.write(chunk)
            _SERVED.inc(len(chunk))
            position += len(chunk)


class _Throttle:
    """Lets so many bytes pass in a second, of all who ask, in the order in which they do."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def pass_(self, count: int) -> None:
        """Wait for our turn."""
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        turn = max(now, self._free_at)
        self._free_at = turn + count / self._rate
        await asyncio.sleep(turn - now)


def _plain(answer: str, status: int, headers: dict[str, str] | None = None) -> web.Response:
    _ANSWER[answer].inc()
    return web.Response(status=status, headers=headers)
