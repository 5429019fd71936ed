"""The headless Service of a role replica that has workers: what makes its entry pod's address resolve.

Selects the entry pod alone, ready or not, because workers look for it before it can be ready. The trap: a selector
without the `entry` label resolves to workers too.
"""

from collections.abc import Mapping

from matrixinfer.api import names
from matrixinfer.infer_controller.fleet import HeadlessService, Infer, UnitId
from matrixinfer.kube.resource import SERVICES, Json, Manifest

__all__ = ["headless_service", "is_as_rendered", "selector_of", "service_name"]


def service_name(infer: Infer, unit: UnitId) -> str:
    """Return the name: that of the entry pod."""
    return names.entry_pod_name(infer.key.name, unit.ordinal, unit.role, unit.replica)


def selector_of(infer: Infer, unit: UnitId) -> dict[str, Json]:
    """Return the labels of exactly one pod of this ModelInfer: the unit's entry."""
    return {
        names.INFER_NAME: infer.key.name,
        names.INFER_GROUP_NAME: names.group_name(infer.key.name, unit.ordinal),
        names.INFER_ROLE: unit.role,
        names.INFER_ROLE_ID: names.role_id(unit.role, unit.replica),
        names.INFER_ENTRY: "true",
    }


def headless_service(infer: Infer, unit: UnitId, owner: Mapping[str, Json]) -> Manifest:
    """Return the Service of one unit."""
    selector = selector_of(infer, unit)
    labels = {key: value for key, value in selector.items() if key != names.INFER_ENTRY}
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": {
            "name": service_name(infer, unit),
            "namespace": infer.key.namespace,
            "labels": {**labels, names.INFER_UID: infer.uid},
            "ownerReferences": [dict(owner)],
        },
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector},
    }


def is_as_rendered(service: HeadlessService, infer: Infer, unit: UnitId) -> bool:
    """True unless somebody changed what makes the address resolve."""
    return service.publishes_not_ready and dict(service.selector) == selector_of(infer, unit)
