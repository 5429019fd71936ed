"""One service of this checkout as a local process against a control plane, with the rights it ships with.

Owns the process: its ServiceAccount and Role from `deploy/base/<service>`, a kubeconfig with that account's token,
ports of its own, readiness, and its end. The process is recorded with the cluster, so it cannot outlive it.

The trap: a service that was killed leaves its lease behind, and the next one waits until that expires. A test that is
not about failover starts with `forget_leases`.
"""

import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from matrixinfer.devcluster import state
from matrixinfer.devcluster.controlplane import ControlPlane, free_ports, wait_for
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import repository
from matrixinfer.devcluster.processes import signal_process, wait_gone
from matrixinfer.devcluster.rest import Answer

__all__ = ["SYSTEM_NAMESPACE", "ServiceProcess", "forget_leases", "grant", "start_service"]

SYSTEM_NAMESPACE = "matrixinfer-system"
_READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A service that was started, running or not."""

    plane: ControlPlane
    name: str
    label: str
    admin_url: str
    argv: list[str]
    env: Mapping[str, str]

    @property
    def log(self) -> Path:
        """What it wrote to stdout and stderr."""
        return self.plane.ledger.log(self.label)

    @property
    def pid(self) -> int:
        """Its process id; raises when it does not run."""
        found = self.plane.ledger.running().get(self.label)
        if found is None:
            raise ClusterError(f"{self.name} does not run; the end of its log:\n{self.plane.ledger.tail(self.label)}")
        return found.pid

    def start(self) -> None:
        """Start it (again); `wait_ready` is the caller's choice."""
        with state.transition(self.plane.place) as lock:
            self.plane.ledger.start(self.label, self.argv, lock=lock, env=self.env)

    def stop(self, patience_seconds: float = 20) -> None:
        """Ask it to end (SIGTERM), and kill it after `patience_seconds`."""
        self.plane.ledger.stop(self.label, patience_seconds=patience_seconds)

    def kill(self) -> None:
        """Kill it without asking."""
        self.plane.ledger.stop(self.label, hard=True)

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        self._signal(signal.SIGTERM)

    def wait_gone(self, seconds: float) -> bool:
        """Wait for its end; False when it still runs after `seconds`."""
        found = self.plane.ledger.recorded(self.label)
        return found is None or wait_gone(found, seconds)

    def is_ready(self) -> bool:
        """Whether its /readyz says so now."""
        try:
            with urllib.request.urlopen(f"{self.admin_url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, seconds: float = _READY_SECONDS) -> None:
        """Wait until /readyz is green; raises with the end of the log when the process ends or the time runs out."""
        try:
            wait_for(f"{self.name} (/readyz)", self.is_ready, seconds, self._fail_if_dead)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.plane.ledger.tail(self.label, 30)}") from error

    def _fail_if_dead(self) -> None:
        if self.label not in self.plane.ledger.running():
            raise ClusterError(f"{self.name} has ended")

    def _signal(self, number: signal.Signals) -> None:
        found = self.plane.ledger.recorded(self.label)
        if found is not None:
            signal_process(found, number)


def grant(plane: ControlPlane, service: str) -> None:
    """Create the ServiceAccount of a service and the Roles that `deploy/base` gives it."""
    manifests: list[Answer] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}},
    ]
    for name in ("serviceaccount.yaml", "rbac.yaml"):
        text = (repository() / "deploy" / "base" / service / name).read_text(encoding="utf-8")
        manifests += [_placed(manifest) for manifest in yaml.safe_load_all(text) if manifest]
    plane.apply(manifests)


def _placed(manifest: Answer) -> Answer:
    """Put what has a namespace into ours, as the kustomization does."""
    if manifest["kind"].startswith("Cluster"):
        return manifest
    return {**manifest, "metadata": {"namespace": SYSTEM_NAMESPACE, **manifest["metadata"]}}


def forget_leases(plane: ControlPlane) -> None:
    """Delete the services' leases, so that a service that starts need not outwait a dead one."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases"
    if plane.api.exists(f"/api/v1/namespaces/{SYSTEM_NAMESPACE}"):
        for lease in plane.api.get(path)["items"]:
            plane.api.delete(f"{path}/{lease['metadata']['name']}")


def start_service(
    plane: ControlPlane, service: str, env: Mapping[str, str] | None = None, *, wait: bool = True
) -> ServiceProcess:
    """Start `service` (such as `infer-controller`) with its own account; `env` adds to or overrides its settings."""
    grant(plane, service)
    (admin_port,) = free_ports(1)
    prefix = f"MATRIXINFER_{service.replace('-', '_').upper()}_"
    label = f"{service}-{time.monotonic_ns() % 10**9}"
    settings = {
        "KUBECONFIG": str(plane.kubeconfig_for(SYSTEM_NAMESPACE, service)),
        "POD_NAMESPACE": SYSTEM_NAMESPACE,
        "POD_NAME": label,
        f"{prefix}ADMIN_HOST": "127.0.0.1",
        f"{prefix}ADMIN_PORT": str(admin_port),
        **(env or {}),
    }
    argv = [sys.executable, "-m", f"matrixinfer.{service.replace('-', '_')}"]
    started = ServiceProcess(plane, service, label, f"http://127.0.0.1:{admin_port}", argv, settings)
    started.start()
    if wait:
        started.wait_ready()
    return started
