"""What the real server does to built-in kinds beyond storing them: defaults and what an update may not change.

Only what controllers meet: a planner that compares what it rendered with what is stored must not be fooled by
defaults, and one that edits a running pod's spec must be refused.
"""

from collections.abc import Mapping
from typing import Any

from matrixinfer.kube.resource import PODS, SERVICES, Json, Resource
from matrixinfer.testkit.status_errors import Cause, StatusError, invalid

__all__ = ["check_update", "with_built_in_defaults"]

_POD_DEFAULTS: Mapping[str, Json] = {
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "terminationGracePeriodSeconds": 30,
    "schedulerName": "default-scheduler",
    "securityContext": {},
    "enableServiceLinks": True,
    "preemptionPolicy": "PreemptLowerPriority",
    "priority": 0,
    "serviceAccountName": "default",
}
_CONTAINER_DEFAULTS: Mapping[str, Json] = {
    "imagePullPolicy": "IfNotPresent",
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "resources": {},
}
_POD_MUTABLE = frozenset({"activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"})


def _defaulted_container(container: dict[str, Any]) -> dict[str, Any]:
    filled = {**_CONTAINER_DEFAULTS, **container}
    if "ports" in filled:
        filled["ports"] = [{"protocol": "TCP", **port} for port in filled["ports"]]
    return filled


def _defaulted_pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = {**_POD_DEFAULTS, **manifest.get("spec", {})}
    for name in ("containers", "initContainers"):
        if name in spec:
            spec[name] = [_defaulted_container(container) for container in spec[name]]
    status = manifest.get("status") or {}
    return {**manifest, "spec": spec, "status": {"phase": "Pending", "qosClass": "BestEffort", **status}}


def _defaulted_service(manifest: dict[str, Any], ordinal: int) -> dict[str, Any]:
    spec = {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", **manifest["spec"]}
    if "clusterIP" not in spec and spec["type"] != "ExternalName":
        spec["clusterIP"] = f"10.96.{ordinal // 250 % 250}.{ordinal % 250 + 1}"
    spec.setdefault("clusterIPs", [spec.get("clusterIP")])
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    spec["ports"] = [
        {"protocol": "TCP", "targetPort": port.get("port"), **port} for port in spec.get("ports", ()) if port
    ]
    if not spec["ports"]:
        del spec["ports"]
    return {**manifest, "spec": spec, "status": manifest.get("status") or {"loadBalancer": {}}}


def with_built_in_defaults(resource: Resource, manifest: dict[str, Any], ordinal: int) -> dict[str, Any]:
    """Return the manifest as the real server would store it; `ordinal` numbers the addresses it hands out."""
    if resource == PODS:
        return _defaulted_pod(manifest)
    if resource == SERVICES:
        return _defaulted_service(manifest, ordinal)
    return manifest


def _frozen_part(spec: Mapping[str, Any]) -> dict[str, Any]:
    part = {name: value for name, value in spec.items() if name not in _POD_MUTABLE and name != "nodeName"}
    for name in ("containers", "initContainers"):
        part[name] = [{k: v for k, v in container.items() if k != "image"} for container in spec.get(name, ())]
    return part


def _pod_refusal(old: Mapping[str, Any], new: Mapping[str, Any]) -> StatusError | None:
    if _frozen_part(old.get("spec", {})) == _frozen_part(new.get("spec", {})):
        return None
    cause = Cause(
        "FieldValueForbidden",
        "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
        "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        "spec",
    )
    return invalid(PODS, str(old["metadata"]["name"]), [cause])


def check_update(resource: Resource, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse an update of a built-in object that the real server would refuse."""
    refusal = _pod_refusal(old, new) if resource == PODS else None
    if refusal is not None:
        raise refusal
