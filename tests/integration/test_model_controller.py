"""The model-controller as a real process, with the rights it ships with, beside a real infer-controller."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from matrixinfer.devcluster import ControlPlane, repository
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.services import ServiceProcess

ACCOUNT = "system:serviceaccount:matrixinfer-system:model-controller"
GROUPS = {
    "models": "registry.matrixinfer.ai/v1alpha1",
    "modelversions": "registry.matrixinfer.ai/v1alpha1",
    "autoscalingpolicies": "registry.matrixinfer.ai/v1alpha1",
    "autoscalingpolicybindings": "registry.matrixinfer.ai/v1alpha1",
    "modelinfers": "workload.matrixinfer.ai/v1alpha1",
    "modelservers": "networking.matrixinfer.ai/v1alpha1",
    "modelroutes": "networking.matrixinfer.ai/v1alpha1",
    "rolebindings": "rbac.authorization.k8s.io/v1",
}
INFER_QUICK = {
    "MATRIXINFER_INFER_CONTROLLER_SETTLE_SECONDS": "0.5",
    "MATRIXINFER_INFER_CONTROLLER_STATUS_HOLD_SECONDS": "0.3",
    "MATRIXINFER_INFER_CONTROLLER_DRAIN_DEADLINE_SECONDS": "2",
    "MATRIXINFER_INFER_CONTROLLER_DRAIN_NOTICE_SECONDS": "0",
}
QUICK = {
    "MATRIXINFER_MODEL_CONTROLLER_LEASE_SECONDS": "5",
    "MATRIXINFER_MODEL_CONTROLLER_RENEW_DEADLINE_SECONDS": "3",
    "MATRIXINFER_MODEL_CONTROLLER_RETRY_SECONDS": "0.5",
    "MATRIXINFER_MODEL_CONTROLLER_LEASE_REQUEST_SECONDS": "1.5",
}
POLICY = {"metrics": [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 4}]}
Json = dict[str, Any]


class Served:
    """One Model seen from outside, through the API server only."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace

    def path(self, plural: str, name: str = "") -> str:
        root = f"/apis/{GROUPS[plural]}" if plural in GROUPS else "/api/v1"
        return f"{root}/namespaces/{self.namespace}/{plural}{f'/{name}' if name else ''}"

    def create(self, change: Callable[[Json], None] = lambda _spec: None) -> None:
        manifest = yaml.safe_load((repository() / "tests/data/quickstart.yaml").read_text())
        change(manifest["spec"])
        manifest["metadata"]["namespace"] = self.namespace
        self.plane.api.create(self.path("models"), manifest)

    def edit(self, change: Callable[[Json], None]) -> None:
        spec = self.get("models", "quickstart")["spec"]
        change(spec)
        self.plane.api.patch(self.path("models", "quickstart"), {"spec": spec})

    def get(self, plural: str, name: str) -> Json:
        return dict(self.plane.api.get(self.path(plural, name)))

    def items(self, plural: str) -> list[Json]:
        return list(self.plane.api.get(self.path(plural))["items"])

    def names(self, plural: str) -> set[str]:
        return {found["metadata"]["name"] for found in self.items(plural)}

    def status(self) -> Json:
        return dict(self.get("models", "quickstart").get("status", {}))

    def condition(self, type_: str) -> Json:
        return next((c for c in self.status().get("conditions", ()) if c["type"] == type_), {})

    def is_serving(self) -> bool:
        model = self.get("models", "quickstart")
        told = {
            c["type"]: (c["status"], c["observedGeneration"]) for c in model.get("status", {}).get("conditions", ())
        }
        generation = model["metadata"]["generation"]
        return told.get("Active") == ("True", generation) and told.get("Progressing") == ("False", generation)

    def wait(self, what: str, is_true: Callable[[], bool], seconds: float = 60) -> None:
        try:
            wait_for(what, is_true, seconds)
        except Exception as late:
            raise AssertionError(f"{late}\nstatus: {json.dumps(self.status(), indent=1)}") from late

    def wait_serving(self) -> None:
        self.wait("the Model to serve", self.is_serving)

    def replicas(self) -> int:
        return int(self.get("modelinfers", "quickstart-cpu")["spec"]["replicas"])

    def events(self) -> dict[str, str]:
        found = self.items("events")
        return {e["reason"]: e["message"] for e in found if e["involvedObject"]["kind"] == "Model"}


@pytest.fixture
def infer_controller(service_process: Callable[..., ServiceProcess], nodes: list[str]) -> ServiceProcess:
    return service_process("infer-controller", INFER_QUICK)


@pytest.fixture
def controller(control_plane: ControlPlane, infer_controller: ServiceProcess, service_process: Any) -> ServiceProcess:
    control_plane.apply(repository() / "deploy/base/downloader/rbac.yaml")
    return service_process("model-controller", QUICK)


@pytest.fixture
def served(control_plane: ControlPlane, namespace: str) -> Served:
    return Served(control_plane, namespace)


def audited(plane: ControlPlane, since: float) -> list[Json]:
    """What the controller asked the API server for since a moment, leases aside."""
    return [e for e in plane.audited(ACCOUNT, since) if e.get("objectRef", {}).get("resource") != "leases"]


def test_a_whole_life(controller: ServiceProcess, served: Served) -> None:
    """A Model comes up, is changed in every way, rolled back, scaled by hand, and goes without a trace."""
    started = time.time()
    served.create()
    served.wait_serving()
    (first,) = served.names("modelversions")
    assert served.status()["activeVersions"] == first
    assert served.names("modelroutes") == {"quickstart"}
    assert "matrixinfer-downloader" in served.names("serviceaccounts")
    # Events follow the status that they tell of.
    told = {"VersionRecorded", "ChildCreated", "ModelAvailable"}
    served.wait("the events", lambda: served.events().keys() >= told)
    (pod,) = served.names("pods")

    served.edit(lambda spec: spec["backends"][0].update(maxReplicas=4, routeWeight=7))
    served.wait_serving()
    assert served.get("modelroutes", "quickstart")["spec"]["rules"][0]["targetModels"][0]["weight"] == 7
    assert (served.names("modelversions"), served.names("pods")) == ({first}, {pod}), "no pod was made anew for that"

    served.edit(lambda spec: spec["backends"][0]["workers"][0].update(image="example/engine:2"))
    served.wait("the new version", lambda: served.is_serving() and served.status()["activeVersions"] != first)
    assert len(served.names("modelversions")) == 2
    assert served.get("pods", pod)["spec"]["containers"][0]["image"] == "example/engine:2"

    served.edit(lambda spec: spec["backends"][0].update(versionName=first))
    served.wait("the rollback", lambda: served.is_serving() and served.status()["activeVersions"] == first)

    served.plane.run_kubectl("scale", "-n", served.namespace, "modelinfer/quickstart-cpu", "--replicas=3")
    served.wait("three replicas", lambda: served.is_serving() and served.status()["readyReplicas"] == 3)
    served.plane.run_kubectl("scale", "-n", served.namespace, "modelinfer/quickstart-cpu", "--replicas=9")
    served.wait("the bound", lambda: served.replicas() == 4)

    served.plane.api.delete(served.path("modelservers", "quickstart-cpu"))
    served.wait("the server to come back", lambda: served.names("modelservers") == {"quickstart-cpu"})
    served.plane.api.patch(served.path("modelroutes", "quickstart"), {"spec": {"rules": []}})
    served.wait("the repair", lambda: served.get("modelroutes", "quickstart")["spec"]["rules"] != [])

    served.edit(lambda spec: spec["backends"][0].update(autoscalingPolicy=POLICY))
    served.wait("a binding", lambda: served.names("autoscalingpolicybindings") == {"quickstart-cpu"})
    assert served.replicas() == 4, "what was scaled stays when an autoscaler takes over"
    served.edit(lambda spec: spec["backends"][0].update(autoscalingPolicy=None))
    served.wait(
        "no policy", lambda: not served.names("autoscalingpolicies") | served.names("autoscalingpolicybindings")
    )

    served.edit(lambda spec: spec.update(name="Org/Other"))
    served.wait(
        "the route's new name",
        lambda: [route["spec"]["modelName"] for route in served.items("modelroutes")] == ["Org/Other"],
    )

    served.plane.api.delete(served.path("models", "quickstart"))
    everything = [*GROUPS, "pods", "services"]
    wait_for("nothing to be left", lambda: not any(served.names(plural) for plural in everything), 60)
    wait_for("the account to be gone", lambda: served.names("serviceaccounts") == {"default"}, 60)
    # A write into a namespace that is ending is a 403 as well, but no right would have helped.
    decisions = [e["annotations"].get("authorization.k8s.io/decision") for e in audited(served.plane, started)]
    refused = [decision for decision in decisions if decision == "forbid"]
    assert refused == [], "the shipped rights suffice"


def test_pods_that_share_are_accepted_and_their_model_settles(
    control_plane: ControlPlane, infer_controller: ServiceProcess, service_process: Any, served: Served
) -> None:
    """The API server takes the sidecar as it is rendered, and what it adds is no drift; the shipped rights suffice."""
    control_plane.apply(repository() / "deploy/base/downloader/rbac.yaml")
    started = time.time()
    service_process("model-controller", {**QUICK, "MATRIXINFER_MODEL_CONTROLLER_PEERS_SERVICE": "peers"})
    served.create()
    served.wait_serving()
    (pod,) = served.items("pods")
    server, downloader = pod["spec"]["initContainers"]
    assert (server["name"], server["restartPolicy"]) == ("peers", "Always")
    given = {one["name"]: one.get("value") for one in downloader["env"]}
    assert given["MATRIXINFER_DOWNLOADER_PEERS"] == f"peers.{served.namespace}.svc"
    generation = served.get("modelinfers", "quickstart-cpu")["metadata"]["generation"]
    served.edit(lambda spec: spec["backends"][0].update(maxReplicas=4, routeWeight=7))
    served.wait_serving()
    assert served.get("modelinfers", "quickstart-cpu")["metadata"]["generation"] == generation
    decisions = [e["annotations"].get("authorization.k8s.io/decision") for e in audited(served.plane, started)]
    assert "forbid" not in decisions


def test_a_killed_controller_converges_to_the_same_end(controller: ServiceProcess, served: Served) -> None:
    served.create()
    served.wait("some children", lambda: bool(served.names("modelversions")), 30)
    controller.kill()
    served.edit(lambda spec: spec["backends"][0]["workers"][0].update(image="example/engine:2"))
    controller.start()
    served.wait_serving()
    assert served.get("modelinfers", "quickstart-cpu")["status"]["readyReplicas"] == 1
    assert len(served.names("pods")) == 1


def test_a_settled_model_costs_no_request(controller: ServiceProcess, served: Served) -> None:
    served.create()
    served.wait_serving()
    quiet_since = time.time() + 2
    quiet_until = quiet_since + 10
    wait_for("ten seconds", lambda: time.time() >= quiet_until, 20)
    asked = [(e["verb"], e["objectRef"]) for e in audited(served.plane, quiet_since) if e["verb"] != "watch"]
    assert [each for each in asked if each[1].get("namespace") == served.namespace] == []


def test_a_name_that_somebody_else_holds_is_told_and_mended(controller: ServiceProcess, served: Served) -> None:
    stranger = {
        "apiVersion": GROUPS["modelservers"],
        "kind": "ModelServer",
        "metadata": {"name": "quickstart-cpu", "namespace": served.namespace},
        "spec": {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": {"app": "x"}},
            "workloadPort": {"port": 1},
        },
    }
    served.plane.api.create(served.path("modelservers"), stranger)
    served.create()
    served.wait("the condition", lambda: served.condition("Failed").get("reason") == "NotOwned")
    assert served.get("modelservers", "quickstart-cpu")["spec"]["inferenceEngine"] == "vLLM", "it was left alone"
    assert served.condition("Active")["status"] == "False"
    served.plane.api.delete(served.path("modelservers", "quickstart-cpu"))
    served.wait("the end of the failure", lambda: served.condition("Failed").get("status") == "False")
    served.wait_serving()


def test_a_change_that_cannot_work_is_told_while_the_model_serves_on(
    controller: ServiceProcess, served: Served
) -> None:
    served.create()
    served.wait_serving()
    served.edit(lambda spec: spec["backends"][0]["workers"][0]["config"].update(port="http"))
    served.wait("the condition", lambda: served.condition("Failed").get("reason") == "ConfigRefused")
    assert "port" in served.condition("Failed")["message"]
    assert served.condition("Active")["status"] == "True"
    served.edit(lambda spec: spec["backends"][0]["workers"][0]["config"].update(port=8001))
    served.wait_serving()
    assert served.condition("Failed")["status"] == "False"
