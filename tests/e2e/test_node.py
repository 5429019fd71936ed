"""Tier B itself: pods run, Services and names work, and the machine is as it was afterwards, also after kill -9."""

import http.client
import os
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrixinfer.devcluster import Node, instance, netns
from matrixinfer.devcluster.archive import write_image
from matrixinfer.devcluster.binaries import build_extra
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.leftovers import read_kernel_settings
from matrixinfer.devcluster.nodeconfig import BRIDGE_ADDRESS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

IMAGE = "matrixinfer/test-web:dev"
SHARED_FOLDERS = (
    "/run",
    "/run/netns",
    "/run/containerd",
    "/var/lib",
    "/var/lib/cni",
    "/var/log",
    "/opt",
    "/usr/libexec",
)


def machine() -> dict[str, Any]:
    """What a cluster might change on this machine."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    commands = [
        (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (folder / "cmdline").exists()
    ]
    ours = ("containerd-shim", "kube-apiserver", "kubelet", "kube-proxy", "coredns", "etcd", "/pause")
    return {
        "mounts": sorted(line.split()[4] for line in mounts),
        "addresses": subprocess.run(["ip", "-br", "addr"], capture_output=True, text=True, check=True).stdout,
        "tables": subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout,
        "control groups": sorted(str(p) for p in Path("/sys/fs/cgroup").glob("*/mi-*")),
        "folders": {f: sorted(p.name for p in Path(f).iterdir()) if Path(f).is_dir() else None for f in SHARED_FOLDERS},
        "kernel": read_kernel_settings(),
        "processes": sorted(c for c in commands if any(name in c for name in ours)),
    }


def of_cluster(seen: dict[str, Any], ident: str, folder: Path) -> dict[str, Any]:
    """The same without what other clusters of this machine do meanwhile."""
    return {
        **seen,
        "mounts": [m for m in seen["mounts"] if ident in m or str(folder) in m],
        "control groups": [g for g in seen["control groups"] if ident in g],
        "folders": {f: [n for n in names or () if ident in n] for f, names in seen["folders"].items()},
        "processes": [p for p in seen["processes"] if ident in p or str(folder) in p],
    }


@pytest.fixture
def own_node(node_is_possible: None) -> Iterator[str]:
    """The name of a node of this test's own, down afterwards."""
    name = f"own-{uuid.uuid4().hex[:6]}"
    yield name
    Node(instance(name)).down()


@pytest.fixture(scope="session")
def web_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one static program that answers HTTP."""
    archive = tmp_path_factory.mktemp("image") / "web.tar"
    write_image(archive, IMAGE, build_extra("versitygw", print), "web")
    return archive


def web_server(namespace: str, replicas: int) -> list[dict[str, Any]]:
    """A Deployment as restricted as ours, and its Service."""
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["--port", ":8000", "--access", "a", "--secret", "b", "posix", "--nometa", "/data"],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}],
    }
    meta = {"name": "web", "namespace": namespace}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    ]


def status_of(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def resolve(node: Node, name: str) -> list[str]:
    """Ask CoreDNS for the addresses of a name, as pods do."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            channel.settimeout(3)
            channel.sendto(question, (BRIDGE_ADDRESS, 53))
            return channel.recv(4096)

    answer = netns.inside(node.paths.netns, ask)
    (count,) = struct.unpack(">H", answer[6:8])
    # Each A record ends in its four address bytes; CoreDNS compresses the name to two.
    records = answer[len(question) :]
    size = len(records) // count if count else 0
    found = [records[i * size : (i + 1) * size] for i in range(count)]
    return sorted(".".join(map(str, record[-4:])) for record in found)


def test_restricted_pods_run_and_are_reached_by_service_and_by_name(node: Node, namespace: str, web_image: Path):
    assert any(IMAGE in name for name in node.load_image(web_image))
    node.apply(web_server(namespace, 2))
    node.run_kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s", seconds=90)

    port = node.publish("web", namespace, 80)

    wait_for("an answer through the Service", lambda: status_of(port) == 403, 15)
    address = node.api.get(f"/api/v1/namespaces/{namespace}/services/web")["spec"]["clusterIP"]
    assert resolve(node, f"web.{namespace}.svc.cluster.local") == [address]
    assert node.publish("web", namespace, 80) == port
    assert "VersityGW" in node.run_kubectl("logs", "deployment/web", "-n", namespace)
    assert "Version" in node.run_kubectl("exec", "deployment/web", "-n", namespace, "--", "/web", "--version")


def test_a_killed_container_is_started_again(node: Node, namespace: str, web_image: Path):
    node.load_image(web_image)
    node.apply(web_server(namespace, 1))
    node.run_kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s", seconds=90)
    path = f"/api/v1/namespaces/{namespace}/pods"
    (pod,) = node.api.get(path)["items"]

    node.kill_container(pod["metadata"]["name"], namespace, "web")

    def restarted() -> bool:
        status = node.api.get(f"{path}/{pod['metadata']['name']}")["status"]["containerStatuses"][0]
        return status["restartCount"] == 1 and status["ready"]

    wait_for("a restart of the container", restarted, 60)


def test_the_machine_is_as_it_was_after_down(own_node: str, web_image: Path):
    place = instance(own_node)
    before = machine()
    node = Node.up(own_node)
    node.load_image(web_image)
    node.apply(web_server("default", 1))
    node.run_kubectl("rollout", "status", "deployment/web", "--timeout=60s", seconds=90)
    assert any(place.ident in mount for mount in machine()["mounts"])

    node.down()

    assert of_cluster(machine(), place.ident, place.folder) == of_cluster(before, place.ident, place.folder)
    assert not place.folder.exists()


@pytest.mark.parametrize("until", ["containerd", "kube-apiserver", "kubelet", "running pods"])
def test_a_killed_up_is_cleaned_up(own_node: str, web_image: Path, until: str):
    place = instance(own_node)
    before = machine()
    argv = [sys.executable, "-m", "matrixinfer.devcluster", "up", "--tier", "b", "--name", own_node]
    starter = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    node = Node(place)
    if until == "running pods":
        assert starter.wait(120) == 0
        node.load_image(web_image)
        node.apply(web_server("default", 1))
        node.run_kubectl("rollout", "status", "deployment/web", "--timeout=60s", seconds=90)
        for who in node.ledger.running().values():
            os.kill(who.pid, signal.SIGKILL)
    else:
        wait_for(f"the process {until}", lambda: until in node.ledger.running(), 60)
        starter.kill()
        starter.wait()

    subprocess.run(
        [sys.executable, "-m", "matrixinfer.devcluster", "down", "--name", own_node], check=True, timeout=120
    )

    assert of_cluster(machine(), place.ident, place.folder) == of_cluster(before, place.ident, place.folder)
    assert not place.folder.exists()
