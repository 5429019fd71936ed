"""Pods with a volume each, on a real node: about one model crosses the line to the origin, however many they are.

The suite is set up as the how-to says: its component in the overlay, its Service and a Secret in the namespace.
"""

import os
import random
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import orjson
import pytest
import yaml
from tests.e2e.life import NAMESPACE, ROOT, Life, manifest

from matrixinfer.devcluster import Node, netns
from matrixinfer.devcluster.demo import MODELS_BUCKET
from matrixinfer.devcluster.nodeconfig import BRIDGE_ADDRESS
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.s3 import REGION, ObjectStore
from matrixinfer.devcluster.services import SYSTEM_NAMESPACE
from matrixinfer.devcluster.suite import Suite, apply_overlay

PART_BYTES = 1 << 17
WEIGHTS = random.Random(17).randbytes(256 * PART_BYTES + 777)
# Of one connection to the origin: slow enough that pods which start together are at it together.
BYTES_PER_SECOND = 2 << 20

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("suite")]


class Origin(socketserver.ThreadingTCPServer):
    """The S3 server as pods reach it; all that it sends them is counted."""

    daemon_threads = True

    def __init__(self, node: Node, store: ObjectStore) -> None:
        super().__init__((BRIDGE_ADDRESS, 0), Relay, bind_and_activate=False)
        self.socket.close()
        self.socket = netns.inside(node.paths.netns, lambda: socket.create_server((BRIDGE_ADDRESS, 0)))
        self.store = urlsplit(store.endpoint)
        self.sent = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.socket.getsockname())

    def handle_error(self, *_: object) -> None:
        """A client may hang up once it has what it wants."""


class Relay(socketserver.BaseRequestHandler):
    server: Origin

    def handle(self) -> None:
        with socket.create_connection((self.server.store.hostname, self.server.store.port)) as store:
            threading.Thread(target=self.ask, args=(store,), daemon=True).start()
            while chunk := store.recv(1 << 16):
                with self.server.lock:
                    self.server.sent += len(chunk)
                self.request.sendall(chunk)
                time.sleep(len(chunk) / BYTES_PER_SECOND)

    def ask(self, store: socket.socket) -> None:
        with suppress(OSError):
            while chunk := self.request.recv(1 << 16):
                store.sendall(chunk)


@pytest.fixture
def origin(node: Node, object_store: ObjectStore) -> Iterator[Origin]:
    """Holds the model, and vouches for it by its sha256."""
    client = boto3.client(
        "s3",
        endpoint_url=object_store.endpoint,
        aws_access_key_id=object_store.access_key,
        aws_secret_access_key=object_store.secret_key,
        region_name=REGION,
    )
    client.put_object(Bucket=MODELS_BUCKET, Key="shared/model.gguf", Body=WEIGHTS, ChecksumAlgorithm="SHA256")
    with Origin(node, object_store) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def peers(node: Node, suite: Suite, models_namespace: str, tmp_path: Path) -> Iterator[None]:
    """Sharing switched on, and off again for the tests that follow."""
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # Kustomize takes relative paths only.
        "resources": [os.path.relpath(ROOT / "deploy/overlays/dev", tmp_path)],
        "components": [os.path.relpath(ROOT / "deploy/components/peers", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    (service,) = re.findall(r"<<EOF\n(.+?)EOF", (ROOT / "docs/how-to/peer-to-peer.md").read_text(), re.DOTALL)
    names = {"name": "matrixinfer-peers", "namespace": NAMESPACE}
    token = {"token": secrets.token_hex(32)}
    node.run_kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=service)
    node.apply([{"apiVersion": "v1", "kind": "Secret", "metadata": names, "stringData": token}])
    node.run_kubectl("apply", "--server-side", "--force-conflicts", "-k", tmp_path)
    node.run_kubectl("-n", SYSTEM_NAMESPACE, "rollout", "status", "deployment/model-controller", "--timeout=60s")
    yield
    apply_overlay(node, Progress())


@pytest.fixture
def life(node: Node, peers: None) -> Iterator[Life]:
    """A Model that is not there yet, gone before sharing is switched off."""
    made = Life(node, "", "shared")
    yield made
    made.kubectl("delete", "model", made.name, "--ignore-not-found", "--wait=true")


def told(pod: dict[str, Any]) -> dict[str, Any]:
    """What its download said at its end."""
    (state,) = [c["state"] for c in pod["status"]["initContainerStatuses"] if c["name"] == "downloader"]
    message: dict[str, Any] = orjson.loads(state["terminated"]["message"])
    return message


def test_three_pods_take_one_model_from_the_origin_and_a_fourth_takes_none(life: Life, origin: Origin):
    model = manifest(life.name)
    model["spec"]["backends"][0] |= {
        "modelURI": f"s3://{MODELS_BUCKET}/shared",
        "minReplicas": 3,
        "maxReplicas": 4,
        "env": [
            {"name": "ENDPOINT", "value": origin.url},
            {"name": "MATRIXINFER_DOWNLOADER_PART_BYTES", "value": str(PART_BYTES)},
        ],
    }
    life.kubectl("apply", "-f", "-", stdin=orjson.dumps(model).decode())
    life.wait_ready(3)
    first = life.pods()
    (digest,) = {told(pod)["digest"] for pod in first}
    (version,) = life.get("modelversions", "-l", f"registry.matrixinfer.ai/model-name={life.name}")["items"]
    assert version["status"]["digest"] == digest
    assert len(WEIGHTS) <= origin.sent <= 1.25 * len(WEIGHTS)
    # What they say of it is so; requests and answers have heads, too.
    assert sum(told(pod)["totalBytes"] - told(pod)["peerBytes"] for pod in first) <= origin.sent

    before = origin.sent
    life.kubectl("scale", life.infer(), "--replicas=4")
    life.wait_ready(4)
    (late,) = [told(p) for p in life.pods() if p["metadata"]["name"] not in {f["metadata"]["name"] for f in first}]
    assert (late["digest"], late["peerBytes"]) == (digest, len(WEIGHTS))
    # Its list of files, and nothing of them.
    assert origin.sent - before < PART_BYTES
