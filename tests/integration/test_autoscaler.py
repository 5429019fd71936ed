"""The autoscaler as a real process, with its shipped rights, on a real API server and against real (simulated) engines.

The test plays the infer-controller: it makes the pods that the ModelInfer asks for and says that they are ready.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from matrixinfer.devcluster import ControlPlane, repository
from matrixinfer.devcluster.controlplane import free_ports
from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.server import Simulator

ENDLESS = {"prompt": "go", "max_tokens": 4000, "ignore_eos": True, "stream": True}
ACCOUNT = "system:serviceaccount:matrixinfer-system:autoscaler"
SECONDS = 60


class World:
    """One namespace: a ModelInfer named m, its policy and binding, and pods at loopback addresses."""

    def __init__(self, plane: ControlPlane, namespace: str, port: int) -> None:
        self.plane = plane
        self.namespace = namespace
        self.port = port

    def path(self, plural: str, name: str = "") -> str:
        group = {"modelinfers": "workload.matrixinfer.ai", "pods": "", "events": ""}.get(
            plural, "registry.matrixinfer.ai"
        )
        root = f"/apis/{group}/v1alpha1" if group else "/api/v1"
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def create(self, plural: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        group = "workload" if plural == "modelinfers" else "registry"
        manifest = {"apiVersion": f"{group}.matrixinfer.ai/v1alpha1", "kind": kind, "metadata": {"name": name}}
        self.plane.api.create(self.path(plural), {**manifest, "spec": spec})

    def infer(self, replicas: int) -> None:
        engine = {"name": "engine", "image": "none", "ports": [{"name": "http", "containerPort": self.port}]}
        role = {"name": "leader", "entryTemplate": {"spec": {"containers": [engine]}}}
        self.create("modelinfers", "ModelInfer", "m", {"replicas": replicas, "template": {"roles": [role]}})

    def policy(self, **more: Any) -> None:
        metrics = [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 2}]
        down = {"period": "1s", "stabilizationWindow": "3s", "percent": 100}
        self.create(
            "autoscalingpolicies",
            "AutoscalingPolicy",
            "p",
            {"metrics": metrics, "behavior": {"scaleDown": down}, **more},
        )

    def binding(self, *, least: int = 1, most: int = 4, **target: Any) -> None:
        scaling = {
            "target": {"targetRef": {"kind": "ModelInfer", "name": "m"}, **target},
            "minReplicas": least,
            "maxReplicas": most,
        }
        spec = {"policyRef": {"name": "p"}, "scalingConfiguration": scaling}
        self.create("autoscalingpolicybindings", "AutoscalingPolicyBinding", "b", spec)

    def pod(self, number: int, address: str) -> None:
        name = f"m-{number}-leader-0-0"
        labels = {
            "modelinfer.matrixinfer.ai/name": "m",
            "modelinfer.matrixinfer.ai/role": "leader",
            "modelinfer.matrixinfer.ai/entry": "true",
        }
        spec = {"schedulerName": "nobody", "containers": [{"name": "engine", "image": "none"}]}
        self.plane.api.create(
            self.path("pods"),
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec},
        )
        condition = {
            "type": "Ready",
            "status": "True",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
        self.plane.api.patch(self.path("pods", name) + "/status", {"status": status})

    def replicas(self) -> int:
        spec = self.plane.api.get(self.path("modelinfers", "m"))["spec"]
        count: int = spec["replicas"]
        return count

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.plane.api.get(self.path("autoscalingpolicybindings", "b")).get("status", {})
        return status

    def condition(self, kind: str) -> dict[str, Any]:
        found = [c for c in self.status().get("conditions", ()) if c["type"] == kind]
        return found[0] if found else {}

    async def audited(self, *verbs: str) -> list[tuple[str, str]]:
        """What the autoscaler did in this namespace, as the API server saw it: verb and resource."""
        seen = []
        # Beside the engines, which run on this loop: their silence would be something to write.
        for entry in await asyncio.to_thread(self.plane.audited, ACCOUNT):
            reference = entry.get("objectRef") or {}
            if reference.get("namespace") != self.namespace:
                continue
            resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
            if not verbs or entry["verb"] in verbs:
                seen.append((entry["verb"], resource))
        return seen


async def until(what: str, claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not await asyncio.to_thread(claim):
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def engines(port: int, *addresses: str) -> AsyncIterator[list[Simulator]]:
    """One engine per address, each with room for one stream that lasts."""
    async with AsyncExitStack() as stack:
        pace = {"max_num_seqs": 1, "decode_tokens_per_second": 20.0}
        yield [
            await stack.enter_async_context(Simulator(SimConfig(host=address, port=port, **pace)))
            for address in addresses
        ]


@asynccontextmanager
async def load(url: str, streams: int) -> AsyncIterator[None]:
    """So many clients who wait for one engine."""

    async def client(http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/completions", json=ENDLESS) as stream:
            await stream.read()

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout) as http, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(http)) for _ in range(streams)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@pytest.fixture
def world(control_plane: ControlPlane, namespace: str) -> World:
    (port,) = free_ports(1)
    return World(control_plane, namespace, port)


@pytest.fixture
def autoscaler(service_process: Callable[..., Any]) -> Any:
    return service_process("autoscaler", {"MATRIXINFER_AUTOSCALER_PERIOD_SECONDS": "1"})


async def test_replicas_follow_the_load_up_and_down_and_a_steady_target_costs_no_write(
    world: World, autoscaler: Any
) -> None:
    addresses = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]
    async with engines(world.port, *addresses) as (first, *_):
        world.policy()
        world.infer(1)
        world.pod(0, addresses[0])

        async with load(first.url, 7):
            # All at once: who sees some of them only decides on a step between.
            await until("the load", lambda: len(first.engine.scheduler.waiting) == 6)
            world.binding()
            await until("more replicas", lambda: world.replicas() == 3)
            # Written after the scale, and before there are more pods to read.
            await until("the reason", lambda: world.status().get("desiredReplicas") == 3)
            for number in (1, 2):
                world.pod(number, addresses[number])
            recommendation = world.status()["recommendation"]
            assert recommendation["replicas"] == 3
            assert "matrixinfer:num_requests_waiting is 6 per pod" in recommendation["message"]
            reading = {"metricName": "matrixinfer:num_requests_waiting", "value": "6", "targetValue": "2", "pods": 1}
            assert recommendation["inputs"] == [{**reading, "missingPods": 0}]
            await asyncio.sleep(4)
            assert world.replicas() == 3

        await until("fewer replicas", lambda: world.replicas() == 1)
        assert world.status()["lastScaleTime"]

        def scaled_events() -> bool:
            events = world.plane.api.get(world.path("events"))["items"]
            return any(event["reason"] == "Scaled" and "→" in event["message"] for event in events)

        await until("an event", scaled_events)
        await until("a settled status", lambda: world.status()["desiredReplicas"] == 1)
        writes = ("create", "update", "patch", "delete")
        assert {resource for verb, resource in await world.audited(*writes)} == {
            "modelinfers/scale",
            "autoscalingpolicies/status",
            "autoscalingpolicybindings/status",
            "events",
        }
        # The sentence of the last change is renewed once; then nothing more is written.
        await asyncio.sleep(5)
        before = len(await world.audited(*writes))
        await asyncio.sleep(5)
        assert len(await world.audited(*writes)) == before
        policy = world.plane.api.get(world.path("autoscalingpolicies", "p"))["status"]
        assert (policy["bindings"], policy["metrics"]) == (1, "matrixinfer:num_requests_waiting")


async def test_silent_pods_and_a_restart_take_nothing_away(world: World, service_process: Callable[..., Any]) -> None:
    process = service_process("autoscaler", {"MATRIXINFER_AUTOSCALER_PERIOD_SECONDS": "1"})
    world.policy()
    world.infer(3)
    for number, address in enumerate(("127.0.0.21", "127.0.0.22", "127.0.0.23")):
        world.pod(number, address)
    world.binding()
    await until("a condition", lambda: world.condition("Ready").get("reason") == "MetricsUnknown")
    await asyncio.sleep(4)
    assert world.replicas() == 3
    process.kill()
    process.start()
    await asyncio.to_thread(process.wait_ready)
    await asyncio.sleep(4)
    assert world.replicas() == 3
    assert "no pod says" in world.status()["recommendation"]["message"]


async def test_a_dry_run_recommends_and_a_missing_target_is_said(world: World, autoscaler: Any) -> None:
    world.policy(dryRun=True)
    world.binding(least=2)
    await until("the target is missed", lambda: world.condition("TargetFound").get("status") == "False")
    assert world.condition("Ready")["reason"] == "TargetNotFound"
    assert "does not exist" in world.condition("Ready")["message"]
    world.infer(1)
    await until("a recommendation", lambda: world.status().get("desiredReplicas") == 2)
    assert world.status()["mode"] == "DryRun"
    assert world.condition("TargetFound")["status"] == "True"
    await asyncio.sleep(2)
    assert world.replicas() == 1
    assert ("patch", "modelinfers/scale") not in await world.audited()


def test_the_rights_are_those_that_the_readme_lists() -> None:
    base = repository() / "deploy/base/autoscaler/rbac.yaml"
    role = next(m for m in yaml.safe_load_all(base.read_text(encoding="utf-8")) if m["kind"] == "ClusterRole")
    readme = Path(repository() / "services/autoscaler/README.md").read_text(encoding="utf-8")
    for rule in role["rules"]:
        for resource in rule["resources"]:
            assert f"| {resource} | {', '.join(rule['verbs'])} |" in readme
