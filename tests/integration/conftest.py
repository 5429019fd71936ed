"""Tier A for every test of this tree: a real control plane that all workers of a run share, and what stands on it.

The plane goes down with the last process of the run, however that ends. Services watch the whole cluster, so only one
test at a time may run them: `service_process` holds a lock for the length of its test.

    MATRIXINFER_CLUSTER_NAME=mine   use the plane of `python -m matrixinfer.devcluster up --name mine` and leave it up
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.gateway_world import Gateway, GatewayStarter, World

from matrixinfer.devcluster import ControlPlane, instance, repository
from matrixinfer.devcluster.binaries import build_extra
from matrixinfer.devcluster.controlplane import free_ports, wait_for
from matrixinfer.devcluster.s3 import ObjectStore, command, new_keys
from matrixinfer.devcluster.services import ServiceProcess, forget_leases, start_service
from matrixinfer.devcluster.simnodes import simulated_nodes
from matrixinfer.devcluster.state import transition

ROOT = repository()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses a control plane is marked, so that `-m "not integration"` leaves it out.

    Tests that run services take turns anyway, so one worker of a run gets them all and none waits for another's.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "bare_control_plane" in fixtures:
            item.add_marker(pytest.mark.integration)
        if "service_process" in fixtures:
            item.add_marker(pytest.mark.xdist_group("services"))


@pytest.fixture(scope="session")
def cluster_name(request: pytest.FixtureRequest) -> str:
    """The plane's name: one per run, the same in all workers of the run."""
    given = os.environ.get("MATRIXINFER_CLUSTER_NAME")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid():x}"
    return given or f"it-{run[:8]}"


@pytest.fixture(scope="session")
def bare_control_plane(cluster_name: str) -> Iterator[ControlPlane]:
    """A running control plane, without our CRDs."""
    with ControlPlane.borrowed(cluster_name) as plane:
        yield plane


@pytest.fixture(scope="session")
def crds(bare_control_plane: ControlPlane) -> list[str]:
    """Apply crds/ and wait until the API server serves them; returns their names."""
    names = bare_control_plane.apply(ROOT / "crds")
    bare_control_plane.run_kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return sorted(line.split()[0].partition("/")[2] for line in names.splitlines())


@pytest.fixture(scope="session")
def control_plane(bare_control_plane: ControlPlane, crds: list[str]) -> ControlPlane:
    """A running control plane that serves our kinds."""
    return bare_control_plane


@pytest.fixture
def own_plane() -> Iterator[ControlPlane]:
    """A control plane of one test's own, for what would disturb the others: its API server may be killed."""
    name = f"own-{uuid.uuid4().hex[:6]}"
    try:
        yield ControlPlane.up(name)
    finally:
        ControlPlane(instance(name)).down()


@pytest.fixture
def namespace(bare_control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace, gone (with what is in it) after the test."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    bare_control_plane.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    # Pods are refused until the controller manager has made this account.
    wait_for(f"ServiceAccount default of {name}", lambda: bare_control_plane.api.exists(account), 30)
    yield name
    bare_control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def nodes(bare_control_plane: ControlPlane) -> Iterator[list[str]]:
    """Three simulated nodes whose pods become Ready, fail or end as their annotations say."""
    with simulated_nodes(bare_control_plane.api, 3, prefix=f"sim-{uuid.uuid4().hex[:6]}") as names:
        yield names


ServiceStarter = Callable[..., ServiceProcess]


@pytest.fixture
def service_process(control_plane: ControlPlane) -> Iterator[ServiceStarter]:
    """`service_process("gateway", {"MATRIXINFER_GATEWAY_PORT": "…"})`: a real process with its shipped rights, ready.

    `wait=False` returns before it is ready. All that were started are stopped after the test.
    """
    started: list[ServiceProcess] = []

    def start(service: str, env: dict[str, str] | None = None, *, wait: bool = True) -> ServiceProcess:
        process = start_service(control_plane, service, env, wait=wait)
        started.append(process)
        return process

    with (control_plane.place.folder / "services.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        forget_leases(control_plane)
        yield start
        for process in reversed(started):
            process.stop()


@pytest.fixture
def world(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[World]:
    """A namespace in which a test makes engines, pods, servers and routes."""
    made = World(control_plane, namespace, tmp_path, iter(range(2, 250)))
    yield made
    for engine in made.engines:
        engine.process.kill()
        engine.process.wait()


@pytest.fixture
def gateway(service_process: Callable[..., ServiceProcess], namespace: str) -> GatewayStarter:
    """`gateway(settle_seconds="1")`: a real gateway with two workers that routes what lies in the namespace."""

    def start(**env: str) -> Gateway:
        (port,) = free_ports(1)
        settings = {
            "MATRIXINFER_GATEWAY_HOST": "127.0.0.1",
            "MATRIXINFER_GATEWAY_PORT": str(port),
            "MATRIXINFER_GATEWAY_WORKERS": "2",
            "MATRIXINFER_GATEWAY_SETTLE_SECONDS": "0.2",
            # Names are global: what a test before left behind, in a namespace that is going away, owns them still.
            "MATRIXINFER_GATEWAY_WATCH_NAMESPACE": namespace,
            **{f"MATRIXINFER_GATEWAY_{name.upper()}": value for name, value in env.items()},
        }
        return Gateway(service_process("gateway", settings), f"http://127.0.0.1:{port}")

    return start


@pytest.fixture(scope="session")
def s3_domain() -> str:
    """The name of which the S3 server takes what stands before it for a bucket."""
    return "s3.cluster.test"


@pytest.fixture(scope="session")
def s3(
    bare_control_plane: ControlPlane, s3_domain: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectStore]:
    """A real S3 server over an empty folder, on loopback; it also knows buckets by names below s3_domain."""
    folder: Path = tmp_path_factory.mktemp("s3")
    for part in ("buckets", "metadata"):
        (folder / part).mkdir()
    (port,) = free_ports(1)
    store = ObjectStore(f"http://127.0.0.1:{port}", *new_keys())
    ledger, name = bare_control_plane.ledger, f"s3-{port}"
    argv = command(build_extra("versitygw", print), f"127.0.0.1:{port}", folder)
    argv[1:1] = ["--virtual-domain", s3_domain]
    with transition(bare_control_plane.place) as lock:
        ledger.start(name, argv, lock=lock, env=store.server_env)
    wait_for("the S3 server", store.is_up, 30)
    yield store
    with contextlib.suppress(FileNotFoundError):
        ledger.stop(name, patience_seconds=2)
