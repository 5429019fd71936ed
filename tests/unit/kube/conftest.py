"""A scripted API server, virtual time, and a client that talks to the in-memory API without sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import DeadlineExceeded, Unreachable, error_from_status
from matrixinfer.kube.transport import Credentials, Transport
from matrixinfer.testkit.memory import MemoryApi, StatusError
from matrixinfer.testkit.virtual import run_virtually

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Stub:
    """One scripted server: set `answer`, read `requests` as (method, path, query)."""

    url: str = ""
    answer: Handler | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    client: Client = None  # type: ignore[assignment]  # set before the test sees it

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        self.headers.append(dict(request.headers))
        raw = await request.read()
        self.bodies.append(orjson.loads(raw) if raw else None)
        assert self.answer is not None
        return await self.answer(request)


def answer(body: Any, status: int = 200, **headers: str) -> web.Response:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return web.Response(body=raw, status=status, content_type="application/json", headers=headers)


def status_body(code: int, reason: str, message: str = "no", **more: Any) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, **more}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Logs are taken in, not rendered: a traceback in colours takes longer than most tests."""
    with capture_logs():
        yield


@pytest.fixture
def json_answer() -> Callable[..., web.Response]:
    return answer


@pytest.fixture
def failure() -> Callable[..., dict[str, Any]]:
    return status_body


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    scripted = Stub()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{tail:.*}", scripted.handle)
    async with TestServer(app, host="127.0.0.1", handler_cancellation=True) as server:
        scripted.url = str(server.make_url("/")).rstrip("/")
        async with Client(Transport(Credentials(scripted.url), user_agent="test")) as client:
            scripted.client = client
            yield scripted


@pytest.fixture
def virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on a loop where sleeping costs nothing and takes exactly as long as it says."""
    return run_virtually


class MemoryClient:
    """The writing half of `Client` over a `MemoryApi`, in process, with the faults that a network has."""

    def __init__(self, api: MemoryApi) -> None:
        self.api = api
        self.hanging = False
        self.refusing = False
        self.lose_answers = 0
        self.latency = 0.0
        self.calls: list[str] = []

    async def _call(self, verb: str, deadline_seconds: float, effect: Callable[[], Any]) -> Any:
        self.calls.append(verb)
        if self.refusing:
            raise Unreachable("connection refused")
        if self.hanging:
            await asyncio.sleep(deadline_seconds)
            raise DeadlineExceeded("no answer")
        await asyncio.sleep(self.latency)
        try:
            found = effect()
        except StatusError as exc:
            raise error_from_status(exc.status["code"], exc.status) from exc
        if self.lose_answers:
            self.lose_answers -= 1
            await asyncio.sleep(max(0.0, deadline_seconds - self.latency))
            raise DeadlineExceeded("the answer was lost")
        return found

    async def get(self, resource: Any, key: Any, *, deadline_seconds: float = 10) -> Any:
        return await self._call("get", deadline_seconds, lambda: self.api.get(resource, key))

    async def create(
        self, resource: Any, manifest: Any, *, field_manager: str = "", deadline_seconds: float = 10
    ) -> Any:
        return await self._call("create", deadline_seconds, lambda: self.api.create(resource, manifest))

    async def apply(
        self, resource: Any, manifest: Any, *, field_manager: str, subresource: str = "", deadline_seconds: float = 10
    ) -> Any:
        return await self._call(
            "apply",
            deadline_seconds,
            lambda: self.api.apply(
                resource, manifest, field_manager=field_manager, force=True, subresource=subresource
            ),
        )

    async def replace(self, resource: Any, manifest: Any, *, deadline_seconds: float = 10) -> Any:
        return await self._call("replace", deadline_seconds, lambda: self.api.replace(resource, manifest))

    async def merge_patch(
        self, resource: Any, key: Any, patch: Any, *, field_manager: str = "", deadline_seconds: float = 10
    ) -> Any:
        return await self._call("merge_patch", deadline_seconds, lambda: self.api.merge_patch(resource, key, patch))

    async def scale(
        self, resource: Any, key: Any, replicas: int, *, field_manager: str = "", deadline_seconds: float = 10
    ) -> Any:
        return await self._call("scale", deadline_seconds, lambda: self.api.scale(resource, key, replicas))

    async def delete(
        self,
        resource: Any,
        key: Any,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        deadline_seconds: float = 10,
    ) -> Any:
        return await self._call(
            "delete", deadline_seconds, lambda: self.api.delete(resource, key, uid=uid, grace_seconds=grace_seconds)
        )


@pytest.fixture
def api() -> MemoryApi:
    return MemoryApi()


@pytest.fixture
def memory_client(api: MemoryApi) -> MemoryClient:
    return MemoryClient(api)


@pytest.fixture
def second_client(api: MemoryApi) -> MemoryClient:
    """Another process's connection to the same server."""
    return MemoryClient(api)
