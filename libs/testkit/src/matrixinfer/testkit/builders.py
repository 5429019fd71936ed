"""Plain manifests for tests, every part overridable.

Builders return what a user or the kubelet would write, never what the API server adds; `MemoryApi` does that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matrixinfer.kube.resource import Resource
from matrixinfer.testkit.records import Object, copied

__all__ = [
    "container",
    "custom",
    "meta",
    "node",
    "owner_reference",
    "pod",
    "ready_condition",
    "secret",
    "service",
    "with_path",
]


def meta(name: str, namespace: str = "default", **more: Any) -> Object:
    """`metadata`; further members by keyword (`labels=...`, `ownerReferences=[...]`)."""
    return {"name": name, **({"namespace": namespace} if namespace else {}), **copied(more)}


def container(name: str = "main", image: str = "example/image:1", **more: Any) -> Object:
    """One container."""
    return {"name": name, "image": image, **copied(more)}


def pod(
    name: str,
    namespace: str = "default",
    *,
    labels: Mapping[str, str] | None = None,
    owner: Mapping[str, Any] | None = None,
    containers: Sequence[Mapping[str, Any]] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Object:
    """A pod as a controller would create it; `owner` is the owning object, not the reference."""
    metadata = meta(name, namespace)
    if labels:
        metadata["labels"] = dict(labels)
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": copied(containers or [container()]), **copied(spec or {})},
    }


def node(
    name: str = "node-0", *, pods: int = 250, ready: bool = True, labels: Mapping[str, str] | None = None
) -> Object:
    """A node with room for `pods` pods."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta(name, "", labels={"kubernetes.io/hostname": name, **(labels or {})}),
        "status": {
            "capacity": {"cpu": "64", "memory": "512Gi", "pods": str(pods)},
            "allocatable": {"cpu": "64", "memory": "512Gi", "pods": str(pods)},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False", "reason": "KubeletReady"}],
        },
    }


def service(
    name: str, namespace: str = "default", *, selector: Mapping[str, str] | None = None, port: int = 80
) -> Object:
    """A ClusterIP service with one port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(name, namespace),
        "spec": {"selector": dict(selector or {"app": name}), "ports": [{"name": "http", "port": port}]},
    }


def secret(name: str, namespace: str = "default", *, data: Mapping[str, str] | None = None) -> Object:
    """An opaque secret; the values of `data` are base64 already."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta(name, namespace),
        "type": "Opaque",
        "data": dict(data or {}),
    }


def custom(
    resource: Resource, name: str, namespace: str = "default", *, spec: Mapping[str, Any], **more: Any
) -> Object:
    """An object of any kind."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": meta(name, namespace if resource.namespaced else "", **more),
        "spec": copied(spec),
    }


def owner_reference(owner: Mapping[str, Any], *, controller: bool = True) -> Object:
    """A reference to an object that the API server returned (its uid is needed)."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": controller,
        "blockOwnerDeletion": True,
    }


def ready_condition(*, ready: bool, since: str) -> Object:
    """A pod's Ready condition."""
    return {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": since}


def with_path(manifest: Mapping[str, Any], path: str, value: Any) -> Object:
    """Return a copy with the member at a dotted path (`spec.template.replicas`) set."""
    head, _, rest = path.partition(".")
    below = manifest.get(head)
    inner = with_path(below if isinstance(below, Mapping) else {}, rest, value) if rest else value
    return {**copied(manifest), head: inner}
