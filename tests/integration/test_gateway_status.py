"""The status writer through changes of office, on the in-memory API server."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from matrixinfer.devcluster import repository
from matrixinfer.gateway.feeds.kube import ROUTES, ClusterView
from matrixinfer.gateway.figures import TrafficFigures
from matrixinfer.gateway.metrics import Traffic
from matrixinfer.gateway.stats import Stats
from matrixinfer.gateway.statuswriter import StatusWriter
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.resource import LEASES, Key
from matrixinfer.service.clock import monotonic
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


def no_traffic(view: ClusterView) -> TrafficFigures:
    return TrafficFigures(Traffic(CollectorRegistry()), view.routes, monotonic)


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
        writer = StatusWriter(client, cache, view, ELECTION, no_traffic(view), pause_seconds=0.1)
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
        view = ClusterView(cache, None)
        writer = StatusWriter(client, cache, view, ELECTION, no_traffic(view), pause_seconds=0.1)
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


async def test_traffic_gets_into_the_status_when_it_matters_and_settles_when_it_ends(tmp_path: Path) -> None:
    """A minute of three looks: traffic is written once, more of the same is not, and its end is, once."""
    api = MemoryApi()
    api.register_crds(repository() / "crds")
    api.create(ROUTES, route("first"))
    stopping, now = asyncio.Event(), [0.0]
    traffic, stats = Traffic(CollectorRegistry()), Stats()

    def serve(requests: int, *, errors: int = 0) -> None:
        series = stats.series("first", "default/first", "absent")
        for number in range(requests):
            series.end(503 if number < errors else 200, "reset" if number < errors else "ok", 1, client_gone=False)
            series.first_token.observe(0.08)
            series.per_token.observe(0.012)
        traffic.report(0, stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0))

    def targets() -> list[dict[str, Any]]:
        found: Any = api.get(ROUTES, Key("default", "first")).get("status", {})
        return list(found.get("targets", ()))

    def writes() -> int:
        return sum(write.subresource == "status" for write in api.writes)

    async with (
        ApiServer(api) as server,
        await Client.connect(server.write_kubeconfig(tmp_path / "kubeconfig")) as client,
    ):
        cache = Cache(client)
        view = ClusterView(cache, None)
        figures = TrafficFigures(traffic, view.routes, lambda: now[0], window_seconds=60, pause_seconds=15)
        writer = StatusWriter(client, cache, view, ELECTION, figures, pause_seconds=0.1)

        def look(seconds: float) -> None:
            now[0] += seconds
            writer.look_at(figures.look())

        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(cache.run())
            writing = tasks.create_task(writer.run(stopping))
            await until(lambda: conditions(api, "first").get("Accepted") == "True")
            assert targets() == [{"modelServerName": "absent"}]
            look(0)
            serve(100, errors=2)
            look(60)
            await until(lambda: targets()[0].get("requests", 0) == 100)
            (target,) = targets()
            assert target["errors"] == 2
            assert 75 <= target["ttftP50Milliseconds"] <= target["ttftP95Milliseconds"] <= 100
            assert 10 <= target["tpotP50Milliseconds"] <= target["tpotP95Milliseconds"] <= 15
            before = writes()
            # Much more of it, but too soon; then hardly more than what was said.
            serve(900)
            look(5)
            assert figures.of(view.routes.values()[0])[0].requests == 100
            look(55)
            await until(lambda: targets()[0].get("requests", 0) == 900)
            serve(905)
            look(60)
            await asyncio.sleep(0.3)
            assert writes() == before + 1
            # Nothing more comes: said once, and then nothing is written any more.
            look(61)
            await until(lambda: targets()[0].get("requests", 0) == 0)
            for _ in range(5):
                look(61)
            await asyncio.sleep(0.3)
            assert writes() == before + 2
            stopping.set()
            await writing
            watching.cancel()
