"""CLUSTER=existing: the demo on a cluster that the user has, reached by KUBECONFIG.

Owns what differs from a node of ours: kubectl with the user's own credentials, port forwards by kubectl, and an S3
server as a pod. It changes nothing outside the namespaces matrixinfer-system and matrixinfer-demo and the Model that
the demo applies; images are the user's business (their nodes must be able to get matrixinfer/*:dev).
"""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import orjson
import yaml

from matrixinfer.devcluster import state
from matrixinfer.devcluster.binaries import locate
from matrixinfer.devcluster.controlplane import free_ports, wait_for
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import Instance, instance, repository
from matrixinfer.devcluster.leftovers import remove_tree
from matrixinfer.devcluster.processes import Ledger
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.s3 import ObjectStore, new_keys
from matrixinfer.devcluster.state import State

__all__ = ["S3_IMAGE", "ExistingCluster", "object_store_manifests"]

S3_IMAGE = "matrixinfer/s3:dev"
_TIER = "existing"
_PORT = 7070
# A gateway that is told to stop first lets its streams end, and the cluster looks again only now and then.
_GONE_SECONDS = 300
_AS_JSON = ("--ignore-not-found", "-o", "json")
# A port-forward ends with the pod it chose; begun again, it finds the next one.
_FOREVER = """trap 'kill $!; exit' TERM; while :; do "$@" & wait $!; sleep 1; done"""


class ExistingCluster:
    """A cluster that was here before, and what the demo adds to it."""

    def __init__(self, place: Instance, kubeconfig: Path) -> None:
        self.place = place
        self.kubeconfig = kubeconfig
        self.ledger = Ledger(place.processes, place.logs)

    @classmethod
    def of_environment(cls, name: str) -> Self:
        """Take the cluster that KUBECONFIG names."""
        given = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        path = Path(given.split(os.pathsep)[0]).resolve()
        if not path.is_file():
            raise ClusterError(f"CLUSTER=existing needs a cluster: set KUBECONFIG ({path} is no file)")
        cluster = cls(instance(name), path)
        cluster.run_kubectl("version", seconds=20)
        found = state.load(cluster.place)
        if found is not None and (found.tier != _TIER or found.server != str(path)):
            raise ClusterError("another demo is up; `make demo-down` first")
        if found is None:
            state.save(cluster.place, State(tier=_TIER, server=str(path), ready=True, kept=True))
        return cluster

    @classmethod
    def attach(cls, name: str) -> Self | None:
        """Return the cluster that the demo was put on, if it was."""
        place = instance(name)
        found = state.load(place)
        return cls(place, Path(found.server)) if found is not None and found.tier == _TIER else None

    @property
    def kubectl(self) -> Path:
        """The user's kubectl, or else ours if it is built."""
        on_path = shutil.which("kubectl")
        if on_path:
            return Path(on_path)
        ours = locate(("kubectl",))
        if ours is None:
            raise ClusterError("kubectl is missing: put it on PATH, or `make cluster` builds one")
        return ours["kubectl"]

    def run_kubectl(self, *arguments: str | Path, stdin: str = "", seconds: float = 60) -> str:
        """Run kubectl with the user's credentials and return what it printed."""
        argv = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *map(str, arguments)]
        what = f"kubectl {' '.join(map(str, arguments))}"
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as late:
            raise ClusterError(f"{what}: not done within {seconds:.0f} s") from late
        if done.returncode != 0:
            raise ClusterError(f"{what}: {done.stderr.strip()}")
        return done.stdout

    def publish(self, service: str, namespace: str, port: int) -> int:
        """Forward a port of 127.0.0.1 to this Service's port, by `kubectl port-forward`."""
        label = f"{namespace}.{service}.{port}"
        with state.transition(self.place) as lock:
            found = state.load(self.place) or State(tier=_TIER, server=str(self.kubeconfig), ready=True, kept=True)
            local = found.published.get(label)
            if local is not None and f"forward.{label}" in self.ledger.running():
                return local
            if local is None:
                (local,) = free_ports(1)
            argv = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", "port-forward", f"--namespace={namespace}"]
            loop = ["sh", "-c", _FOREVER, "sh", *argv, f"service/{service}", f"{local}:{port}"]
            self.ledger.start(f"forward.{label}", loop, lock=lock)
            state.save(self.place, replace(found, published={**found.published, label: local}))
        return local

    def start_object_store(self, namespace: str, name: str = "s3") -> ObjectStore:
        """Run the S3 server as a pod; returns how to reach it from here."""
        keys_file = self.place.data / "s3-keys.json"
        keys_file.parent.mkdir(parents=True, exist_ok=True)
        if not keys_file.exists():
            keys_file.write_bytes(orjson.dumps(new_keys()))
        access_key, secret_key = orjson.loads(keys_file.read_bytes())
        manifests = object_store_manifests(namespace, name, ObjectStore("", access_key, secret_key))
        self.run_kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(manifests))
        self.run_kubectl("rollout", "status", f"deployment/{name}", "-n", namespace, "--timeout=90s", seconds=100)
        store = ObjectStore(f"http://127.0.0.1:{self.publish(name, namespace, _PORT)}", access_key, secret_key)
        wait_for("the S3 server", store.is_up, 30)
        return store

    def down(self, progress: Progress) -> None:
        """Remove what the demo added, Models first so that their controllers can clean up.

        Of a cluster that is gone itself only the port forwards are left to remove.
        """
        with state.transition(self.place):
            self.ledger.stop(*self.ledger.running(), patience_seconds=2)
        if self._answers():
            self._remove_everything(progress)
        with state.transition(self.place):
            remove_tree(self.place.folder)

    def _answers(self) -> bool:
        try:
            self.run_kubectl("version", seconds=20)
        except ClusterError:
            return False
        return True

    def _remove_everything(self, progress: Progress) -> None:
        gone = ("--ignore-not-found", "--wait=false")
        if self.run_kubectl("get", "crd", "models.registry.matrixinfer.ai", "--ignore-not-found"):
            progress.say("deleting the Model")
            self.run_kubectl("delete", "models.registry.matrixinfer.ai", "quickstart", "--ignore-not-found")
        progress.say("kubectl delete -k deploy/overlays/dev")
        self.run_kubectl("delete", "-k", repository() / "deploy" / "overlays" / "dev", *gone)
        self.run_kubectl("delete", "namespace", "matrixinfer-demo", *gone)
        self.run_kubectl("delete", "secret", "s3-credentials", *gone)
        progress.wait("the end of the namespaces", self._why_still_there, _GONE_SECONDS)

    def _why_still_there(self) -> str:
        answer = self.run_kubectl("get", "namespaces", "matrixinfer-system", "matrixinfer-demo", *_AS_JSON)
        left = orjson.loads(answer or "{}").get("items", [])
        conditions = [c for each in left for c in each["status"].get("conditions", []) if c["status"] == "True"]
        said = next((str(c["message"]) for c in conditions), "they are being emptied")
        return f"{', '.join(each['metadata']['name'] for each in left)}: {said}" if left else ""


def object_store_manifests(namespace: str, name: str, store: ObjectStore) -> list[dict[str, Any]]:
    """Return an S3 server as a Deployment with its keys in a Secret; what it holds goes with its pod."""
    labels = {"app.kubernetes.io/name": name}
    meta = {"name": name, "namespace": namespace}
    container = {
        "name": "s3",
        "image": S3_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["--port", f":{_PORT}", "--quiet", "posix", "--sidecar", "/data/metadata", "/data/buckets"],
        "envFrom": [{"secretRef": {"name": name}}],
        "ports": [{"name": "http", "containerPort": _PORT}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "data", "mountPath": "/data/metadata", "subPath": "metadata"},
            {"name": "data", "mountPath": "/data/buckets", "subPath": "buckets"},
        ],
    }
    security = {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"securityContext": security, "containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": store.server_env},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": _PORT, "targetPort": "http"}]},
        },
    ]
