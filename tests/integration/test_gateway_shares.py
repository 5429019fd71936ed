"""Two gateways and the object through which one learns what the other counted, on the in-memory API server."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from matrixinfer.devcluster import ControlPlane, repository
from matrixinfer.gateway.core.figures import Counts, TargetCounts
from matrixinfer.gateway.feeds.kube import ROUTES, ClusterView
from matrixinfer.gateway.figures import TrafficFigures
from matrixinfer.gateway.metrics import Traffic
from matrixinfer.gateway.shares import LEASE, Shares, decoded, encoded
from matrixinfer.gateway.stats import Stats
from matrixinfer.gateway.statuswriter import StatusWriter
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.errors import Forbidden
from matrixinfer.kube.resource import LEASES, Key
from matrixinfer.service.clock import monotonic
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.memory import MemoryApi

KEY = Key("default", LEASE)
COUNTS: Counts = {("ns/r", "s"): TargetCounts(7, 1, (0, 7, 0), (3, 4))}


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        # The API server and both gateways run on this loop; none of them tells when it is done.
        while not holds():
            await asyncio.sleep(0.02)


def annotations(api: MemoryApi) -> dict[str, str]:
    found = api.get(LEASES, KEY)["metadata"]
    assert isinstance(found, dict)
    return dict(found.get("annotations", {}))


async def test_a_follower_tells_and_the_leader_adds_up_for_as_long_as_it_is_told(tmp_path: Path) -> None:
    api, now = MemoryApi(), [1000.0]
    async with (
        ApiServer(api) as server,
        await Client.connect(server.write_kubeconfig(tmp_path / "kubeconfig")) as client,
    ):
        leader, one, two = (Shares(client, "default", f"gateway-abc-{n}", lambda: now[0]) for n in ("l", "1", "2"))
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(leader.run(dict, lambda: True))
            # Nothing to tell is told to nobody.
            await one.tell({})
            assert api.writes == []
            await one.tell(COUNTS)
            await two.tell(COUNTS)
            await until(lambda: len(list(leader.others())) == 2)
            assert list(leader.others()) == [COUNTS, COUNTS]
            # The same again is no news, until the others might think that we are gone.
            before = len(api.writes)
            await one.tell(COUNTS)
            assert len(api.writes) == before
            now[0] += 40
            await one.tell(COUNTS)
            text = annotations(api)["traffic.matrixinfer.ai/gateway-abc-1"]
            await until(lambda: leader._annotations()["traffic.matrixinfer.ai/gateway-abc-1"] == text)
            assert len(list(leader.others())) == 2
            # The second one is silent by now.
            now[0] += 40
            assert list(leader.others()) == [COUNTS]
            # An end of traffic is told once, and leaves nothing behind.
            await one.tell({})
            before = len(api.writes)
            await one.tell({})
            assert len(api.writes) == before
            assert set(annotations(api)) == {"traffic.matrixinfer.ai/gateway-abc-2"}
            now[0] += 700
            await leader.forget_gone()
            assert annotations(api) == {}
            watching.cancel()


def test_counts_survive_the_way_and_nonsense_counts_nothing() -> None:
    assert decoded(encoded(COUNTS)) == COUNTS
    assert decoded("") == decoded("not base64!") == decoded("AAAA") == {}


def test_a_share_has_a_size() -> None:
    many: Counts = {(f"ns/route-{n}", "s"): TargetCounts(n, 0, (n,) * 26, (n,) * 21) for n in range(5000)}
    text = encoded(many)
    assert len(text) < 16_000
    assert min(counts.requests for counts in decoded(text).values()) == 4800


class Gateway:
    """The part of a gateway that counts, tells and writes, on a clock of the test's."""

    def __init__(self, client: Client, namespace: str, name: str, now: list[float]) -> None:
        self.stats = Stats()
        self.traffic = Traffic(CollectorRegistry())
        self.cache = Cache(client)
        self.view = ClusterView(self.cache, namespace)
        self.shares = Shares(client, namespace, name, lambda: now[0])
        self.figures = TrafficFigures(self.traffic, self.view.routes, lambda: now[0], others=self.shares.others)
        election = ElectionSettings(name="matrixinfer-gateway", namespace=namespace, identity=name)
        self.writer = StatusWriter(client, self.cache, self.view, election, self.figures)

    def serve(self, route: str, seconds: float, requests: int) -> None:
        series = self.stats.series("m", route, "server")
        for _ in range(requests):
            series.end(200, "ok", seconds, client_gone=False)
            series.first_token.observe(seconds)
        report = self.stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
        self.traffic.report(0, report)

    def look(self) -> None:
        self.writer.look_at(self.figures.look())


async def test_two_gateways_make_one_status_on_a_real_api_server(control_plane: ControlPlane, namespace: str) -> None:
    """One saw the fast requests and one the slow ones; the status has the sum, and an idle minute later nothing."""
    now, stopping = [0.0], asyncio.Event()
    async with await Client.connect(control_plane.kubeconfig, user_agent="test-gateway") as client:
        rule = {"targetModels": [{"modelServerName": "server"}]}
        spec = {"modelName": namespace, "rules": [rule]}
        await client.create(ROUTES, {"metadata": {"name": "r", "namespace": namespace}, "spec": spec})
        leader, follower = (Gateway(client, namespace, name, now) for name in ("gateway-a", "gateway-b"))

        async def target() -> dict[str, Any]:
            status: Any = (await client.get(ROUTES, Key(namespace, "r"))).get("status", {})
            return dict(next(iter(status.get("targets", ())), {}))

        async def until_requests(count: int) -> dict[str, Any]:
            async with asyncio.timeout(30):
                while (found := await target()).get("requests", 0) != count:
                    await asyncio.sleep(0.05)
            return found

        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(leader.cache.run()),
                tasks.create_task(follower.cache.run()),
                tasks.create_task(leader.shares.run(lambda: leader.figures.own, lambda: True)),
                tasks.create_task(leader.writer.run(stopping)),
            ]
            await until(lambda: leader.writer.leading and follower.cache.synced)
            for gateway in (leader, follower):
                gateway.look()
            leader.serve(f"{namespace}/r", 0.04, 90)
            follower.serve(f"{namespace}/r", 2.5, 10)
            now[0] += 60
            follower.look()
            await follower.shares.tell(follower.figures.own)
            await until(lambda: list(leader.shares.others()))
            leader.look()
            found = await until_requests(100)
            assert found["ttftP50Milliseconds"] <= 50
            assert found["ttftP95Milliseconds"] >= 2000
            now[0] += 61
            follower.look()
            await follower.shares.tell(follower.figures.own)
            await until(lambda: not list(leader.shares.others()))
            leader.look()
            assert (await until_requests(0))["modelServerName"] == "server"
            stopping.set()
            await running.pop()
            for task in running:
                task.cancel()


async def may_tell(follower: Shares) -> bool:
    try:
        await follower.tell(COUNTS)
    except Forbidden:
        return False
    return True


async def test_the_role_that_we_ship_is_enough_and_reaches_no_other_lease(
    control_plane: ControlPlane, namespace: str
) -> None:
    """Names narrow a list and a watch only when the request asks for one object; ours does."""
    documents = yaml.safe_load_all((repository() / "deploy/base/gateway/rbac.yaml").read_text())
    (role,) = [document for document in documents if document["kind"] == "Role"]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gateway"}
    control_plane.apply(
        [
            {**role, "metadata": {"name": "gateway", "namespace": namespace}},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "gateway", "namespace": namespace},
                "roleRef": reference,
                "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
            },
        ]
    )
    kubeconfig = control_plane.kubeconfig_for(namespace, "default")
    async with await Client.connect(kubeconfig, user_agent="test-gateway") as client:
        leader, follower = (Shares(client, namespace, name, monotonic) for name in ("gateway-a", "gateway-b"))
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(leader.run(dict, lambda: True))
            # The API server hears of the new role by a watch of its own.
            async with asyncio.timeout(30):
                while not await may_tell(follower):
                    await asyncio.sleep(0.05)
            await until(lambda: list(leader.others()) == [COUNTS])
            watching.cancel()
        with pytest.raises(Forbidden):
            await client.list(LEASES, namespace)
        with pytest.raises(Forbidden):
            await client.merge_patch(LEASES, Key(namespace, "matrixinfer-autoscaler"), {})
