"""The admin port: /livez, /readyz, /metrics and /debug, apart from the port that does the work.

Owns the listener and the four pages. /debug/tasks shows what every asyncio task waits for, /debug/settings
the settings (secrets masked), /debug/<name> whatever the service registered, /debug/<name>/<thing> what it knows of
one thing. Nothing here changes anything, and nothing here is for the outside: the network policy keeps the port inside
the cluster.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from matrixinfer.service.health import Checks, Verdict
from matrixinfer.service.pages import Lookup, MetricsPage, Page

__all__ = ["AdminServer"]

_SHUTDOWN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class AdminServer:
    """The four pages; `start` listens, the returned runner stops it."""

    live: Checks
    ready: Checks
    metrics: MetricsPage
    pages: dict[str, Page]
    lookups: Mapping[str, Lookup] = field(default_factory=dict)

    async def start(self, host: str, port: int) -> tuple[web.AppRunner, int]:
        """Listen; returns the runner (call `cleanup`) and the port. Raises OSError when the port is not free."""
        app = web.Application()
        app.router.add_get("/livez", _health(self.live))
        app.router.add_get("/readyz", _health(self.ready))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/debug", self._index)
        app.router.add_get("/debug/{page}", self._page)
        app.router.add_get("/debug/{page}/{asked:.+}", self._lookup)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        listener = _listener(host, port)
        try:
            await web.SockSite(runner, listener).start()
        except BaseException:
            listener.close()
            await runner.cleanup()
            raise
        return runner, int(listener.getsockname()[1])

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self.metrics(request.headers)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _index(self, _request: web.Request) -> web.Response:
        lookups = [f"/debug/{name}/…" for name in sorted(self.lookups)]
        return _json({"pages": [*(f"/debug/{name}" for name in sorted(self.pages)), *lookups]})

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info["page"]
        page = self.pages.get(name)
        if page is None:
            return _json({"error": f"no debug page {name!r}", "pages": sorted(self.pages)}, status=404)
        return _json(page())

    async def _lookup(self, request: web.Request) -> web.Response:
        name, asked = request.match_info["page"], request.match_info["asked"]
        lookup = self.lookups.get(name)
        found = None if lookup is None else await lookup(asked)
        return _json({"error": f"nothing is known of {asked!r}"}, status=404) if found is None else _json(found)


def _health(checks: Checks) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_request: web.Request) -> web.Response:
        verdict: Verdict = checks.ask()
        return web.Response(text=verdict.text, status=200 if verdict.ok else 503)

    return handler


def _json(value: object, status: int = 200) -> web.Response:
    body = orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    return web.Response(body=body, status=status, content_type="application/json")


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=64)
    listener.setblocking(False)
    return listener
