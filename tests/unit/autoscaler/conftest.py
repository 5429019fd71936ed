"""Objects as the API server gives them, and stores to put them into."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from matrixinfer.autoscaler.observe import Stores, by_policy, by_target, pods_of
from matrixinfer.autoscaler.views import BINDING, BINDINGS, INFER, INFERS, POLICIES, POLICY
from matrixinfer.kube.codec import PODS_SLIM
from matrixinfer.kube.resource import PODS
from matrixinfer.kube.store import Store

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class World:
    """The stores of an autoscaler, filled by hand."""

    def __init__(self) -> None:
        self.stores = Stores(
            bindings=Store(BINDING, BINDINGS, indexes={"target": by_target, "policy": by_policy}),
            policies=Store(POLICY, POLICIES),
            infers=Store(INFER, INFERS),
            pods=Store(PODS, PODS_SLIM, indexes={"infer": pods_of}),
        )
        self._version = 0

    def _meta(self, name: str, **more: Any) -> dict[str, Any]:
        self._version += 1
        base = {"name": name, "namespace": "ns", "uid": f"{name}-uid", "generation": 1}
        return {**base, "resourceVersion": str(self._version), **more}

    def policy(self, *, metrics: Any = None, meta: Any = None, **spec: Any) -> None:
        metrics = metrics or [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": "2"}]
        manifest = {
            "apiVersion": "registry.matrixinfer.ai/v1alpha1",
            "kind": "AutoscalingPolicy",
            "metadata": self._meta("p", **(meta or {})),
            "spec": {"metrics": metrics, **spec},
        }
        self.stores.policies.put(POLICIES.decode(msgspec.json.encode(manifest)))

    def binding(
        self,
        *,
        least: int = 1,
        most: int = 5,
        target: Any = None,
        spec: Any = None,
        status: Any = None,
        meta: Any = None,
    ) -> None:
        target = target or {"targetRef": {"kind": "ModelInfer", "name": "m"}}
        scaling = {"target": target, "minReplicas": least, "maxReplicas": most}
        manifest = {
            "metadata": self._meta("b", **(meta or {})),
            "spec": spec or {"policyRef": {"name": "p"}, "scalingConfiguration": scaling},
            "status": status or {},
        }
        self.stores.bindings.put(BINDINGS.decode(msgspec.json.encode(manifest)))

    def infer(self, replicas: int = 1, *, roles: Any = None, meta: Any = None, existing: int = 1) -> None:
        engine = {
            "name": "engine",
            "ports": [{"name": "metrics", "containerPort": 1}, {"name": "http", "containerPort": 8001}],
        }
        roles = roles or [{"name": "leader", "entryTemplate": {"spec": {"containers": [{"name": "side"}, engine]}}}]
        manifest = {
            "metadata": self._meta("m", **(meta or {})),
            "spec": {"replicas": replicas, "template": {"roles": roles}},
            "status": {"replicas": existing},
        }
        self.stores.infers.put(INFERS.decode(msgspec.json.encode(manifest)))

    def pod(self, name: str, ip: str = "10.0.0.1", *, role: str = "leader", ready: bool = True, **more: Any) -> None:
        labels = {"modelinfer.matrixinfer.ai/name": "m", "modelinfer.matrixinfer.ai/role": role}
        meta = self._meta(name, labels={**labels, **more.pop("labels", {})}, **more)
        conditions = [{"type": "Ready", "status": str(ready)}]
        manifest = {"metadata": meta, "status": {"podIP": ip, "phase": "Running", "conditions": conditions}}
        self.stores.pods.put(PODS_SLIM.decode(msgspec.json.encode(manifest)))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def now() -> datetime:
    return NOW
