"""Requests for a server without pods: what the gateway writes, when it does not, and that it works."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.integration.gateway_world import GatewayStarter, World, chat, target, until

from matrixinfer.api.conditions import parse_time
from matrixinfer.api.names import INFER_ENTRY, INFER_NAME, MODEL_BACKEND_NAME, WAKE_UP_ANNOTATION
from matrixinfer.devcluster import repository
from matrixinfer.devcluster.services import ServiceProcess
from matrixinfer.gateway.feeds.kube import SERVERS, ClusterView
from matrixinfer.gateway.ipc import Wanted
from matrixinfer.gateway.waking import INFERS, Waker
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.memory import MemoryApi

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = Key("default", "m")


class Sleeper:
    """A gateway's waker on an in-memory API server, with time that a test sets."""

    view: ClusterView

    def __init__(self, api: MemoryApi) -> None:
        self.api = api
        self.seconds = 0.0
        self.waker = Waker(
            every_seconds=10, clock=lambda: self.seconds, now=lambda: START + timedelta(seconds=self.seconds)
        )

    def server(self, name: str, labels: dict[str, str]) -> None:
        spec = {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": labels},
            "workloadPort": {"port": 8000},
        }
        self.api.create(SERVERS, manifest(SERVERS.kind, name, "networking.matrixinfer.ai/v1alpha1", spec))

    def infer(self, name: str) -> None:
        role = {"name": "leader", "entryTemplate": {"spec": {"containers": [{"name": "e", "image": "i"}]}}}
        spec = {"replicas": 0, "template": {"roles": [role]}}
        self.api.create(INFERS, manifest(INFERS.kind, name, "workload.matrixinfer.ai/v1alpha1", spec))

    def pod(self, labels: dict[str, str]) -> None:
        made = manifest("Pod", "p", "v1", {"containers": [{"name": "e", "image": "i"}]})
        made["metadata"]["labels"] = labels
        self.api.create(PODS, made)

    def annotation(self, name: str = "m") -> str:
        found: Any = self.api.get(INFERS, Key("default", name))["metadata"]
        return str(found.get("annotations", {}).get(WAKE_UP_ANNOTATION, ""))

    def writes(self) -> int:
        return sum(write.resource == INFERS and write.verb == "patch" for write in self.api.writes)

    async def hear(self, name: str = "m") -> None:
        """Tell it, and wait until it has done whatever it does."""
        # It looks at one after the other: where it has come to the second, it is done with the first.
        for wanted in (Wanted("default", name), Wanted("default", "a-server-that-nobody-made")):
            self.waker.hear(wanted)
            await self.until(lambda: not self.waker._wanted and not self.waker._heard.is_set())

    async def until(self, holds: Callable[[], object]) -> None:
        """The API server and the waker run on this loop; neither tells when it is done."""
        while not holds():
            await asyncio.sleep(0.005)

    async def sees(self, *servers: str) -> None:
        """Wait until the gateway knows of these."""
        await self.until(lambda: all(self.view.servers.get(Key("default", name)) for name in servers))


def manifest(kind: str, name: str, version: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


@pytest.fixture
async def sleeper(tmp_path: Path) -> AsyncIterator[Sleeper]:
    api = MemoryApi()
    api.register_crds(repository() / "crds")
    made = Sleeper(api)
    made.server("m", {INFER_NAME: "m"})
    made.infer("m")
    async with (
        asyncio.timeout(30),
        ApiServer(api) as server,
        await Client.connect(server.write_kubeconfig(tmp_path / "kubeconfig")) as client,
    ):
        cache = Cache(client)
        made.view = ClusterView(cache, None)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(cache.run()), tasks.create_task(made.waker.run(client, made.view))]
            await cache.wait_synced()
            yield made
            for task in running:
                task.cancel()


async def test_what_is_wanted_is_annotated_once_however_often_it_is_said(sleeper: Sleeper) -> None:
    for _ in range(5):
        await sleeper.hear()
    assert sleeper.annotation() == "2026-01-01T12:00:00Z"
    assert sleeper.writes() == 1


async def test_what_is_still_wanted_later_is_said_again(sleeper: Sleeper) -> None:
    await sleeper.hear()
    sleeper.seconds = 11
    await sleeper.hear()
    assert sleeper.annotation() == "2026-01-01T12:00:11Z"
    assert sleeper.writes() == 2


async def test_a_server_with_a_pod_is_awake_even_if_the_pod_is_not_ready(sleeper: Sleeper) -> None:
    sleeper.pod({INFER_NAME: "m", INFER_ENTRY: "true"})
    await sleeper.until(lambda: len(sleeper.view.pods) == 1)
    await sleeper.hear()
    assert sleeper.writes() == 0


async def test_a_server_that_the_model_controller_made_shares_its_name_with_its_workload(sleeper: Sleeper) -> None:
    sleeper.server("model-backend", {MODEL_BACKEND_NAME: "backend", INFER_ENTRY: "true"})
    sleeper.infer("model-backend")
    await sleeper.sees("model-backend")
    await sleeper.hear("model-backend")
    assert sleeper.annotation("model-backend")


async def test_nothing_is_created_for_a_workload_that_does_not_exist(sleeper: Sleeper) -> None:
    def unknown() -> float:
        return REGISTRY.get_sample_value("matrixinfer_gateway_wake_ups_total", {"result": "unknown"}) or 0.0

    sleeper.server("lost", {INFER_NAME: "nowhere"})
    sleeper.server("other", {"app": "other"})
    await sleeper.sees("lost", "other")
    before = unknown()
    for name in ("lost", "other", "not-even-a-server"):
        await sleeper.hear(name)
    assert unknown() - before == 2
    assert sleeper.api.find(INFERS, Key("default", "nowhere")) is None


# -- on a real API server -----------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
async def test_a_request_for_a_model_at_zero_wakes_it_up_and_is_answered(
    world: World, gateway: GatewayStarter, service_process: Any
) -> None:
    """The gateway asks, with the rights that it ships with; the autoscaler scales; the test plays the rest."""
    root = f"/apis/workload.matrixinfer.ai/v1alpha1/namespaces/{world.namespace}/modelinfers"
    registry = f"/apis/registry.matrixinfer.ai/v1alpha1/namespaces/{world.namespace}"
    role = {"name": "leader", "entryTemplate": {"spec": {"containers": [{"name": "engine", "image": "none"}]}}}
    world.plane.api.create(root, _named("workload", "ModelInfer", "m", {"replicas": 0, "template": {"roles": [role]}}))
    metrics = [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 2}]
    policy = _named("registry", "AutoscalingPolicy", "p", {"metrics": metrics})
    scaling = {"target": {"targetRef": {"kind": "ModelInfer", "name": "m"}}, "minReplicas": 0, "maxReplicas": 2}
    binding = _named(
        "registry",
        "AutoscalingPolicyBinding",
        "b",
        {"policyRef": {"name": "p"}, "scalingConfiguration": scaling},
    )
    world.plane.api.create(f"{registry}/autoscalingpolicies", policy)
    world.plane.api.create(f"{registry}/autoscalingpolicybindings", binding)
    world.server("m", "m", workloadSelector={"matchLabels": {INFER_NAME: "m"}})
    world.route("m", {"targetModels": [target("m")]}, modelName="m")
    running = gateway()
    autoscaler: ServiceProcess = service_process("autoscaler", {"MATRIXINFER_AUTOSCALER_PERIOD_SECONDS": "60"})
    await until("the model", lambda: running.models() == {"m"})

    def infer() -> dict[str, Any]:
        return dict(world.plane.api.get(f"{root}/m"))

    def annotation() -> str:
        return str(infer()["metadata"].get("annotations", {}).get(WAKE_UP_ANNOTATION, ""))

    # The first round has decided to keep 0: the next one is a minute away, unless somebody calls.
    await until("a decision", lambda: "keeping 0" in json.dumps(_status(world, registry)), 30)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(asyncio.to_thread(chat, running.openai))
        await until("the annotation", lambda: annotation() != "", 20)
        assert abs(datetime.now(UTC) - parse_time(annotation())) < timedelta(seconds=30)
        await until("a replica", lambda: infer()["spec"]["replicas"] == 1, 30)
        engine = await asyncio.to_thread(world.engine, "m", model="m")
        labels = (f"{INFER_NAME}=m", f"{INFER_ENTRY}=true")
        await asyncio.to_thread(world.plane.run_kubectl, "label", "pod", engine.pod, "-n", world.namespace, *labels)
        answer = await asking
    assert answer.choices[0].message.content
    written = annotation()
    assert running.metric('matrixinfer_gateway_wake_ups_total{result="written"') >= 1
    assert chat(running.openai).choices
    assert annotation() == written
    assert autoscaler.is_ready()


def _named(group: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    version = f"{group}.matrixinfer.ai/v1alpha1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _status(world: World, registry: str) -> dict[str, Any]:
    found: dict[str, Any] = world.plane.api.get(f"{registry}/autoscalingpolicybindings/b").get("status", {})
    return found
