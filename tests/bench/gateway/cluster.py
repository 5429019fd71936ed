"""The objects that the bench routes by, on an API server in memory, and the changes that it makes to them."""

from collections.abc import Sequence
from typing import Any

from matrixinfer.devcluster import repository
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.testkit.memory import MemoryApi

__all__ = ["Cluster"]

_NETWORKING = "networking.matrixinfer.ai/v1alpha1"
_NAMESPACE = "default"


class Cluster:
    """Pods, servers and routes of one namespace."""

    def __init__(self) -> None:
        self.api = MemoryApi()
        """To be served to the gateway."""
        self._kinds = {resource.kind: resource for resource in self.api.register_crds(repository() / "crds")}

    def pod(self, name: str, app: str, engine: str) -> None:
        """Add a ready pod for an engine, which is an address and a port."""
        address = engine.partition(":")[0]
        self.api.create(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": _NAMESPACE, "labels": {"app": app}},
                "spec": {"containers": [{"name": "engine", "image": "none"}]},
            },
        )
        self._patch_status(name, phase="Running", podIP=address, podIPs=[{"ip": address}])
        self.set_ready(name, ready=True)

    def set_ready(self, pod: str, *, ready: bool) -> None:
        """Let the pod take requests, or not."""
        self._patch_status(pod, conditions=[{"type": "Ready", "status": str(ready)}])

    def server(self, name: str, app: str, port: int) -> None:
        """Add a ModelServer for all pods of an app."""
        self._create(
            "ModelServer",
            name,
            inferenceEngine="vLLM",
            workloadSelector={"matchLabels": {"app": app}},
            workloadPort={"port": port},
        )

    def route(self, name: str, model: str, targets: Sequence[Any], fallbacks: Sequence[Any] = ()) -> None:
        """Add a ModelRoute with one rule."""
        rule = {"name": "all", "targetModels": list(targets), "fallbacks": list(fallbacks)}
        self._create("ModelRoute", name, modelName=model, rules=[rule])

    def change(self, kind: str, name: str, **spec: Any) -> None:
        """Change the spec of an object."""
        self.api.merge_patch(self._kinds[kind], Key(_NAMESPACE, name), {"spec": spec})

    def _create(self, kind: str, name: str, **spec: Any) -> None:
        metadata = {"name": name, "namespace": _NAMESPACE}
        manifest = {"apiVersion": _NETWORKING, "kind": kind, "metadata": metadata, "spec": spec}
        self.api.create(self._kinds[kind], manifest)

    def _patch_status(self, pod: str, **status: Any) -> None:
        self.api.merge_patch(PODS, Key(_NAMESPACE, pod), {"status": status}, subresource="status")
