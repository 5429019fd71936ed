"""The life of a Model on a real node: served, broken in every way that an operator can think of, changed, deleted."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from openai import OpenAI
from tests.e2e.life import KINDS, NAMESPACE, Life, manifest
from tests.integration.downloader_hub import COMMIT, WEIGHTS

from matrixinfer.devcluster import Node
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.services import SYSTEM_NAMESPACE
from matrixinfer.devcluster.suite import read
from matrixinfer.testkit.traffic import Traffic, ask

ROOT = Path(__file__).parents[2]
CONTROLLERS = ["model-controller", "infer-controller", "autoscaler", "webhook"]

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("suite")]


def roll(life: Life, config: dict[str, int]) -> None:
    """Change a setting of the engine and wait until no pod of before is left."""
    before = {p["metadata"]["uid"] for p in life.pods()}
    patch = [{"op": "replace", "path": "/spec/backends/0/workers/0/config", "value": config}]
    life.kubectl("patch", "model", life.name, "--type=json", "-p", orjson.dumps(patch).decode())
    life.wait("every pod to be new", lambda: not before & {p["metadata"]["uid"] for p in life.pods()}, 180)


def kill_engine(life: Life) -> None:
    """Kill one of two engines without warning, and wait until it was restarted or its pod replaced."""
    victim = life.ready_pods()[0]
    before = victim["status"]["containerStatuses"][0]["restartCount"]
    life.node.kill_container(victim["metadata"]["name"], NAMESPACE, "engine")

    def recovered() -> bool:
        ready = life.ready_pods()
        survivors = [p for p in ready if p["metadata"]["uid"] == victim["metadata"]["uid"]]
        return len(ready) == 2 and all(p["status"]["containerStatuses"][0]["restartCount"] > before for p in survivors)

    life.wait("the engine, restarted or replaced", recovered)


def serve(life: Life) -> None:
    """Apply the Model on the simulator and wait until the gateway answers from two ready pods."""
    model = manifest(life.name)
    model["spec"]["backends"][0]["minReplicas"] = 2
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait("the Model to be active", lambda: life.condition("model", life.name, "Active").get("status") == "True")
    life.kubectl("scale", life.infer(), "--replicas=2")
    life.wait_ready(2)
    life.wait("the route", lambda: not ask(life.gateway, life.name, "hi").error, 30)


@pytest.fixture
def life(node: Node, gateway: str, models_namespace: str, request: pytest.FixtureRequest) -> Iterator[Life]:
    """A Model of the test's own, served by two ready pods; its deletion goes on while the next test begins."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:28].strip("-")
    life = Life(node, gateway, name)
    serve(life)
    yield life
    life.kubectl("delete", "model", name, "--ignore-not-found", "--wait=true")


@pytest.fixture(scope="module")
def lasting(node: Node, gateway: str, models_namespace: str) -> Iterator[Life]:
    """The Model that tests share which leave its settings alone."""
    life = Life(node, gateway, "lasting")
    yield life
    life.kubectl("delete", "model", life.name, "--ignore-not-found", "--wait=true")


@pytest.fixture
def served(lasting: Life) -> Life:
    """The shared Model with two ready pods, whatever the test before did to it."""
    serve(lasting)
    return lasting


def test_the_whole_story_can_be_read(life: Life):
    """Columns, conditions and events say what is so, in sentences."""
    table = life.kubectl("get", KINDS)
    for column in ("READY", "VERSIONS", "REPLICAS", "DIGEST", "SIZE", "GROUPS", "ENDPOINTS", "ACCEPTED", "AGE"):
        assert column in table
    version = life.get("modelversions")["items"][0]["status"]
    assert version["digest"].startswith("sha256:")
    assert version["totalBytes"] > 90_000_000
    for condition in life.get("model", life.name)["status"]["conditions"]:
        assert condition["observedGeneration"] == 1
        assert condition["message"]
    server = life.get("modelserver", f"{life.name}-sim")["status"]
    assert server["conditions"]
    described = life.kubectl("describe", "model", life.name)
    assert "Events:" in described
    assert "Normal" in described


def test_a_pod_starts_on_the_verified_model_of_its_version(served: Life):
    """The downloader in each pod ended with the digest that the ModelVersion recorded, and said so to its object."""
    digest = served.get("modelversions")["items"][0]["status"]["digest"]
    for pod in served.pods():
        ended = next(c for c in pod["status"]["initContainerStatuses"] if c["name"] == "downloader")["state"][
            "terminated"
        ]
        message = orjson.loads(ended["message"])
        assert (ended["exitCode"], message["outcome"], message["digest"]) == (0, "Ready", digest)
        (downloader,) = [each for each in pod["spec"]["initContainers"] if each["name"] == "downloader"]
        assert f"/models/versions/{NAMESPACE}/" in " ".join(downloader["args"])
    assert "verified as sha256:" in served.kubectl("get", "events", "--field-selector", "reason=Downloaded")


def test_the_official_client_streams_and_lists(served: Life):
    client = OpenAI(base_url=f"{served.gateway}/v1", api_key="unused", max_retries=0, timeout=30)
    assert served.name in [model.id for model in client.models.list()]
    question = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(model=served.name, messages=question, max_tokens=8)
    assert whole.choices[0].message.content
    pieces = list(client.chat.completions.create(model=served.name, messages=question, max_tokens=8, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)


def test_a_deleted_pod_is_replaced_and_no_request_is_lost(served: Life):
    with Traffic.flowing(served.gateway, served.name) as traffic:
        traffic.wait_for_more(10)
        victim = served.ready_pods()[0]["metadata"]["name"]
        served.kubectl("delete", "pod", victim, "--wait=false")
        served.wait("the replacement", lambda: len(served.ready_pods()) == 2)
        traffic.wait_for_more(10)
    assert traffic.failures == []


def test_a_crashed_engine_is_recovered(served: Life):
    """The kubelet restarts the container; a pod that is not ready again within the grace period is replaced."""
    kill_engine(served)
    assert not ask(served.gateway, served.name, "hi").error


@pytest.mark.parametrize("service", CONTROLLERS)
def test_streams_outlive_the_death_of_a(served: Life, service: str):
    """A controller that dies with SIGKILL takes no request with it, and repairs what went wrong meanwhile."""
    with Traffic.flowing(served.gateway, served.name) as traffic:
        traffic.wait_for_more(5)
        before, pod = restarts(served.node, service), service_pods(served.node, service)[0]
        served.node.kill_container(pod["metadata"]["name"], SYSTEM_NAMESPACE, service)
        served.wait(f"{service} to be started again", lambda: restarts(served.node, service) > before)
        served.wait(f"{service} to come back", lambda: available(served.node, service))
        traffic.wait_for_more(5)
    assert traffic.failures == []
    served.kubectl("scale", served.infer(), "--replicas=3")
    served.wait_ready(3)


def test_the_suite_outlives_a_restart_of_the_api_server(served: Life):
    """Streams go on; every controller finds its way back and works."""
    with Traffic.flowing(served.gateway, served.name) as traffic:
        traffic.wait_for_more(5)
        served.node.restart("kube-apiserver", hard=True)
        traffic.wait_for_more(5)
        served.wait("kubectl scale", lambda: succeeds(lambda: served.kubectl("scale", served.infer(), "--replicas=3")))
        served.wait_ready(3)
    assert traffic.failures == []
    assert len({p["metadata"]["name"] for p in served.pods()}) == 3


def test_a_gateway_that_dies_comes_back(served: Life):
    pod = service_pods(served.node, "gateway")[0]
    served.node.kill_container(pod["metadata"]["name"], SYSTEM_NAMESPACE, "gateway")
    served.wait("an answer", lambda: not ask(served.gateway, served.name, "hi").error)


def test_scaling_by_hand_up_and_down_loses_no_request(served: Life):
    with Traffic.flowing(served.gateway, served.name) as traffic:
        served.kubectl("scale", served.infer(), "--replicas=3")
        served.wait_ready(3)
        traffic.wait_for_more(10)
        served.kubectl("scale", served.infer(), "--replicas=2")
        served.wait_ready(2)
        traffic.wait_for_more(10)
    assert traffic.failures == []


def test_a_changed_engine_setting_rolls_without_a_lost_request(life: Life):
    with Traffic.flowing(life.gateway, life.name) as traffic:
        roll(life, {"max-model-len": 2048})
        life.wait_ready(2)
        traffic.wait_for_more(10)
    assert traffic.failures == []
    assert len(life.get("modelversions", "-l", f"registry.matrixinfer.ai/model-name={life.name}")["items"]) == 2


@pytest.mark.timeout(600)
def test_a_thousand_streams_survive_everything_at_once(life: Life):
    """Planned work (delete, scale, roll, a new gateway) costs no request anything.

    A pod that dies without warning costs only the streams that it had begun: no other endpoint could have gone on.
    """
    with Traffic.flowing(life.gateway, life.name, connections=8, max_tokens=20) as planned:
        planned.wait_for_more(50)
        life.kubectl("scale", life.infer(), "--replicas=3")
        life.wait_ready(3)
        life.kubectl("delete", "pod", life.ready_pods()[0]["metadata"]["name"], "--wait=false")
        life.node.run_kubectl("-n", SYSTEM_NAMESPACE, "rollout", "restart", "deployment/gateway")
        planned.wait_for_more(200)
        life.wait_ready(3)
        roll(life, {"max-model-len": 1024})
        life.wait_ready(3)
        life.node.run_kubectl("-n", SYSTEM_NAMESPACE, "rollout", "status", "deployment/gateway", "--timeout=120s")
        life.kubectl("scale", life.infer(), "--replicas=2")
        life.wait_ready(2)
        planned.wait_for_more(max(0, 700 - len(planned.answers)), 240)
    assert planned.failures == []
    with Traffic.flowing(life.gateway, life.name, connections=8, max_tokens=20) as unplanned:
        for _ in range(3):
            unplanned.wait_for_more(50)
            kill_engine(life)
            unplanned.wait_for_more(50)
    assert len(planned.answers) + len(unplanned.answers) >= 1000
    assert [answer for answer in unplanned.failures if not answer.text] == []


def test_what_someone_deletes_or_changes_by_hand_is_repaired(served: Life):
    served.kubectl("delete", "modelserver", f"{served.name}-sim")
    served.kubectl("delete", "modelroute", served.name)
    served.wait(
        "both to be back",
        lambda: succeeds(lambda: served.kubectl("get", f"modelserver/{served.name}-sim", f"modelroute/{served.name}")),
    )
    served.wait("an answer", lambda: not ask(served.gateway, served.name, "hi").error, 30)


def test_deleting_the_model_leaves_nothing(life: Life):
    life.kubectl("delete", "model", life.name, "--wait=true")

    def left() -> list[str]:
        kinds = f"{KINDS},pods,services,controllerrevisions"
        items = life.get(kinds, "-l", f"registry.matrixinfer.ai/model-name={life.name}")["items"]
        return [f"{item['kind']}/{item['metadata']['name']}" for item in items]

    life.wait("nothing to be left", lambda: not left())
    assert ask(life.gateway, life.name, "hi").status == 404


def test_a_steady_cluster_writes_nothing(served: Life):
    """For a minute no service writes anything but its lease."""
    served.wait("the first request to be told", lambda: bool(told_traffic(served.get("modelroutes")["items"])))
    served.wait("the last minute's figures to lapse", lambda: not told_traffic(served.get("modelroutes")["items"]))
    start = served.node.audit_log.stat().st_size
    time.sleep(60)
    writes = [
        f"{e['user']['username']} {e['verb']} {e['requestURI']}"
        for e in events(served.node, start)
        if e["verb"] not in {"get", "list", "watch"}
        and e["objectRef"]["resource"] not in {"leases", "tokenreviews", "subjectaccessreviews"}
        and f":{SYSTEM_NAMESPACE}:" in e["user"]["username"]
    ]
    assert writes == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("minReplicas", 9, r"spec\.backends\[0\]\.minReplicas: cannot be greater than maxReplicas"),
        ("workers", [{"image": "two words"}], r"spec\.backends\[0\]\.workers\[0\]\.image"),
        ("modelURI", "ftp://somewhere/model", r"spec\.backends\[0\]\.modelURI"),
    ],
)
def test_a_bad_field_is_refused_with_its_name(
    node: Node, models_namespace: str, field: str, value: object, sentence: str
):
    model = manifest("bad")
    model["spec"]["backends"][0][field] = value
    with pytest.raises(ClusterError, match=sentence):
        node.run_kubectl("apply", "-n", models_namespace, "-f", "-", stdin=orjson.dumps(model).decode())


def test_a_policy_scales_with_the_queue_and_goes_without_a_trace(node: Node, gateway: str, models_namespace: str):
    """The queue grows, replicas follow, the decision is told; without its policy the Model keeps its replicas."""
    life = Life(node, gateway, "elastic")
    model = yaml.safe_load((ROOT / "examples/autoscaling/model.yaml").read_text())
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait("the Model to be active", lambda: life.condition("model", "elastic", "Active").get("status") == "True")
    life.wait("the route", lambda: not ask(gateway, "elastic", "hi", max_tokens=2).error, 30)
    with Traffic.flowing(gateway, "elastic", connections=24, max_tokens=200) as traffic:
        life.wait("more replicas", lambda: len(life.pods()) > 1)
    assert traffic.failures == []
    told = life.kubectl("get", "autoscalingpolicies,autoscalingpolicybindings", "-o", "yaml")
    assert "desiredReplicas" in told
    del model["spec"]["backends"][0]["autoscalingPolicy"]
    model["spec"]["backends"][0]["minReplicas"] = 3
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait_ready(3)
    life.wait("the policy to be gone", lambda: not life.get("autoscalingpolicies,autoscalingpolicybindings")["items"])
    life.kubectl("delete", "model", "elastic", "--wait=true")


def test_a_request_wakes_a_model_that_was_scaled_to_zero(node: Node, gateway: str, models_namespace: str):
    """Who asks first waits for the first pod and is answered."""
    life = Life(node, gateway, "sleeper")
    model = yaml.safe_load((ROOT / "examples/autoscaling/model.yaml").read_text())
    model["metadata"]["name"] = "sleeper"
    model["spec"]["backends"][0] |= {"minReplicas": 0, "maxReplicas": 1}
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait("the Model to be active", lambda: life.condition("model", "sleeper", "Active").get("status") == "True")
    life.kubectl("scale", life.infer(), "--replicas=0")
    life.wait("rest", lambda: not life.get("pods", "-l", f"registry.matrixinfer.ai/model-name={life.name}")["items"])
    assert ask(gateway, "sleeper", "hi", max_tokens=2).error == ""
    assert len(life.pods()) == 1
    life.kubectl("delete", "model", "sleeper", "--wait=true")


def test_a_group_of_several_pods_finds_its_entry_by_name(node: Node, models_namespace: str):
    """An entry pod, a worker, and the headless Service that ENTRY_ADDRESS names."""
    life = Life(node, "", "pair")
    pod = {
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "engine",
                    "image": "matrixinfer/engine-sim:dev",
                    "ports": [{"name": "http", "containerPort": 8000}],
                    "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
                }
            ],
        }
    }
    role = {"name": "main", "replicas": 1, "workerReplicas": 1, "entryTemplate": pod, "workerTemplate": pod}
    infer = {
        "apiVersion": "workload.matrixinfer.ai/v1alpha1",
        "kind": "ModelInfer",
        "metadata": {"name": "pair"},
        "spec": {"replicas": 1, "template": {"roles": [role]}},
    }
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(infer).decode())
    life.wait("the group", lambda: life.condition("modelinfer", "pair", "Available").get("status") == "True")
    worker = "pair-0-main-0-1"
    look = "import os, socket; print(socket.gethostbyname(os.environ['ENTRY_ADDRESS']))"
    entry = life.get("pod", "pair-0-main-0-0")["status"]["podIP"]
    assert life.kubectl("exec", worker, "--", "python", "-c", look).strip() == entry
    life.kubectl("delete", "service", "--all")
    life.wait("the Service to be back", lambda: len(life.get("services")["items"]) == 1)
    life.kubectl("delete", "modelinfer", "pair", "--wait=true")


@pytest.mark.timeout(600)
def test_a_real_model_answers(node: Node, gateway: str, models_namespace: str):
    """SmolLM2 on llama.cpp: real bytes through the downloader, a real answer through the gateway."""
    life = Life(node, gateway, "smol")
    model = yaml.safe_load((ROOT / "examples/quickstart/model.yaml").read_text())
    model["metadata"]["name"] = life.name
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait("the Model to be active", lambda: life.condition("model", "smol", "Active").get("status") == "True", 300)
    life.wait("the route", lambda: not ask(gateway, "smol", "hi", max_tokens=2).error, 60)
    tips = ask(gateway, "smol", "Give me three tips for staying healthy.", max_tokens=64).text
    assert re.search(r"water|diet|sleep|exercise|food", tips.lower()), tips
    life.kubectl("delete", "model", "smol", "--wait=true")


def hub_manifests(token: str) -> list[dict[str, Any]]:
    """A hub in a pod, its Service, and the Secret with the token that it asks for."""
    names = {"name": "hub", "namespace": NAMESPACE, "labels": {"app": "hub"}}
    command = ["python", "/hub/downloader_hub.py", f"hub.{NAMESPACE}.svc", "8000", token]
    container = {
        "name": "hub",
        "image": "matrixinfer/engine-sim:dev",
        "command": command,
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}],
        "readinessProbe": {"tcpSocket": {"port": 8001}, "periodSeconds": 1},
    }
    spec = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "hub", "configMap": {"name": "hub"}}],
    }
    program = (ROOT / "tests/integration/downloader_hub.py").read_text()
    ports = [{"name": f"p{port}", "port": port} for port in (8000, 8001)]
    service = {"selector": {"app": "hub"}, "ports": ports}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": names, "data": {"downloader_hub.py": program}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": names, "stringData": {"HF_TOKEN": token}},
        {"apiVersion": "v1", "kind": "Service", "metadata": names, "spec": service},
        {"apiVersion": "v1", "kind": "Pod", "metadata": names, "spec": spec},
    ]


def test_a_private_model_of_a_hub_is_fetched_at_its_commit(node: Node, gateway: str, models_namespace: str):
    """The hub's own client in the downloader's container: a tag becomes a commit, the token comes from a Secret."""
    life = Life(node, gateway, "hubbed")
    node.apply(hub_manifests("hf_of-this-test"))
    model = manifest("hubbed")
    model["spec"]["backends"][0] |= {
        "modelURI": "hf://org/tiny@v1",
        "env": [{"name": "HF_ENDPOINT", "value": f"http://hub.{NAMESPACE}.svc:8000"}],
        "envFrom": [{"secretRef": {"name": "hub"}}],
    }
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait("the Model to be active", lambda: life.condition("model", "hubbed", "Active").get("status") == "True")
    recorded = life.get("modelversions")["items"]
    (version,) = [v["status"] for v in recorded if v["metadata"]["name"].startswith("hubbed-")]
    assert version["resolvedRevision"] == COMMIT
    assert version["fileCount"] == 3
    assert version["totalBytes"] > len(WEIGHTS)
    life.kubectl("delete", "model", "hubbed", "--wait=true")
    life.kubectl("delete", "pod,service,secret,configmap", "-l", "app=hub")


def told_traffic(routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the status of the routes tells of requests in the last minute."""
    return [target for route in routes for target in route["status"].get("targets", []) if target.get("requests")]


def service_pods(node: Node, service: str) -> list[dict[str, Any]]:
    return list(read(node, "pods", "-n", SYSTEM_NAMESPACE, "-l", f"app.kubernetes.io/name={service}")["items"])


def restarts(node: Node, service: str) -> int:
    pods = service_pods(node, service)
    return sum(c["restartCount"] for pod in pods for c in pod["status"].get("containerStatuses", []))


def available(node: Node, service: str) -> bool:
    status = read(node, "deployment", service, "-n", SYSTEM_NAMESPACE)["status"]
    return status.get("availableReplicas", 0) >= 1 and not status.get("unavailableReplicas")


def succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except ClusterError:
        return False
    return True


def events(node: Node, start: int = 0) -> list[dict[str, Any]]:
    """Audit events written since the log had `start` bytes."""
    with node.audit_log.open("rb") as log:
        log.seek(start)
        return [orjson.loads(line) for line in log if line.endswith(b"\n")]
