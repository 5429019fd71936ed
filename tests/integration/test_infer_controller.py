"""The infer-controller as a real process, with the rights it ships with, on a real API server with simulated nodes."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from matrixinfer.api import names
from matrixinfer.devcluster import ControlPlane
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.services import ServiceProcess

ACCOUNT = "system:serviceaccount:matrixinfer-system:infer-controller"
QUICK = {
    "MATRIXINFER_INFER_CONTROLLER_SETTLE_SECONDS": "0.5",
    "MATRIXINFER_INFER_CONTROLLER_STATUS_HOLD_SECONDS": "0.3",
    "MATRIXINFER_INFER_CONTROLLER_BACKOFF_BASE_SECONDS": "2",
    "MATRIXINFER_INFER_CONTROLLER_LEASE_SECONDS": "5",
    "MATRIXINFER_INFER_CONTROLLER_RENEW_DEADLINE_SECONDS": "3",
    "MATRIXINFER_INFER_CONTROLLER_LEASE_REQUEST_SECONDS": "1.5",
    "MATRIXINFER_INFER_CONTROLLER_RETRY_SECONDS": "0.5",
}
Json = dict[str, Any]


class Fleet:
    """One ModelInfer seen from outside, through the API server only."""

    def __init__(self, plane: ControlPlane, namespace: str, name: str = "demo") -> None:
        self.plane, self.namespace, self.name = plane, namespace, name
        self.path = f"/apis/workload.matrixinfer.ai/v1alpha1/namespaces/{namespace}/modelinfers"

    def create(self, spec: Json) -> None:
        manifest = {
            "apiVersion": "workload.matrixinfer.ai/v1alpha1",
            "kind": "ModelInfer",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }
        self.plane.api.create(self.path, manifest)

    def patch(self, spec: Json) -> None:
        self.plane.api.patch(f"{self.path}/{self.name}", {"spec": spec})

    def get(self) -> Json:
        return dict(self.plane.api.get(f"{self.path}/{self.name}"))

    def status(self) -> Json:
        return dict(self.get().get("status", {}))

    def condition(self, type_: str) -> Json:
        return next((c for c in self.status().get("conditions", ()) if c["type"] == type_), {})

    def children(self, resource: str = "pods") -> list[Json]:
        root = "/apis/apps/v1" if resource == "controllerrevisions" else "/api/v1"
        return list(self.plane.api.get(f"{root}/namespaces/{self.namespace}/{resource}")["items"])

    def pods(self) -> dict[str, Json]:
        return {pod["metadata"]["name"]: pod for pod in self.children()}

    def images(self) -> dict[str, str]:
        return {name: pod["spec"]["containers"][0]["image"] for name, pod in self.pods().items()}

    def is_settled(self) -> bool:
        infer = self.get()
        status, generation = infer.get("status", {}), infer["metadata"]["generation"]
        told = {c["type"]: (c["status"], c["observedGeneration"]) for c in status.get("conditions", ())}
        return (
            told.get("Available") == ("True", generation)
            and told.get("Progressing") == ("False", generation)
            and status["availableReplicas"] == infer["spec"]["replicas"]
        )

    def wait(self, what: str, is_true: Callable[[], bool], seconds: float = 60) -> None:
        try:
            wait_for(what, is_true, seconds)
        except Exception as late:
            told = json.dumps(self.status(), indent=1)
            raise AssertionError(f"{late}\nstatus: {told}\npods: {sorted(self.pods())}") from late

    def wait_settled(self, seconds: float = 60) -> None:
        self.wait("the ModelInfer to settle", self.is_settled, seconds)


def template(image: str, **annotations: str) -> Json:
    marks = {key.replace("__", "/").replace("_", "-"): value for key, value in annotations.items()}
    return {"metadata": {"annotations": marks}, "spec": {"containers": [{"name": "engine", "image": image}]}}


def role(image: str, workers: int = 0, **annotations: str) -> Json:
    made: Json = {"name": "leader", "replicas": 1, "workerReplicas": workers}
    made["entryTemplate"] = template(image, **annotations)
    return {**made, "workerTemplate": template(image)} if workers else made


def spec(replicas: int, *roles: Json, **pace: Any) -> Json:
    return {
        "replicas": replicas,
        "template": {"roles": list(roles)},
        "rolloutStrategy": {"type": "InferGroupRollingUpdate", "rollingUpdateConfiguration": pace},
    }


@pytest.fixture
def controller(service_process: Callable[..., ServiceProcess], nodes: list[str]) -> ServiceProcess:
    return service_process("infer-controller", QUICK)


@pytest.fixture
def fleet(control_plane: ControlPlane, namespace: str) -> Iterator[Fleet]:
    made = Fleet(control_plane, namespace)
    yield made
    control_plane.api.delete(f"{made.path}/{made.name}") if control_plane.api.exists(
        f"{made.path}/{made.name}"
    ) else None


def audited(plane: ControlPlane, since: float) -> list[Json]:
    """What the controller wrote since a moment, lease renewals aside."""
    writes = [event for event in plane.audited(ACCOUNT, since) if event["verb"] not in ("get", "list", "watch")]
    return [event for event in writes if event.get("objectRef", {}).get("resource") != "leases"]


def test_a_whole_life(controller: ServiceProcess, fleet: Fleet) -> None:
    """Groups of two pods come up, scale, update, heal and go, and the status tells the truth all along."""
    fleet.create(spec(2, role("engine:1", workers=1)))
    fleet.wait_settled()
    assert sorted(fleet.pods()) == [f"demo-{g}-leader-0-{i}" for g in (0, 1) for i in (0, 1)]
    assert sorted(s["metadata"]["name"] for s in fleet.children("services")) == [
        "demo-0-leader-0-0",
        "demo-1-leader-0-0",
    ]
    worker = fleet.pods()["demo-1-leader-0-1"]
    env = {e["name"]: e.get("value") for e in worker["spec"]["containers"][0]["env"]}
    assert env["ENTRY_ADDRESS"] == f"demo-1-leader-0-0.demo-1-leader-0-0.{fleet.namespace}"
    assert (env["WORKER_INDEX"], env["GROUP_SIZE"]) == ("1", "2")

    fleet.plane.run_kubectl("scale", f"--namespace={fleet.namespace}", "modelinfer/demo", "--replicas=3")
    fleet.wait("three groups", lambda: len(fleet.pods()) == 6 and fleet.is_settled())
    scale = fleet.plane.api.get(f"{fleet.path}/demo/scale")
    assert scale["status"]["replicas"] == 3
    selected = fleet.plane.run_kubectl(
        "get", "pods", f"--namespace={fleet.namespace}", "-o", "name", f"--selector={scale['status']['selector']}"
    )
    assert len(selected.split()) == 3, "the selector of the scale subresource matches one pod for each group"

    fleet.patch({"template": {"roles": [role("engine:2", workers=1)]}})
    fleet.wait("the update", lambda: set(fleet.images().values()) == {"engine:2"} and fleet.is_settled(), 90)
    assert len({r["metadata"]["name"] for r in fleet.children("controllerrevisions")}) == 2
    assert fleet.status()["currentRevision"] == fleet.status()["updateRevision"]

    before = fleet.pods()
    fleet.plane.run_kubectl("delete", "pod", f"--namespace={fleet.namespace}", "demo-0-leader-0-1", "--wait=false")

    def healed() -> bool:
        pods = fleet.pods()
        if pods.keys() != before.keys():
            return False
        recreated = {name for name in pods if pods[name]["metadata"]["uid"] != before[name]["metadata"]["uid"]}
        return recreated == {"demo-0-leader-0-0", "demo-0-leader-0-1"} and fleet.is_settled()

    fleet.wait("the role replica to be rebuilt as a whole, and no other", healed)

    fleet.plane.run_kubectl("scale", f"--namespace={fleet.namespace}", "modelinfer/demo", "--replicas=1")
    fleet.wait("one group", lambda: len(fleet.pods()) == 2 and fleet.is_settled())
    fleet.wait("its service alone", lambda: len(fleet.children("services")) == 1)

    fleet.plane.run_kubectl("delete", "modelinfer", f"--namespace={fleet.namespace}", "demo")
    kinds = ("pods", "services", "controllerrevisions")
    fleet.wait("nothing left", lambda: not any(fleet.children(kind) for kind in kinds))


def test_a_controller_that_is_killed_during_an_update_goes_on_where_it_was(
    controller: ServiceProcess, fleet: Fleet
) -> None:
    fleet.create(spec(4, role("engine:1"), maxUnavailable=1))
    fleet.wait_settled()
    fleet.patch({"template": {"roles": [role("engine:2")]}})
    for updated in (1, 2, 3):
        fleet.wait("some groups updated", lambda n=updated: list(fleet.images().values()).count("engine:2") >= n, 60)
        controller.kill()
        there = [p for p in fleet.children() if "deletionTimestamp" not in p["metadata"]]
        assert len(there) >= 3, "never more than one group is missing, dead controller or not"
        controller.start()
    controller.wait_ready()
    fleet.wait("the update", lambda: set(fleet.images().values()) == {"engine:2"} and fleet.is_settled(), 90)
    assert sorted(fleet.pods()) == [f"demo-{g}-leader-0-0" for g in range(4)], "no pod is there twice"


def test_a_steady_fleet_costs_no_write(controller: ServiceProcess, fleet: Fleet) -> None:
    fleet.create(spec(3, role("engine:1", workers=1)))
    fleet.wait_settled()
    quiet_since = time.time() + 2
    quiet_until = quiet_since + 10
    wait_for("ten seconds", lambda: time.time() >= quiet_until, 20)
    writes = [(e["verb"], e["objectRef"]) for e in audited(fleet.plane, quiet_since)]
    assert [write for write in writes if write[1].get("namespace") == fleet.namespace] == []


class Engine:
    """An engine's metrics page at a pod's address."""

    def __init__(self, address: str, port: int) -> None:
        engine = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = f"vllm:num_requests_running {engine.running}\nvllm:num_requests_waiting 0\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_: object) -> None:
                pass

        self.running = 1
        self.server = ThreadingHTTPServer((address, port), Page)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def test_a_pod_that_still_has_requests_is_marked_and_kept_until_they_are_done(
    service_process: Callable[..., ServiceProcess], nodes: list[str], fleet: Fleet
) -> None:
    service_process("infer-controller", {**QUICK, "MATRIXINFER_INFER_CONTROLLER_SETTLE_SECONDS": "4"})
    made = role("engine:1")
    made["entryTemplate"]["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 8000}]
    fleet.create(spec(2, made))
    fleet.wait_settled()
    engine = Engine(fleet.pods()["demo-1-leader-0-0"]["status"]["podIP"], 8000)
    try:
        fleet.patch({"replicas": 1})
        fleet.wait("the mark", lambda: names.INFER_DRAINING_SINCE in marks_of(fleet, "demo-1-leader-0-0"))
        marked = time.monotonic()
        # Beyond the settle time: only the engine's word keeps the pod.
        wait_for("six seconds", lambda: time.monotonic() > marked + 6, 20)
        assert "deletionTimestamp" not in fleet.pods()["demo-1-leader-0-0"]["metadata"]
        engine.running = 0
        fleet.wait("the pod to go", lambda: sorted(fleet.pods()) == ["demo-0-leader-0-0"])
        fleet.wait_settled()
    finally:
        engine.stop()


def marks_of(fleet: Fleet, pod: str) -> Json:
    return dict(fleet.pods()[pod]["metadata"].get("annotations", {}))


def test_the_pods_of_a_node_that_stops_answering_are_made_again_elsewhere(
    service_process: Callable[..., ServiceProcess], nodes: list[str], fleet: Fleet
) -> None:
    service_process("infer-controller", {**QUICK, "MATRIXINFER_INFER_CONTROLLER_NODE_LOST_SECONDS": "1"})
    fleet.create(spec(3, role("engine:1")))
    fleet.wait_settled()
    before = fleet.pods()
    lost = before["demo-0-leader-0-0"]["spec"]["nodeName"]
    on_it = {name for name, pod in before.items() if pod["spec"]["nodeName"] == lost}
    # No new pod may land there, as the node lifecycle controller would see to.
    taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
    fleet.plane.api.patch(f"/api/v1/nodes/{lost}", {"spec": {"taints": [taint]}})
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    silent = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": stamp}
    fleet.plane.api.patch(f"/api/v1/nodes/{lost}/status", {"status": {"conditions": [silent]}}, "strategic-merge")

    def moved() -> bool:
        pods = fleet.pods()
        return pods.keys() == before.keys() and all(
            pods[name]["spec"].get("nodeName") not in (None, lost) for name in on_it
        )

    fleet.wait("the pods to move", moved)
    fleet.wait_settled()
    stayed = set(before) - on_it
    assert {n: fleet.pods()[n]["metadata"]["uid"] for n in stayed} == {n: before[n]["metadata"]["uid"] for n in stayed}


def test_a_crash_loop_is_rebuilt_with_growing_pauses_and_given_up_at_the_limit(
    controller: ServiceProcess, fleet: Fleet
) -> None:
    broken = role("engine:1", simulated_kubelet__outcome="crash-loop")
    fleet.create({**spec(1, broken), "backoffLimit": 2})
    fleet.wait("giving up", lambda: fleet.condition("Progressing").get("reason") == "BackoffLimitExceeded", 90)
    assert fleet.status()["recoveries"][0]["attempts"] == 2
    assert "backoffLimit is 2" in fleet.condition("RecoveryBackoff")["message"]
    uid = fleet.pods()["demo-0-leader-0-0"]["metadata"]["uid"]
    fleet.patch({"template": {"roles": [role("engine:2")]}})
    fleet.wait_settled()
    assert fleet.pods()["demo-0-leader-0-0"]["metadata"]["uid"] != uid, "a corrected template starts afresh"


def test_a_name_that_somebody_else_holds_is_told_and_left_alone(controller: ServiceProcess, fleet: Fleet) -> None:
    stranger = {
        "metadata": {"name": "demo-0-leader-0-0", "namespace": fleet.namespace},
        "spec": template("stranger:1")["spec"],
    }
    pods = f"/api/v1/namespaces/{fleet.namespace}/pods"
    fleet.plane.api.create(pods, {"apiVersion": "v1", "kind": "Pod", **stranger})
    fleet.create(spec(1, role("engine:1")))
    fleet.wait("the condition", lambda: fleet.condition("NotOwned").get("status") == "True")
    assert "demo-0-leader-0-0" in fleet.condition("NotOwned")["message"]
    assert fleet.images() == {"demo-0-leader-0-0": "stranger:1"}
    fleet.plane.api.delete(f"{pods}/demo-0-leader-0-0", grace_seconds=0)
    fleet.wait_settled()
    assert fleet.images() == {"demo-0-leader-0-0": "engine:1"}
    assert names.INFER_NAME in fleet.pods()["demo-0-leader-0-0"]["metadata"]["labels"]
    assert fleet.condition("NotOwned") == {}
