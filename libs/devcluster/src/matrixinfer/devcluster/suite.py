"""The suite on a cluster: images built and loaded, the six services deployed and available.

Owns what `make demo` and the end-to-end tests have in common. Refuses to own building images (`tools.images` does)
and manifests (`deploy/` holds them).
"""

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import repository
from matrixinfer.devcluster.node import Node
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.services import SYSTEM_NAMESPACE

__all__ = [
    "ENGINE_IMAGES",
    "SERVICE_IMAGES",
    "Cluster",
    "Suite",
    "apply_overlay",
    "build_images",
    "deploy",
    "load_images",
    "read",
    "why_pod_unready",
    "why_unavailable",
]

SERVICE_IMAGES = ("model-controller", "infer-controller", "webhook", "gateway", "autoscaler", "downloader")
ENGINE_IMAGES = ("engine-sim", "engine-llamacpp")
_AVAILABLE_SECONDS = 180
_MESSAGE_LENGTH = 120


class Cluster(Protocol):
    """What the suite needs of a cluster, ours or the user's."""

    def run_kubectl(self, *arguments: str | Path, stdin: str = "", seconds: float = 60) -> str:
        """Run kubectl as administrator and return what it printed."""

    def publish(self, service: str, namespace: str, port: int) -> int:
        """Forward a port of 127.0.0.1 to this Service's port."""


@dataclass(frozen=True, slots=True)
class Suite:
    """The deployed suite."""

    cluster: Cluster

    def gateway_url(self) -> str:
        """Return the gateway's base URL on loopback."""
        service = read(self.cluster, "service", "gateway", "-n", SYSTEM_NAMESPACE)
        ports = {port.get("name", ""): int(port["port"]) for port in service["spec"]["ports"]}
        port = ports.get("http", next(iter(ports.values())))
        return f"http://127.0.0.1:{self.cluster.publish('gateway', SYSTEM_NAMESPACE, port)}"


def read(cluster: Cluster, *what: str) -> dict[str, Any]:
    """Get objects as JSON."""
    answer: dict[str, Any] = orjson.loads(cluster.run_kubectl("get", *what, "-o", "json"))
    return answer


def deploy(node: Node, progress: Progress, images: Sequence[str] = (*SERVICE_IMAGES, *ENGINE_IMAGES)) -> Suite:
    """Build and load these images, apply deploy/overlays/dev and wait until every service is available."""
    replaced = load_images(node, build_images(images, progress), progress)
    return apply_overlay(node, progress, restart=replaced)


def build_images(images: Sequence[str], progress: Progress) -> list[Path]:
    """Build these images (quick when nothing changed); returns their archives."""
    progress.say(f"building {len(images)} container images")
    printed = progress.run([sys.executable, "-m", "tools.images", "save", *images], repository())
    return [Path(line) for line in printed]


def load_images(node: Node, archives: Iterable[Path], progress: Progress) -> list[str]:
    """Load the archives that the node does not hold yet; returns those that took the place of an older one."""
    replaced = []
    stamps = node.place.data / "loaded"
    stamps.mkdir(exist_ok=True)
    for archive in archives:
        identity, stamp = archive.with_suffix(".id"), stamps / archive.stem
        version = identity.read_text(encoding="utf-8") if identity.exists() else str(archive.stat().st_mtime_ns)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == version:
            continue
        progress.say(f"  loading {archive.stem} into the node")
        node.load_image(archive)
        if stamp.exists():
            replaced.append(archive.stem)
        stamp.write_text(version, encoding="utf-8")
    return replaced


def apply_overlay(cluster: Cluster, progress: Progress, restart: Sequence[str] = ()) -> Suite:
    """Apply deploy/overlays/dev and wait until every Deployment in it is available.

    The services of `restart` are rolled: a new image under the same tag starts no pod by itself.
    """
    progress.say("kubectl apply -k deploy/overlays/dev")
    overlay = repository() / "deploy" / "overlays" / "dev"
    cluster.run_kubectl("apply", "--server-side", "--force-conflicts", "-k", overlay, seconds=120)
    for service in sorted({*restart} & {*SERVICE_IMAGES} - {"downloader"}):
        progress.say(f"  rolling {service} to its new image")
        cluster.run_kubectl("rollout", "restart", f"deployment/{service}", "-n", SYSTEM_NAMESPACE)

    def why_not() -> str:
        items = read(cluster, "deployments,pods", "-n", SYSTEM_NAMESPACE)["items"]
        deployments = [item for item in items if item["kind"] == "Deployment"]
        return why_unavailable(deployments, [item for item in items if item["kind"] == "Pod"])

    try:
        progress.wait("the services", why_not, _AVAILABLE_SECONDS)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{_last_words(cluster)}") from error
    return Suite(cluster)


def _last_words(cluster: Cluster) -> str:
    """Return the end of the log of each pod that is not ready."""
    pods = read(cluster, "pods", "-n", SYSTEM_NAMESPACE)["items"]
    names = [pod["metadata"]["name"] for pod in pods if why_pod_unready(pod)]
    logs = []
    for name in names:
        with contextlib.suppress(ClusterError):
            logs.append(f"{name}:\n{cluster.run_kubectl('logs', name, '-n', SYSTEM_NAMESPACE, '--tail=5')[:4000]}")
    return "\n".join(logs)


def why_unavailable(deployments: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]) -> str:
    """Return which Deployments are not fully available and what their pods say; empty when all are."""
    if not deployments:
        return "no Deployment is there yet"
    reasons = []
    for deployment in deployments:
        name, status = deployment["metadata"]["name"], deployment.get("status", {})
        wanted = deployment["spec"].get("replicas", 1)
        seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        if seen and status.get("availableReplicas", 0) >= wanted and status.get("updatedReplicas", 0) >= wanted:
            continue
        selector = deployment["spec"]["selector"]["matchLabels"]
        mine = [p for p in pods if selector.items() <= (p["metadata"].get("labels") or {}).items()]
        said = next((text for pod in mine if (text := why_pod_unready(pod))), "almost" if mine else "no pod yet")
        reasons.append(f"{name} ({said})")
    return ", ".join(reasons)


def why_pod_unready(pod: Mapping[str, Any]) -> str:
    """Return in a few words why this pod is not ready; empty when it is, or when it is on its way out."""
    status = pod.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    ended_well = status.get("phase") == "Succeeded" or pod["metadata"].get("deletionTimestamp")
    if ended_well or conditions.get("Ready", {}).get("status") == "True":
        return ""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("message", "not scheduled"))
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        state = container.get("state", {})
        waiting, ended = state.get("waiting"), state.get("terminated")
        if not container.get("ready") and (restarts := container.get("restartCount", 0)) > 1:
            last = container.get("lastState", {}).get("terminated") or ended or {}
            said = f"ended with {last.get('exitCode')} and was restarted {restarts} times"
            return f"{container['name']}: {said} {_shortened(last.get('message', ''))}".strip()
        if waiting and waiting.get("reason") not in {"PodInitializing"}:
            return f"{container['name']}: {waiting.get('reason')} {_shortened(waiting.get('message', ''))}".strip()
        if ended and ended.get("exitCode"):
            return f"{container['name']}: ended with {ended['exitCode']} {_shortened(ended.get('message', ''))}".strip()
        if "running" in state and not container.get("ready"):
            return f"{container['name']} is starting"
    return str(status.get("phase", "Pending"))


def _shortened(message: str) -> str:
    """The first line of a message, at a length that can be read while it scrolls by."""
    line = message.partition("\n")[0]
    return line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}…"
