"""Tier A itself: it comes up, is shared, survives being killed, and leaves nothing."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from matrixinfer.devcluster import ControlPlane, instance
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.processes import identify
from matrixinfer.devcluster.s3 import REGION, ObjectStore
from matrixinfer.devcluster.simnodes import OUTCOME, RESTARTS, STOP_SECONDS

pytestmark = pytest.mark.integration

BORROW = """
import sys, time
from matrixinfer.devcluster import ControlPlane
with ControlPlane.borrowed(sys.argv[1]) as plane:
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_name() -> Iterator[str]:
    """A cluster of this test's own, down afterwards."""
    name = f"own-{uuid.uuid4().hex[:6]}"
    yield name
    ControlPlane(instance(name)).down()


def borrower(name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", BORROW, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def manifest(name: str, **annotations: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "engine", "image": "engine"}]},
    }


def ready(pod: dict[str, object]) -> bool:
    conditions = pod["status"].get("conditions", [])  # type: ignore[attr-defined]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@pytest.mark.timeout(180)
def test_a_killed_starter_leaves_nothing_that_the_next_up_does_not_clean(other_name: str):
    """Killed early in its start, with some components running, then started again, then down."""
    place = instance(other_name)
    argv = [sys.executable, "-m", "matrixinfer.devcluster", "up", "--name", other_name]
    starter = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    ledger = ControlPlane(place).ledger
    wait_for("the API server's process", lambda: "kube-apiserver" in ledger.running(), 60)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    orphans = dict(ledger.running())
    assert orphans

    plane = ControlPlane.up(other_name)

    assert plane.is_up()
    assert not [who for who in orphans.values() if identify(who.pid) == who]
    running = list(ledger.running().values())
    plane.down()
    assert not [who for who in running if identify(who.pid) == who]
    assert ControlPlane.attach(other_name) is None


@pytest.mark.timeout(180)
def test_a_borrowed_plane_goes_down_with_its_last_user_even_if_that_is_killed(other_name: str):
    first, second = borrower(other_name), borrower(other_name)
    assert first.stdout
    assert second.stdout
    assert [first.stdout.readline(), second.stdout.readline()] == ["up\n", "up\n"]
    plane = ControlPlane.attach(other_name)
    assert plane is not None
    first.communicate("")
    assert plane.is_up(), "the second user still needs it"

    second.kill()
    second.wait()

    wait_for("the end of all processes", lambda: not plane.ledger.running(), 60)


def test_a_service_account_has_its_own_rights_and_leaves_a_trace(bare_control_plane: ControlPlane, namespace: str):
    bare_control_plane.run_kubectl("create", "serviceaccount", "walker", "-n", namespace)
    kubeconfig = bare_control_plane.kubeconfig_for(namespace, "walker")

    argv = [bare_control_plane.kubectl, f"--kubeconfig={kubeconfig}", "get", "pods", "-n", namespace]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    assert "forbidden" in answer.stderr.lower()
    user = f"system:serviceaccount:{namespace}:walker"

    def codes() -> set[int]:
        asked = [e for e in bare_control_plane.audited(user) if e.get("objectRef", {}).get("resource") == "pods"]
        return {e["responseStatus"]["code"] for e in asked}

    # The line is written when the answer is out.
    wait_for("the trace", lambda: codes() == {403}, 20)


def test_simulated_pods_live_and_end_as_their_annotations_say(
    bare_control_plane: ControlPlane, namespace: str, nodes: list[str]
):
    path = f"/api/v1/namespaces/{namespace}/pods"
    api = bare_control_plane.api
    for pod in (manifest("good"), manifest("bad", **{OUTCOME: "fail"}), manifest("slow", **{STOP_SECONDS: "25"})):
        api.create(path, pod)

    wait_for("pod good", lambda: ready(api.get(f"{path}/good")), 30)
    wait_for("pod bad", lambda: api.get(f"{path}/bad")["status"]["phase"] == "Failed", 30)
    wait_for("pod slow", lambda: ready(api.get(f"{path}/slow")), 30)
    assert api.get(f"{path}/good")["status"]["podIP"].startswith("127.")

    api.patch(f"{path}/good", {"metadata": {"annotations": {RESTARTS: "1"}}})
    wait_for("a restart", lambda: api.get(f"{path}/good")["status"]["containerStatuses"][0]["restartCount"] == 1, 30)
    api.delete(f"{path}/slow")
    api.delete(f"{path}/good")
    assert api.exists(f"{path}/slow"), "it takes its time to end"
    api.patch(f"{path}/slow", {"metadata": {"annotations": {STOP_SECONDS: "0"}}})
    wait_for("the end of both", lambda: not api.exists(f"{path}/good") and not api.exists(f"{path}/slow"), 30)


@pytest.mark.timeout(180)
def test_an_api_server_that_was_killed_comes_back_with_its_data(other_name: str):
    with ControlPlane.borrowed(other_name) as plane:
        plane.run_kubectl("create", "configmap", "kept", "--from-literal=a=b")
        plane.restart("kube-apiserver", hard=True)
        assert plane.api.get("/api/v1/namespaces/default/configmaps/kept")["data"] == {"a": "b"}


def test_the_object_store_speaks_s3(s3: ObjectStore, tmp_path: Path):
    """Written by our signer, read by the client that the downloader uses."""
    source = tmp_path / "weights.bin"
    source.write_bytes(os.urandom(100_000))
    s3.create_bucket("models")
    s3.put_file("models", "tiny/weights v1+~.bin", source)

    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name=REGION,
    )

    (found,) = client.list_objects_v2(Bucket="models", Prefix="tiny/")["Contents"]
    assert client.get_object(Bucket="models", Key=found["Key"])["Body"].read() == source.read_bytes()
