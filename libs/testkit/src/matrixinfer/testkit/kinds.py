"""The kinds that the in-memory API server knows from the start, and how kinds are described to it.

Built-in kinds carry only what matters to controllers: which lists merge by key, a few defaults, subresources. Custom
kinds come complete from their CRD files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from matrixinfer.kube.resource import (
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    CUSTOM_RESOURCE_DEFINITIONS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    EVENTS,
    LEASES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    VALIDATING_WEBHOOKS,
    Resource,
)
from matrixinfer.testkit.structural import Schema

__all__ = [
    "BUILT_IN",
    "POD_DISRUPTION_BUDGETS",
    "SCHEDULER_PLUGINS_POD_GROUPS",
    "STATEFUL_SETS",
    "VOLCANO_POD_GROUPS",
    "KindSpec",
    "ScalePaths",
    "crds_in",
    "kind_of_crd",
]

STATEFUL_SETS: Final = Resource("apps", "v1", "statefulsets", "StatefulSet")
POD_DISRUPTION_BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
VOLCANO_POD_GROUPS: Final = Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup")
SCHEDULER_PLUGINS_POD_GROUPS: Final = Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup")


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where the scale subresource finds its numbers (dotted paths without the leading dot)."""

    spec_replicas: str
    status_replicas: str
    label_selector: str = ""


@dataclass(frozen=True, slots=True)
class KindSpec:
    """One kind as the server treats it."""

    resource: Resource
    schema: Schema = field(default_factory=dict)
    status: bool = False
    scale: ScalePaths | None = None
    is_custom: bool = False
    """Validated, defaulted and pruned by `schema`; otherwise `schema` only says how lists merge."""
    has_generation: bool = False
    immutable: Sequence[str] = ()
    """Top-level members that never change after the create."""
    short_names: Sequence[str] = ()
    categories: Sequence[str] = ()


def _list_map(*keys: str, **properties: Schema) -> Schema:
    return {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": list(keys),
        "items": {"properties": {**{key: {} for key in keys}, **properties}},
    }


def _object(**properties: Schema) -> Schema:
    return {"properties": properties}


METADATA: Final[Schema] = {
    "properties": {
        "labels": {"additionalProperties": {}},
        "annotations": {"additionalProperties": {}},
        "finalizers": {"x-kubernetes-list-type": "set"},
        "ownerReferences": _list_map("uid"),
        **{
            name: {}
            for name in (
                "name",
                "namespace",
                "uid",
                "resourceVersion",
                "generation",
                "creationTimestamp",
                "generateName",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "managedFields",
            )
        },
    }
}
_CONDITIONS: Final = _list_map("type")
_PORT_KEYS: Final[Schema] = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
    "items": {"properties": {"containerPort": {}, "protocol": {"default": "TCP"}}},
}
_CONTAINERS: Final = _list_map(
    "name",
    env=_list_map("name"),
    ports=_PORT_KEYS,
    volumeMounts=_list_map("mountPath"),
    volumeDevices=_list_map("devicePath"),
)
_POD_SPEC: Final = _object(
    containers=_CONTAINERS,
    initContainers=_CONTAINERS,
    volumes=_list_map("name"),
    imagePullSecrets=_list_map("name"),
    hostAliases=_list_map("ip"),
    readinessGates={},
    tolerations={},
    nodeSelector={"x-kubernetes-map-type": "atomic"},
    topologySpreadConstraints=_list_map("topologyKey", "whenUnsatisfiable"),
    schedulingGates=_list_map("name"),
)
_POD_TEMPLATE: Final = _object(metadata=METADATA, spec=_POD_SPEC)
_SERVICE_SPEC: Final = _object(
    ports={
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["port", "protocol"],
        "items": {"properties": {"port": {}, "protocol": {"default": "TCP"}}},
    },
    selector={"x-kubernetes-map-type": "atomic"},
)
_SELECTOR: Final[Schema] = {"x-kubernetes-map-type": "atomic"}


def _schema(**properties: Schema) -> Schema:
    return _object(apiVersion={}, kind={}, metadata=METADATA, **properties)


_WORKLOAD: Final = _schema(
    spec=_object(selector=_SELECTOR, template=_POD_TEMPLATE), status=_object(conditions=_CONDITIONS)
)
_REPLICAS: Final = ScalePaths("spec.replicas", "status.replicas", "status.selector")

BUILT_IN: Final[tuple[KindSpec, ...]] = (
    KindSpec(NAMESPACES, _schema(spec=_object(), status=_object(conditions=_CONDITIONS)), status=True),
    KindSpec(NODES, _schema(spec=_object(), status=_object(conditions=_CONDITIONS)), status=True),
    KindSpec(
        PODS,
        _schema(
            spec=_POD_SPEC,
            status=_object(conditions=_CONDITIONS, podIPs=_list_map("ip"), hostIPs={}, containerStatuses={}),
        ),
        status=True,
        has_generation=True,
    ),
    KindSpec(SERVICES, _schema(spec=_SERVICE_SPEC, status=_object(conditions=_CONDITIONS)), status=True),
    KindSpec(CONFIG_MAPS, _schema(data={"additionalProperties": {}})),
    KindSpec(SECRETS, _schema(data={"additionalProperties": {}}), immutable=("type",)),
    KindSpec(SERVICE_ACCOUNTS, _schema(imagePullSecrets=_list_map("name"))),
    KindSpec(PERSISTENT_VOLUME_CLAIMS, _schema(spec=_object(), status=_object(conditions=_CONDITIONS)), status=True),
    KindSpec(EVENTS, _schema()),
    KindSpec(DEPLOYMENTS, _WORKLOAD, status=True, scale=_REPLICAS, has_generation=True),
    KindSpec(STATEFUL_SETS, _WORKLOAD, status=True, scale=_REPLICAS, has_generation=True),
    KindSpec(CONTROLLER_REVISIONS, _schema(), immutable=("data",)),
    KindSpec(LEASES, _schema(spec=_object())),
    KindSpec(ENDPOINT_SLICES, _schema()),
    KindSpec(
        POD_DISRUPTION_BUDGETS,
        _schema(spec=_object(selector=_SELECTOR), status=_object(conditions=_CONDITIONS)),
        status=True,
    ),
    KindSpec(ROLES, _schema()),
    KindSpec(ROLE_BINDINGS, _schema(), immutable=("roleRef",)),
    KindSpec(CLUSTER_ROLES, _schema()),
    KindSpec(CLUSTER_ROLE_BINDINGS, _schema(), immutable=("roleRef",)),
    KindSpec(MUTATING_WEBHOOKS, _schema(webhooks=_list_map("name")), has_generation=True),
    KindSpec(VALIDATING_WEBHOOKS, _schema(webhooks=_list_map("name")), has_generation=True),
    KindSpec(
        CUSTOM_RESOURCE_DEFINITIONS,
        # One atom: a schema has thousands of fields, and nobody owns them one by one.
        _schema(spec={"x-kubernetes-map-type": "atomic"}, status=_object(conditions=_CONDITIONS)),
        status=True,
        has_generation=True,
    ),
)


def _with_metadata(schema: Mapping[str, Any]) -> Schema:
    properties = {**schema.get("properties", {}), "apiVersion": {}, "kind": {}, "metadata": METADATA}
    return {**schema, "properties": properties}


def kind_of_crd(crd: Mapping[str, Any]) -> KindSpec:
    """Return the kind that a CustomResourceDefinition describes, in its storage version."""
    spec = crd["spec"]
    version = next(entry for entry in spec["versions"] if entry.get("storage"))
    subresources = version.get("subresources", {})
    scale = subresources.get("scale")
    names = spec["names"]
    return KindSpec(
        resource=Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
        ),
        schema=_with_metadata(version["schema"]["openAPIV3Schema"]),
        status="status" in subresources,
        scale=scale
        and ScalePaths(
            spec_replicas=scale["specReplicasPath"].lstrip("."),
            status_replicas=scale["statusReplicasPath"].lstrip("."),
            label_selector=scale.get("labelSelectorPath", "").lstrip("."),
        ),
        is_custom=True,
        has_generation=True,
        short_names=tuple(names.get("shortNames", ())),
        categories=tuple(names.get("categories", ())),
    )


def crds_in(file: Path) -> Sequence[tuple[Mapping[str, Any], KindSpec]]:
    """Return the CRDs in a YAML file with the kinds they describe; read again only when the file has changed."""
    stat = file.stat()
    return _crds_in(file, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _crds_in(file: Path, _changed: int) -> Sequence[tuple[Mapping[str, Any], KindSpec]]:
    documents = yaml.load_all(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    crds = [d for d in documents if isinstance(d, dict) and d.get("kind") == "CustomResourceDefinition"]
    return [(crd, kind_of_crd(crd)) for crd in crds]
