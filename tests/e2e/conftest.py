"""Tier B for every test of this tree: a real node, and on it the suite as users deploy it.

Without what a node needs, tests are skipped with the reason and the command that helps; MATRIXINFER_REQUIRE_NODE=1
makes that an error. MATRIXINFER_CLUSTER_NAME=demo uses (and leaves up) the cluster of `make demo`.
"""

import os
import uuid
from collections.abc import Iterator

import pytest
from tests.e2e.life import NAMESPACE

from matrixinfer.devcluster import ControlPlane, Node, instance
from matrixinfer.devcluster.binaries import NODE, locate
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.demo import (
    MODELS_BUCKET,
    OBJECT_STORE_NAMESPACE,
    credentials_secret,
    gguf_file,
    upload_model,
)
from matrixinfer.devcluster.diagnose import findings, look
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.s3 import ObjectStore
from matrixinfer.devcluster.suite import Suite, deploy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses a node is marked, so that `-m "not e2e"` leaves it out."""
    for item in items:
        if {"node", "own_node"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def node_is_possible() -> None:
    """Skip (or fail, when a node is required) with what this machine lacks."""
    place = instance("e2e")
    fatal = [str(each) for each in findings(look(place.folder, built=locate(NODE) is not None)) if each.fatal]
    if fatal and os.environ.get("MATRIXINFER_REQUIRE_NODE") == "1":
        pytest.fail("; ".join(fatal))
    if fatal:
        pytest.skip("; ".join(fatal))


@pytest.fixture(scope="session")
def node(node_is_possible: None) -> Iterator[Node]:
    """A running node, shared by all workers of a run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid():x}"
    name = os.environ.get("MATRIXINFER_CLUSTER_NAME") or f"e2e-{run[:8]}"
    with Node.borrowed(name, say=print) as running:
        yield running


@pytest.fixture(scope="session")
def suite(node: Node) -> Suite:
    """The six services from deploy/overlays/dev, all available, with the images of this checkout."""
    return deploy(node, Progress())


@pytest.fixture(scope="session")
def gateway(suite: Suite) -> str:
    """The gateway's base URL on loopback."""
    return suite.gateway_url()


@pytest.fixture(scope="session")
def object_store(node: Node) -> ObjectStore:
    """The S3 server that `http://s3.matrixinfer-demo.svc:7070` names inside, holding the quickstart's model."""
    store = node.start_object_store(OBJECT_STORE_NAMESPACE)
    upload_model(store, MODELS_BUCKET, gguf_file(print))
    return store


@pytest.fixture(scope="session")
def models_namespace(node: Node, suite: Suite, object_store: ObjectStore) -> str:
    """A namespace that may read the S3 server."""
    node.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
    node.apply([credentials_secret(object_store, NAMESPACE)])
    return NAMESPACE


@pytest.fixture
def namespace(node: Node) -> Iterator[str]:
    """A fresh namespace, gone (with what is in it) after the test."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    node.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    wait_for(f"ServiceAccount default of {name}", lambda: node.api.exists(account), 30)
    yield name
    node.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def control_plane(node: Node) -> ControlPlane:
    """The node under the name that tests of both tiers know."""
    return node
