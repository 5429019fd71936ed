"""Simulated nodes for a control plane without any: Node objects, and one kubelet that plays the pods bound to them.

Owns the objects and the pods' status. `next_step` decides, purely, what a kubelet would do next with one pod; the
`Kubelet` thread watches and does it. Pods get an address in 127.0.0.0/8, so a server listening there is a reachable
pod. Refuses to own running anything at that address: `on_running` and `on_gone` tell a test when to.

The traps: the API server taints each new node as not ready, and with the node lifecycle controller off nobody takes
the taint away, so it is removed here. And Endpoints refuse loopback addresses: Services have no endpoints here.

Annotations steer a pod, in its template or patched later: see the constants.
"""

import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import orjson

from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.rest import Answer, Api, ApiRefusedError

__all__ = [
    "OUTCOME",
    "READY_AFTER_SECONDS",
    "RESTARTS",
    "STOP_SECONDS",
    "Kubelet",
    "Remove",
    "Report",
    "Wait",
    "loopback_address",
    "next_step",
    "simulated_nodes",
]

OUTCOME = "simulated-kubelet/outcome"
"""What becomes of the pod: `ready` (default), `unready`, `pending`, `fail`, `succeed`, `crash-loop`, `image-error`."""
READY_AFTER_SECONDS = "simulated-kubelet/ready-after-seconds"
"""How long after the start the pod becomes ready (default 0)."""
STOP_SECONDS = "simulated-kubelet/stop-seconds"
"""How long the pod takes to end after deletion (default 0; never longer than its grace period)."""
RESTARTS = "simulated-kubelet/restarts"
"""The restart count that the containers report (default 0): raise it to play a container that was killed."""

Outcome = Literal["ready", "unready", "pending", "fail", "succeed", "crash-loop", "image-error"]
_OUTCOMES: frozenset[str] = frozenset(get_args(Outcome))
_PHASES: Mapping[str, str] = {"fail": "Failed", "succeed": "Succeeded", "pending": "Pending", "image-error": "Pending"}


@dataclass(frozen=True, slots=True)
class Report:
    """Write this status (a strategic merge patch)."""

    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remove:
    """The pod has ended: remove the object."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this moment."""

    until: datetime


def loopback_address(uid: str) -> str:
    """Return the address of the pod with this uid: always the same, and shared with another one in a few million."""
    first, second, third = hashlib.sha256(uid.encode()).digest()[:3]
    # 127.0.x.x is left alone: servers of tests listen there.
    return f"127.{1 + first % 254}.{second}.{1 + third % 254}"


def next_step(pod: Mapping[str, Any], now: datetime) -> Report | Remove | Wait | None:
    """Return what a kubelet does next with a pod bound to its node; None when all is as it should be."""
    metadata = pod["metadata"]
    annotations = metadata.get("annotations") or {}
    if metadata.get("deletionTimestamp"):
        return _next_step_of_a_deleted(metadata, annotations, now)
    if pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}:
        return None
    outcome = annotations.get(OUTCOME, "ready")
    if outcome not in _OUTCOMES:
        raise ClusterError(f"annotation {OUTCOME}: {outcome!r} is none of {', '.join(sorted(_OUTCOMES))}")
    started = _time(pod.get("status", {}).get("startTime")) or now
    due = started + timedelta(seconds=float(annotations.get(READY_AFTER_SECONDS, 0)))
    wanted = _status(pod, "unready" if outcome == "ready" and now < due else outcome, started, now)
    if _differs(pod.get("status", {}), wanted):
        return Report(wanted)
    return Wait(due) if outcome == "ready" and now < due else None


def _next_step_of_a_deleted(
    metadata: Mapping[str, Any], annotations: Mapping[str, str], now: datetime
) -> Remove | Wait | None:
    if not metadata.get("deletionGracePeriodSeconds"):
        return Remove()
    # deletionTimestamp is when the grace period ends; the request came that much earlier.
    end = _time(metadata["deletionTimestamp"]) or now
    grace = float(metadata["deletionGracePeriodSeconds"])
    stops = end - timedelta(seconds=grace) + timedelta(seconds=min(grace, float(annotations.get(STOP_SECONDS, 0))))
    return Remove() if now >= stops else Wait(stops)


def _status(pod: Mapping[str, Any], outcome: str, started: datetime, now: datetime) -> dict[str, Any]:
    address = loopback_address(pod["metadata"]["uid"])
    phase = _PHASES.get(outcome, "Running")
    ready = outcome == "ready"
    restarts = int((pod["metadata"].get("annotations") or {}).get(RESTARTS, 0))
    initialized = phase != "Pending"
    init = _completed(0, "Completed", started) if initialized else _waiting("PodInitializing")
    spec = pod["spec"]
    return {
        "phase": phase,
        "startTime": _stamp(started),
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            _condition("Initialized", initialized, now),
            _condition("ContainersReady", ready, now),
            _condition("Ready", ready, now),
        ],
        "initContainerStatuses": [_container(c, init, initialized, 0) for c in spec.get("initContainers", [])],
        "containerStatuses": [
            _container(c, _container_state(outcome, started), ready, restarts) for c in spec["containers"]
        ],
    }


def _container_state(outcome: str, started: datetime) -> dict[str, Any]:
    match outcome:
        case "fail":
            return _completed(1, "Error", started)
        case "succeed":
            return _completed(0, "Completed", started)
        case "pending":
            return _waiting("ContainerCreating")
        case "image-error":
            return _waiting("ErrImagePull")
        case "crash-loop":
            return _waiting("CrashLoopBackOff")
        case _:
            return {"running": {"startedAt": _stamp(started)}}


def _waiting(reason: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason}}


def _completed(code: int, reason: str, at: datetime) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": _stamp(at), "finishedAt": _stamp(at)}}


def _container(container: Mapping[str, Any], state: dict[str, Any], ready: bool, restarts: int) -> dict[str, Any]:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"simulated:{container['image']}",
        "ready": ready,
        "started": "running" in state,
        "restartCount": restarts,
        "state": state,
    }


def _condition(kind: str, holds: bool, now: datetime) -> dict[str, str]:
    return {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": _stamp(now)}


def _differs(status: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the status says something else than wanted; times do not count."""
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    if any(conditions.get(c["type"]) != c["status"] for c in wanted["conditions"]):
        return True
    if any(status.get(key) != wanted[key] for key in ("phase", "podIP")):
        return True
    return any(
        _container_summary(status.get(key, [])) != _container_summary(wanted[key])
        for key in ("initContainerStatuses", "containerStatuses")
    )


def _container_summary(containers: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {c["name"]: (c["ready"], c["restartCount"], sorted(c.get("state", {}))) for c in containers}


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


class Kubelet:
    """One thread that plays the kubelet of every simulated node of a prefix."""

    def __init__(
        self,
        api: Api,
        node_prefix: str,
        *,
        on_running: Callable[[Answer], None] = lambda _: None,
        on_gone: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._prefix = node_prefix
        self._on_running, self._on_gone = on_running, on_gone
        self._pods: dict[str, Answer] = {}
        self._announced: set[str] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self.failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"kubelet-{work.__name__}", daemon=True)
            for work in (self._watch, self._work)
        ]

    def start(self) -> None:
        """Begin playing."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop playing; pods stay as they are."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._threads[1].join(timeout=10)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        # A thread's error would be lost; it is kept for the test that wonders why its pods do not move.
        except BaseException as error:  # noqa: BLE001
            if not self._stopping:
                self.failure = error

    def _watch(self) -> None:
        """Keep `_pods` as the server has them; a broken watch begins again with a list."""
        while not self._stopping:
            listing = self._api.get("/api/v1/pods")
            with self._changed:
                self._pods = {p["metadata"]["uid"]: p for p in listing["items"] if self._is_ours(p)}
                self._changed.notify_all()
            try:
                for event in self._api.watch("/api/v1/pods", listing["metadata"]["resourceVersion"]):
                    if self._stopping or event["type"] == "ERROR":
                        break
                    self._take(event["type"], event["object"])
            except (ClusterError, OSError, http.client.HTTPException, orjson.JSONDecodeError):
                # The API server restarts in some tests.
                time.sleep(0.2)

    def _is_ours(self, pod: Answer) -> bool:
        return str(pod["spec"].get("nodeName", "")).startswith(self._prefix)

    def _take(self, kind: str, pod: Answer) -> None:
        uid = pod["metadata"]["uid"]
        with self._changed:
            if kind == "DELETED":
                known = self._pods.pop(uid, None)
            else:
                known = None
                if self._is_ours(pod):
                    self._pods[uid] = pod
            self._changed.notify_all()
        if known is not None and uid in self._announced:
            self._announced.discard(uid)
            self._on_gone(pod)

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                now = datetime.now(UTC)
                due = [(pod, next_step(pod, now)) for pod in self._pods.values()]
                acts = [(pod, step) for pod, step in due if isinstance(step, Report | Remove)]
                waits = [step.until for _, step in due if isinstance(step, Wait)]
                if not acts:
                    pause = (min(waits) - now).total_seconds() if waits else None
                    self._changed.wait(None if pause is None else max(0.01, pause))
                    continue
            for pod, step in acts:
                self._act(pod, step)

    def _act(self, pod: Answer, step: Report | Remove) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        try:
            if isinstance(step, Report):
                # The uid makes it this pod and not its successor of the same name.
                patch = {"metadata": {"uid": metadata["uid"]}, "status": dict(step.status)}
                written = self._api.patch(f"{path}/status", patch, "strategic-merge")
                with self._changed:
                    if metadata["uid"] in self._pods:
                        self._pods[metadata["uid"]] = written
                if step.status["phase"] == "Running" and metadata["uid"] not in self._announced:
                    self._announced.add(metadata["uid"])
                    self._on_running(written)
            else:
                self._api.delete(path, grace_seconds=0, uid=metadata["uid"])
                with self._changed:
                    self._pods.pop(metadata["uid"], None)
                if metadata["uid"] in self._announced:
                    self._announced.discard(metadata["uid"])
                    self._on_gone(pod)
        except ApiRefusedError as refused:
            if refused.status not in {404, 409}:
                raise
            with self._changed:
                self._pods.pop(metadata["uid"], None)
        except ClusterError:
            # No answer: the API server restarts in some tests; the watch begins again and brings the pod back.
            time.sleep(0.1)


@contextmanager
def simulated_nodes(
    api: Api,
    count: int = 3,
    *,
    prefix: str = "sim",
    cpu: str = "64",
    memory: str = "256Gi",
    labels: Mapping[str, str] | None = None,
    resources: Mapping[str, str] | None = None,
    on_running: Callable[[Answer], None] = lambda _: None,
    on_gone: Callable[[Answer], None] = lambda _: None,
) -> Iterator[list[str]]:
    """Add `count` nodes with a kubelet that plays their pods; yields their names and removes them at the end."""
    names = [f"{prefix}-{index}" for index in range(count)]
    for name in names:
        _create_node(api, name, {"cpu": cpu, "memory": memory, "pods": "1000", **(resources or {})}, labels or {})
    kubelet = Kubelet(api, f"{prefix}-", on_running=on_running, on_gone=on_gone)
    kubelet.start()
    try:
        yield names
        if kubelet.failure is not None:
            raise ClusterError("the simulated kubelet failed") from kubelet.failure
    finally:
        kubelet.stop()
        for name in names:
            api.delete(f"/api/v1/nodes/{name}")


def _create_node(api: Api, name: str, capacity: Mapping[str, str], labels: Mapping[str, str]) -> None:
    now = datetime.now(UTC)
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}
    api.apply(f"/api/v1/nodes/{name}", {"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})
    ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": _stamp(now)}
    status = {
        "capacity": dict(capacity),
        "allocatable": dict(capacity),
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "conditions": [{**ready, "lastTransitionTime": _stamp(now)}],
    }
    api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
