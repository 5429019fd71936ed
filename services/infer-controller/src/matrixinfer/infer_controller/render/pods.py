"""One pod from a template: labels, names, environment and placement that make it a member of its unit.

Owns what we add to a user's template, and adds as little as possible. Our labels and environment win over the user's,
because selectors and engines depend on them. The trap: names and label values must stay below 64 characters, and the
ordinal is part of them.
"""

from collections.abc import Mapping
from typing import Any, Final

from matrixinfer.api import names
from matrixinfer.infer_controller.fleet import Infer, JsonObject, Role, Template, UnitId
from matrixinfer.infer_controller.gang import scheduler_of
from matrixinfer.kube.resource import PODS, Json, Manifest

__all__ = ["MAX_NAME_LENGTH", "longest_name", "pod"]

MAX_NAME_LENGTH: Final = 63
"""Names become label values and host names."""

_INJECTED: Final = frozenset({names.ENV_ENTRY_ADDRESS, names.ENV_WORKER_INDEX, names.ENV_GROUP_SIZE})


def longest_name(infer: Infer, groups: int) -> str:
    """Return the longest pod name that this many groups need."""
    found = (
        names.pod_name(infer.key.name, max(groups - 1, 0), role.name, max(role.replicas - 1, 0), role.worker_replicas)
        for role in infer.template.roles
    )
    return max(found, key=len, default=infer.key.name)


def pod(infer: Infer, template: Template, role: Role, unit: UnitId, index: int, owner: Mapping[str, Json]) -> Manifest:
    """Return the pod `index` of a unit: 0 is the entry, the others are workers."""
    source = role.entry if index == 0 or role.worker is None else role.worker
    metadata: JsonObject = source.get("metadata") or {}
    name = names.pod_name(infer.key.name, unit.ordinal, unit.role, unit.replica, index)
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": {
            "name": name,
            "namespace": infer.key.namespace,
            "labels": {**_allowed(metadata.get("labels")), **_labels(infer, template, unit, index)},
            "annotations": _allowed(metadata.get("annotations")),
            "ownerReferences": [dict(owner)],
        },
        "spec": _spec(source, infer, template, role, unit, index),
    }


def _labels(infer: Infer, template: Template, unit: UnitId, index: int) -> dict[str, str]:
    labels = {
        names.INFER_NAME: infer.key.name,
        names.INFER_GROUP_NAME: names.group_name(infer.key.name, unit.ordinal),
        names.INFER_ROLE: unit.role,
        names.INFER_ROLE_ID: names.role_id(unit.role, unit.replica),
        names.INFER_REVISION: template.revision,
        names.INFER_UID: infer.uid,
    }
    return {**labels, names.INFER_ENTRY: "true"} if index == 0 else labels


def _allowed(given: Mapping[str, str] | None) -> dict[str, Json]:
    return {key: value for key, value in (given or {}).items() if not key.startswith(names.INFER_PREFIX)}


def _spec(source: JsonObject, infer: Infer, template: Template, role: Role, unit: UnitId, index: int) -> dict[str, Any]:
    # The template is shared by every pod of a revision: what is added goes into new dicts and lists on the way down.
    spec: dict[str, Any] = dict(source.get("spec") or {})
    if index == 0:
        entry = names.entry_pod_name(infer.key.name, unit.ordinal, unit.role, unit.replica)
        spec |= {"hostname": entry, "subdomain": entry}
    added = _environment(infer, role, unit, index)
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [_with_environment(container, added) for container in spec[kind]]
    scheduler = scheduler_of(template)
    if scheduler and not spec.get("schedulerName"):
        spec["schedulerName"] = scheduler
    if template.spread:
        spread = [_constraint(constraint, infer, unit) for constraint in template.spread]
        spec["topologySpreadConstraints"] = [*(spec.get("topologySpreadConstraints") or ()), *spread]
    return spec


def _environment(infer: Infer, role: Role, unit: UnitId, index: int) -> list[dict[str, Any]]:
    address: dict[str, Any] = {"name": names.ENV_ENTRY_ADDRESS}
    if role.worker_replicas > 0:
        entry = names.entry_pod_name(infer.key.name, unit.ordinal, unit.role, unit.replica)
        address["value"] = f"{entry}.{entry}.{infer.key.namespace}"
    else:
        # No headless Service is made for a pod that nobody has to find; its own address is always right.
        address["valueFrom"] = {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}
    return [
        address,
        {"name": names.ENV_WORKER_INDEX, "value": str(index)},
        {"name": names.ENV_GROUP_SIZE, "value": str(role.size)},
    ]


def _with_environment(container: JsonObject, added: list[dict[str, Any]]) -> dict[str, Any]:
    own = [variable for variable in container.get("env") or () if variable.get("name") not in _INJECTED]
    return {**container, "env": [*own, *added]}


def _constraint(constraint: JsonObject, infer: Infer, unit: UnitId) -> dict[str, Any]:
    selector = {"matchLabels": {names.INFER_NAME: infer.key.name, names.INFER_ROLE: unit.role}}
    defaults = {"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
    return {**defaults, **constraint}
