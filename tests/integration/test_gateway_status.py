"""The status writer through changes of office, on the in-memory API server."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from matrixinfer.devcluster import repository
from matrixinfer.gateway.feeds.kube import ROUTES, ClusterView
from matrixinfer.gateway.statuswriter import StatusWriter
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.resource import LEASES, Key
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.memory import MemoryApi

ELECTION = ElectionSettings(
    name="matrixinfer-gateway",
    namespace="default",
    identity="me",
    lease_seconds=3,
    renew_deadline_seconds=1.5,
    retry_seconds=0.2,
    request_seconds=1,
)
LEASE = Key("default", "matrixinfer-gateway")


def route(name: str) -> dict[str, Any]:
    return {
        "apiVersion": ROUTES.api_version,
        "kind": ROUTES.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"modelName": name, "rules": [{"targetModels": [{"modelServerName": "absent"}]}]},
    }


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        # The API server and the writer run on this loop; neither tells when it is done.
        while not holds():
            await asyncio.sleep(0.02)


def conditions(api: MemoryApi, name: str) -> dict[str, str]:
    found: Any = api.get(ROUTES, Key("default", name)).get("status", {})
    return {condition["type"]: condition["status"] for condition in found.get("conditions", [])}


async def test_a_lost_lease_ends_a_term_and_neither_the_process_nor_the_watches(tmp_path: Path) -> None:
    api = MemoryApi()
    api.register_crds(repository() / "crds")
    api.create(ROUTES, route("first"))
    stopping = asyncio.Event()
    async with (
        ApiServer(api) as server,
        await Client.connect(server.write_kubeconfig(tmp_path / "kubeconfig")) as client,
    ):
        cache = Cache(client)
        view = ClusterView(cache, None)
        writer = StatusWriter(client, cache, view, ELECTION, pause_seconds=0.1)
        with capture_logs() as logs:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(cache.run())
                writing = tasks.create_task(writer.run(stopping))
                await until(lambda: conditions(api, "first").get("ResolvedRefs") == "False")
                lease: Any = api.get(LEASES, LEASE)
                api.replace(LEASES, {**lease, "spec": {**lease["spec"], "holderIdentity": "another"}})
                await until(lambda: any(line["event"] == "status_term_ended" for line in logs))
                assert not writer.leading
                api.create(ROUTES, route("second"))
                await until(lambda: conditions(api, "second").get("Accepted") == "True")
                assert writer.leading
                stopping.set()
                await writing
                watching.cancel()
    # One listener of each controller on each store it looks at: those of the first term are gone with it.
    assert len(view.pods._listeners) == 0
    assert len(view.routes._listeners) == 0


async def test_a_steady_state_writes_nothing(tmp_path: Path) -> None:
    api = MemoryApi()
    api.register_crds(repository() / "crds")
    api.create(ROUTES, route("first"))
    stopping = asyncio.Event()
    async with (
        ApiServer(api) as server,
        await Client.connect(server.write_kubeconfig(tmp_path / "kubeconfig")) as client,
    ):
        cache = Cache(client)
        writer = StatusWriter(client, cache, ClusterView(cache, None), ELECTION, pause_seconds=0.1)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(cache.run())
            writing = tasks.create_task(writer.run(stopping))
            await until(lambda: conditions(api, "first").get("Accepted") == "True")
            # A change that changes nothing for us makes a pass, and no write of ours.
            api.merge_patch(ROUTES, Key("default", "first"), {"metadata": {"labels": {"touched": "yes"}}})
            await asyncio.sleep(0.5)
            stopping.set()
            await writing
            watching.cancel()
    ours = [write for write in api.writes if write.subresource == "status"]
    assert len(ours) == 1
