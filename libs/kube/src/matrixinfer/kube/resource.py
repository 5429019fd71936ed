"""Names of things in the API server: resources, keys and the manifest type.

Owns no I/O and knows no kind of ours: a controller hands its `Resource` values in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

__all__ = [
    "CLUSTER_ROLES",
    "CLUSTER_ROLE_BINDINGS",
    "CONFIG_MAPS",
    "CONTROLLER_REVISIONS",
    "CUSTOM_RESOURCE_DEFINITIONS",
    "DEPLOYMENTS",
    "ENDPOINT_SLICES",
    "EVENTS",
    "LEASES",
    "MUTATING_WEBHOOKS",
    "NAMESPACES",
    "NODES",
    "PERSISTENT_VOLUME_CLAIMS",
    "PODS",
    "ROLES",
    "ROLE_BINDINGS",
    "SECRETS",
    "SERVICES",
    "SERVICE_ACCOUNTS",
    "VALIDATING_WEBHOOKS",
    "Json",
    "Key",
    "KindLike",
    "Manifest",
    "Resource",
    "controller_uid",
    "key_of",
    "owner_reference",
]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A decoded JSON value."""

Manifest: TypeAlias = Mapping[str, Json]
"""One Kubernetes object as decoded JSON. Read-only by convention: planners build new ones, never edit one."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Where an object lives; `namespace` is empty for a cluster-scoped one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """`namespace/name`, or the bare name of a cluster-scoped object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class KindLike(Protocol):
    """Anything that names a kind; a frozen dataclass of the kind's owner fits."""

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        ...

    @property
    def version(self) -> str:
        """Version, e.g. `v1alpha1`."""
        ...

    @property
    def plural(self) -> str:
        """Lower-case plural, as in URLs."""
        ...

    @property
    def kind(self) -> str:
        """CamelCase kind, as in manifests."""
        ...

    @property
    def namespaced(self) -> bool:
        """False for a cluster-scoped kind."""
        ...


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the API server: enough to build every URL and to fill `apiVersion` and `kind`."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @staticmethod
    def of(kind: KindLike) -> "Resource":
        """Return the resource of a kind that is declared elsewhere."""
        return Resource(kind.group, kind.version, kind.plural, kind.kind, kind.namespaced)

    @property
    def api_version(self) -> str:
        """`group/version`, or the bare version for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group and version, e.g. `/apis/apps/v1`."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def collection_path(self, namespace: str | None = None) -> str:
        """Path that lists the resource; `None` spans all namespaces."""
        if namespace is None or not self.namespaced:
            return f"{self.root}/{self.plural}"
        return f"{self.root}/namespaces/{namespace}/{self.plural}"

    def path(self, key: Key, subresource: str = "") -> str:
        """Path of one object, or of its subresource (`status`, `scale`)."""
        base = f"{self.collection_path(key.namespace if self.namespaced else None)}/{key.name}"
        return f"{base}/{subresource}" if subresource else base


PODS: Final = Resource("", "v1", "pods", "Pod")
SERVICES: Final = Resource("", "v1", "services", "Service")
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
PERSISTENT_VOLUME_CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS: Final = Resource("", "v1", "events", "Event")
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
CONTROLLER_REVISIONS: Final = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
_RBAC: Final = "rbac.authorization.k8s.io"
ROLES: Final = Resource(_RBAC, "v1", "roles", "Role")
ROLE_BINDINGS: Final = Resource(_RBAC, "v1", "rolebindings", "RoleBinding")
CLUSTER_ROLES: Final = Resource(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS: Final = Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
CUSTOM_RESOURCE_DEFINITIONS: Final = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
_ADMISSION: Final = "admissionregistration.k8s.io"
MUTATING_WEBHOOKS: Final = Resource(
    _ADMISSION, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", namespaced=False
)
VALIDATING_WEBHOOKS: Final = Resource(
    _ADMISSION, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", namespaced=False
)


def key_of(manifest: Mapping[str, Any]) -> Key:
    """Return where the manifest says that it lives."""
    metadata = manifest["metadata"]
    return Key(metadata.get("namespace") or "", metadata["name"])


def controller_uid(manifest: Mapping[str, Any]) -> str:
    """Return the uid of the controller owner reference, or an empty string."""
    references = manifest.get("metadata", {}).get("ownerReferences") or ()
    return next((str(r["uid"]) for r in references if r.get("controller")), "")


def owner_reference(resource: Resource, name: str, uid: str, *, block_deletion: bool = True) -> dict[str, Json]:
    """Return the controller owner reference that makes an object a child of `name`."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": block_deletion,
    }
