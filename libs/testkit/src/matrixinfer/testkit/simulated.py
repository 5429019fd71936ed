"""A scheduler and a kubelet for the in-memory API server, one deterministic step at a time.

Keeps no state of its own besides what a test told it (held pods, crashing images): the stage of a pod is read from
the pod, so a simulated cluster can be put on any fork of an API server and goes on from there.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from matrixinfer.kube.resource import NODES, PODS, Key
from matrixinfer.testkit.builders import node as node_manifest
from matrixinfer.testkit.clock import rfc3339
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.records import Object
from matrixinfer.testkit.status_errors import StatusError

__all__ = ["SimulatedCluster"]


def _condition(kind: str, *, on: bool, now: str, reason: str = "", message: str = "") -> Object:
    condition: Object = {"type": kind, "status": "True" if on else "False", "lastTransitionTime": now}
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition


class SimulatedCluster:
    """Nodes that run pods: Pending, bound, Running, Ready, and away again."""

    def __init__(
        self,
        api: MemoryApi,
        *,
        nodes: int = 2,
        obey_grace: bool = False,
        crashes: Callable[[Mapping[str, Any]], bool] = lambda _pod: False,
    ) -> None:
        """`crashes` says which pods never become ready but restart at every step."""
        self.api = api
        self.obey_grace = obey_grace
        self._crashes = crashes
        self._held: set[Key] = set()
        for ordinal in range(nodes):
            name = f"node-{ordinal}"
            if api.find(NODES, Key("", name)) is None:
                self._add_node(name)

    def _add_node(self, name: str) -> None:
        manifest = node_manifest(name)
        self.api.create(NODES, manifest, field_manager="kubelet")
        self.api.merge_patch(
            NODES, Key("", name), {"status": manifest["status"]}, subresource="status", field_manager="kubelet"
        )

    # ------------------------------------------------------------------ steps

    def step(self) -> bool:
        """Move every pod on by one stage and collect garbage; False when nothing moved."""
        before = self.api.resource_version
        for key in self.pods():
            self.advance(key)
        self.api.collect_garbage()
        return self.api.resource_version != before

    def settle(self, limit: int = 50) -> None:
        """Step until nothing moves; AssertionError when something still does after `limit` steps."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError(f"pods still move after {limit} steps")

    def pods(self) -> Sequence[Key]:
        """Keys of all pods, in order."""
        found = (record.manifest["metadata"] for record in self.api.page(PODS).records)
        return [Key(metadata["namespace"], metadata["name"]) for metadata in found]

    def advance(self, key: Key) -> None:
        """Move one pod on by one stage; nothing happens when it is gone, held or at rest."""
        pod = self.api.find(PODS, key)
        if pod is None:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self._terminate(key, pod)
            return
        phase = pod.get("status", {}).get("phase")
        if key in self._held or phase in ("Failed", "Succeeded"):
            return
        if not pod["spec"].get("nodeName"):
            self._schedule(key, pod)
        elif phase == "Pending":
            self._start(key, pod)
        elif self._crashes(pod):
            self.restart_container(key)
        elif not self.is_ready(pod) and self._node_is_ready(pod["spec"]["nodeName"]):
            self._set_ready(key, pod)

    @staticmethod
    def is_ready(pod: Mapping[str, Any]) -> bool:
        """True when the pod's Ready condition is."""
        conditions = pod.get("status", {}).get("conditions", ())
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _terminate(self, key: Key, pod: Object) -> None:
        deadline = datetime.fromisoformat(pod["metadata"]["deletionTimestamp"])
        if self.obey_grace and self.api.now() < deadline:
            return
        if pod["metadata"].get("deletionGracePeriodSeconds"):
            self.api.delete(PODS, key, uid=pod["metadata"]["uid"], grace_seconds=0, field_manager="kubelet")

    def _schedule(self, key: Key, pod: Object) -> None:
        if pod["spec"].get("schedulingGates"):
            return
        node = self._roomiest_node(pod)
        now = rfc3339(self.api.now())
        if node is None:
            message = "no node has room"
            condition = _condition("PodScheduled", on=False, now=now, reason="Unschedulable", message=message)
            if condition["status"] not in [c["status"] for c in pod["status"].get("conditions", ())]:
                self._patch(key, {"conditions": [condition]})
            return
        self.api.bind(key, node)
        self._patch(key, {"conditions": [_condition("PodScheduled", on=True, now=now)]})

    def _roomiest_node(self, pod: Object) -> str | None:
        load: dict[str, int] = {}
        for record in self.api.page(PODS).records:
            name = record.manifest["spec"].get("nodeName")
            if name:
                load[name] = load.get(name, 0) + 1
        wanted = pod["spec"].get("nodeSelector") or {}
        open_nodes = [
            (load.get(node["metadata"]["name"], 0), node["metadata"]["name"])
            for node in self.api.list(NODES)
            if self.is_ready(node)
            and not node.get("spec", {}).get("unschedulable")
            and load.get(node["metadata"]["name"], 0) < int(node["status"]["allocatable"]["pods"])
            and wanted.items() <= node["metadata"].get("labels", {}).items()
        ]
        return min(open_nodes)[1] if open_nodes else None

    def _node_is_ready(self, name: str) -> bool:
        node = self.api.find(NODES, Key("", name))
        return node is not None and self.is_ready(node)

    def _start(self, key: Key, pod: Object) -> None:
        now = rfc3339(self.api.now())
        ordinal = self.api.resource_version
        ip = f"127.{1 + ordinal // 62500 % 200}.{ordinal // 250 % 250}.{ordinal % 250 + 1}"
        self._patch(
            key,
            {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "hostIP": "127.0.0.1",
                "startTime": now,
                "conditions": self._conditions(pod, ready=False),
                "containerStatuses": self._containers(pod, ready=False),
                "initContainerStatuses": [
                    {
                        "name": c["name"],
                        "ready": True,
                        "restartCount": 0,
                        "image": c["image"],
                        "state": {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now}},
                    }
                    for c in pod["spec"].get("initContainers", ())
                ],
            },
        )

    def _set_ready(self, key: Key, pod: Object) -> None:
        status = {
            "conditions": self._conditions(pod, ready=True),
            "containerStatuses": self._containers(pod, ready=True),
        }
        self._patch(key, status)

    def _conditions(self, pod: Object, *, ready: bool) -> list[Object]:
        now = rfc3339(self.api.now())
        kinds = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
        before = {c["type"]: c for c in pod["status"].get("conditions", ())}
        return [
            before[kind]
            if kind in before and (before[kind]["status"] == "True") is on
            else _condition(kind, on=on, now=now)
            for kind, on in kinds.items()
        ]

    def _containers(self, pod: Object, *, ready: bool) -> list[Object]:
        now = rfc3339(self.api.now())
        before = {c["name"]: c for c in pod["status"].get("containerStatuses", ())}
        return [
            {
                "name": c["name"],
                "image": c["image"],
                "started": True,
                "ready": ready,
                "restartCount": before.get(c["name"], {}).get("restartCount", 0),
                "state": {"running": {"startedAt": now}},
                "lastState": before.get(c["name"], {}).get("lastState", {}),
            }
            for c in pod["spec"]["containers"]
        ]

    def _patch(self, key: Key, status: Mapping[str, Any]) -> None:
        self.api.merge_patch(PODS, key, {"status": dict(status)}, subresource="status", field_manager="kubelet")

    # ------------------------------------------------------------------ mishaps

    def hold_pod(self, key: Key) -> None:
        """The pod makes no progress until released."""
        self._held.add(key)

    def release_pod(self, key: Key) -> None:
        """The pod goes on."""
        self._held.discard(key)

    def fail_pod(self, key: Key, *, reason: str = "Error", exit_code: int = 1) -> None:
        """The pod fails for good."""
        pod = self.api.get(PODS, key)
        now = rfc3339(self.api.now())
        ended = {"terminated": {"exitCode": exit_code, "reason": reason, "finishedAt": now}}
        statuses = [{**c, "ready": False, "state": ended} for c in self._containers(pod, ready=False)]
        self._patch(
            key,
            {
                "phase": "Failed",
                "reason": reason,
                "conditions": self._conditions(pod, ready=False),
                "containerStatuses": statuses,
            },
        )

    def restart_container(self, key: Key, *, reason: str = "Error", exit_code: int = 1) -> None:
        """The first container dies and runs again; the pod is not ready until the next step."""
        pod = self.api.get(PODS, key)
        if pod["status"].get("phase") != "Running":
            return
        now = rfc3339(self.api.now())
        first, *others = self._containers(pod, ready=False)
        ended = {"terminated": {"exitCode": exit_code, "reason": reason, "finishedAt": now}}
        restarted = {**first, "restartCount": first["restartCount"] + 1, "lastState": ended}
        self._patch(
            key,
            {"conditions": self._conditions(pod, ready=False), "containerStatuses": [restarted, *others]},
        )

    def make_unready(self, key: Key) -> None:
        """The readiness probe fails; the next step makes the pod ready again unless it is held."""
        pod = self.api.get(PODS, key)
        if self.is_ready(pod):
            self._patch(
                key,
                {
                    "conditions": self._conditions(pod, ready=False),
                    "containerStatuses": self._containers(pod, ready=False),
                },
            )

    def lose_node(self, name: str) -> None:
        """The node stops reporting: not ready, and neither are its pods; nothing on it moves."""
        condition = _condition("Ready", on=False, now=rfc3339(self.api.now()), reason="NodeStatusUnknown")
        self.api.merge_patch(
            NODES, Key("", name), {"status": {"conditions": [condition]}}, subresource="status", field_manager="kubelet"
        )
        for key in self.pods():
            pod = self.api.get(PODS, key)
            if pod["spec"].get("nodeName") == name:
                self.make_unready(key)

    def remove_node(self, name: str) -> None:
        """The node is gone for good, and its pods with it."""
        self.api.delete(NODES, Key("", name), field_manager="kubelet")
        for key in self.pods():
            pod = self.api.find(PODS, key)
            if pod is None or pod["spec"].get("nodeName") != name:
                continue
            try:
                self.api.delete(PODS, key, grace_seconds=0, field_manager="kubelet")
            except StatusError as gone:
                if gone.code != 404:
                    raise
