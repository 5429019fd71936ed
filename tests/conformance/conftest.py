"""One wire, two servers behind it: the in-memory API server of the testkit, and the real one.

Every test of this tree runs against both, so the first cannot drift from the second. The real one is marked
`integration`.
"""

import asyncio
import base64
import json
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from matrixinfer.devcluster import ControlPlane
from matrixinfer.testkit.apiserver import ApiServer

GADGETS = Path(__file__).with_name("gadgets.yaml")
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
SECONDS = 20
# What the real server answers, with 429 and a time to wait, while it fills the watch cache of a kind that it has
# only just begun to serve: that it is starting is not what a test asks about, and every client retries it.
STARTING = "storage is (re)initializing"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    code: int
    body: dict[str, Any]

    @property
    def meta(self) -> dict[str, Any]:
        return self.body["metadata"]

    @property
    def version(self) -> str:
        return self.meta["resourceVersion"]

    @property
    def refusal(self) -> tuple[int, str]:
        return self.code, self.body.get("reason", "")

    @property
    def fields(self) -> set[tuple[str, str]]:
        return {(cause["field"], cause["reason"]) for cause in self.body.get("details", {}).get("causes", [])}

    def managers(self) -> dict[tuple[str, str, str], Any]:
        return {
            (entry["manager"], entry["operation"], entry.get("subresource", "")): entry["fieldsV1"]
            for entry in self.meta.get("managedFields", [])
        }


@dataclass
class Wire:
    """One API server, one namespace of our own in it."""

    session: aiohttp.ClientSession
    url: str
    namespace: str
    compact: Callable[[], None] | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"User-Agent": "conformance/1"})

    @property
    def is_real(self) -> bool:
        return self.compact is None

    def path(self, what: str) -> str:
        """`pods/a/status` in the core group, `gadgets/a` in ours, `apps:deployments/x` elsewhere."""
        roots = {"gadgets": "/apis/conformance.example.org/v1", "leases": "/apis/coordination.k8s.io/v1"}
        root = roots.get(what.split("/")[0], "/api/v1")
        return f"{root}/namespaces/{self.namespace}/{what}"

    async def call(
        self, method: str, what: str, body: Any = None, *, content: str = "application/json", **query: str
    ) -> Answer:
        path = what if what.startswith("/") else self.path(what)
        data = None if body is None else json.dumps(body)
        headers = {**self.headers, **({"Content-Type": content} if data is not None else {})}
        async with asyncio.timeout(SECONDS):
            while True:
                answer = await self._once(method, self.url + path, data=data, headers=headers, params=query)
                if answer.code != 429 or answer.body.get("message") != STARTING:
                    return answer
                await asyncio.sleep(answer.body["details"]["retryAfterSeconds"])

    async def _once(self, method: str, url: str, **request: Any) -> Answer:
        async with self.session.request(method, url, **request) as got:
            raw = await got.read()
        try:
            return Answer(got.status, json.loads(raw))
        except ValueError:
            return Answer(got.status, {"text": raw.decode()})

    async def get(self, what: str, **query: str) -> Answer:
        return await self.call("GET", what, **query)

    async def post(self, what: str, body: Any, **query: str) -> Answer:
        return await self.call("POST", what, body, **query)

    async def put(self, what: str, body: Any, **query: str) -> Answer:
        return await self.call("PUT", what, body, **query)

    async def delete(self, what: str, body: Any = None, **query: str) -> Answer:
        return await self.call("DELETE", what, body, **query)

    async def merge(self, what: str, patch: Any, **query: str) -> Answer:
        return await self.call("PATCH", what, patch, content=MERGE, **query)

    async def apply(self, what: str, body: Any, manager: str = "me", **query: str) -> Answer:
        return await self.call("PATCH", what, body, content=APPLY, fieldManager=manager, **query)

    @asynccontextmanager
    async def watch(self, what: str, **query: str) -> AsyncIterator[Callable[[], Any]]:
        await self.get(what, limit="1")  # the cache that the watch reads from is filled from here on
        params = {"watch": "true", **query}
        request = self.session.get(self.url + self.path(what), params=params, headers=self.headers)
        async with request as stream:

            async def event() -> tuple[str, dict[str, Any]]:
                async with asyncio.timeout(SECONDS):
                    line = await stream.content.readline()
                got = json.loads(line)
                return got["type"], got["object"]

            yield event

    async def until(self, what: str, code: int) -> None:
        """Read until the answer has this code; the real server's controllers take a moment."""
        async with asyncio.timeout(SECONDS):
            # Polling, as there is no event for what is not there yet.
            while (await self.get(what)).code != code:
                await asyncio.sleep(0.05)

    async def until_gone(self, what: str) -> None:
        await self.until(what, 404)


def gadget(name: str = "a", spec: Mapping[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    return {
        "apiVersion": "conformance.example.org/v1",
        "kind": "Gadget",
        "metadata": {"name": name, **meta},
        "spec": {"size": 1, **(spec or {})},
    }


def config_map(name: str = "a", data: Mapping[str, str] | None = None, **meta: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}, "data": dict(data or {})}


def pod(name: str = "a", **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "example/image:1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "schedulerName": "nobody", **spec},
    }


@pytest.fixture(scope="session")
def real_plane() -> Iterator[ControlPlane]:
    given = os.environ.get("MATRIXINFER_CLUSTER_NAME")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid():x}"
    with ControlPlane.borrowed(given or f"it-{run[:8]}") as plane:
        plane.apply(GADGETS)
        plane.run_kubectl("wait", "--for=condition=Established", "crd/gadgets.conformance.example.org", "--timeout=30s")
        yield plane


@pytest.fixture(scope="session")
def real_access(real_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    config = yaml.safe_load(real_plane.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    pair = tmp_path_factory.mktemp("admin") / "admin.pem"
    pair.write_bytes(
        base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"])
    )
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    context.load_cert_chain(pair)
    return cluster["server"], context


@pytest_asyncio.fixture(params=["memory", pytest.param("real", marks=pytest.mark.integration)])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    if request.param == "memory":
        async with ApiServer() as server, aiohttp.ClientSession() as session:
            server.api.register_crds(GADGETS)
            yield Wire(session, server.url, "default", server.api.compact)
        return
    url, context = request.getfixturevalue("real_access")
    namespace = f"c-{uuid.uuid4().hex[:10]}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        wire = Wire(session, url, namespace)
        await wire.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
        # Pods are refused until the controller manager has made this account.
        await wire.until("serviceaccounts/default", 200)
        yield wire
        await wire.delete(f"/api/v1/namespaces/{namespace}")
