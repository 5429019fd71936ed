"""How the bytes of one object become the value that a store holds.

Owns decoding and the few fields every store needs (`Identity`). Refuses validation: an object comes from the API
server, which has checked it. The trap is memory: a pod costs about 40 KiB as a dict and about 3 as `PodView`, so
anything that caches pods should project.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from matrixinfer.kube.resource import Key, Manifest, controller_uid, key_of

__all__ = [
    "MANIFESTS",
    "PODS_SLIM",
    "ContainerView",
    "HasMetadata",
    "Identity",
    "Meta",
    "OwnerView",
    "PodView",
    "Projection",
    "struct",
    "typed",
]

T = TypeVar("T")
_intern = sys.intern


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an object is: what stores, expectations and ownership checks need to know of it."""

    key: Key
    uid: str
    resource_version: str
    controller_uid: str = ""
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Projection(Generic[T]):
    """`decode` makes the value from the object's JSON bytes, `identify` reads its identity back from the value.

    `decode` may raise any exception for an object it does not understand; the reflector then keeps what it had.
    """

    decode: Callable[[bytes], T]
    identify: Callable[[T], Identity]


class OwnerView(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One owner reference."""

    uid: str
    kind: str = ""
    name: str = ""
    controller: bool = False


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """`metadata` of any object, for projections of your own: `class MyView(msgspec.Struct): metadata: Meta`."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    owner_references: tuple[OwnerView, ...] = ()
    finalizers: tuple[str, ...] = ()
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None


class ContainerView(msgspec.Struct, frozen=True, gc=False):
    """What a pod's status says about one container.

    `terminated_reason` and `exit_code` are those of the present state; `last_*` of the run before it.
    """

    name: str
    ready: bool = False
    restart_count: int = 0
    running: bool = False
    waiting_reason: str = ""
    waiting_message: str = ""
    terminated_reason: str = ""
    terminated_message: str = ""
    exit_code: int | None = None
    last_terminated_reason: str = ""
    last_exit_code: int | None = None
    last_finished_at: datetime | None = None


class PodView(msgspec.Struct, frozen=True):
    """The slim projection of a pod: enough for controllers and routing, about 3 KiB each."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    owners: tuple[OwnerView, ...]
    created: datetime | None
    deletion_timestamp: datetime | None
    deletion_grace_seconds: int | None
    phase: str
    reason: str
    message: str
    ready: bool
    ready_since: datetime | None
    scheduled: bool
    unscheduled_message: str
    pod_ip: str
    node_name: str
    start_time: datetime | None
    containers: tuple[ContainerView, ...]
    init_containers: tuple[ContainerView, ...]

    @property
    def key(self) -> Key:
        """Where the pod lives."""
        return Key(self.namespace, self.name)

    @property
    def deleting(self) -> bool:
        """True once a deletion was asked for."""
        return self.deletion_timestamp is not None

    @property
    def owner_uids(self) -> tuple[str, ...]:
        """The uid of the controller owner, as an index function wants it: one or none."""
        return tuple(owner.uid for owner in self.owners if owner.controller)

    @property
    def restart_count(self) -> int:
        """Restarts of all containers, init containers included."""
        return sum(c.restart_count for c in self.containers) + sum(c.restart_count for c in self.init_containers)


class HasMetadata(Protocol):
    """A typed object of any library: `metadata` carries name, namespace, uid, resource_version."""

    @property
    def metadata(self) -> Any:
        """The object's metadata, snake_case attributes."""
        ...


M = TypeVar("M", bound=HasMetadata)
S = TypeVar("S", bound=msgspec.Struct)


def typed(decode: Callable[[bytes], M]) -> Projection[M]:
    """Return the projection for objects with a `.metadata` of snake_case attributes.

    Example: `typed(Model.model_validate_json)` for a pydantic type.
    """
    return Projection(decode, _identity_of_typed)


def struct(type_: type[S]) -> Projection[S]:
    """Return the projection into a msgspec struct whose field `metadata` is a `Meta`."""
    return Projection(msgspec.json.Decoder(type_).decode, _identity_of_struct)


def _identity_of_struct(value: Any) -> Identity:
    return _identity_of_typed(value)


def _identity_of_typed(value: HasMetadata) -> Identity:
    meta = value.metadata
    owners = getattr(meta, "owner_references", None) or ()
    return Identity(
        Key(meta.namespace or "", meta.name or ""),
        meta.uid or "",
        meta.resource_version or "",
        next((owner.uid for owner in owners if owner.controller), ""),
        getattr(meta, "deletion_timestamp", None) is not None,
    )


_decode_manifest: Callable[[bytes], Manifest] = msgspec.json.Decoder(dict[str, Any]).decode


def _manifest(raw: bytes) -> Manifest:
    manifest: Any = _decode_manifest(raw)
    manifest["metadata"].pop("managedFields", None)
    decoded: Manifest = manifest
    return decoded


def _identity_of_manifest(manifest: Manifest) -> Identity:
    metadata: Any = manifest["metadata"]
    return Identity(
        key_of(manifest),
        metadata.get("uid", ""),
        metadata.get("resourceVersion", ""),
        controller_uid(manifest),
        "deletionTimestamp" in metadata,
    )


MANIFESTS: Projection[Manifest] = Projection(_manifest, _identity_of_manifest)
"""Objects as decoded JSON, without `managedFields`."""


class _Terminated(msgspec.Struct, rename="camel", gc=False):
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    finished_at: datetime | None = None


class _Waiting(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""


class _State(msgspec.Struct, gc=False):
    running: dict[str, Any] | None = None
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: _State = msgspec.field(default_factory=_State)
    last_state: _State = msgspec.field(default_factory=_State)


class _Condition(msgspec.Struct, rename="camel", gc=False):
    type: str = ""
    status: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class _PodStatus(msgspec.Struct, rename={"pod_ip": "podIP"}, gc=False):
    phase: str = ""
    reason: str = ""
    message: str = ""
    pod_ip: str = ""
    start_time: datetime | None = msgspec.field(default=None, name="startTime")
    conditions: list[_Condition] = msgspec.field(default_factory=list)
    containers: list[_ContainerStatus] = msgspec.field(default_factory=list, name="containerStatuses")
    init_containers: list[_ContainerStatus] = msgspec.field(default_factory=list, name="initContainerStatuses")


class _PodSpec(msgspec.Struct, rename="camel", gc=False):
    node_name: str = ""


class _Pod(msgspec.Struct, gc=False):
    metadata: Meta
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


_decode_pod = msgspec.json.Decoder(_Pod).decode
_NO_CONDITION = _Condition()
_EMPTY: Mapping[str, str] = {}


def _container(status: _ContainerStatus) -> ContainerView:
    waiting, ended, last = status.state.waiting, status.state.terminated, status.last_state.terminated
    return ContainerView(
        _intern(status.name),
        status.ready,
        status.restart_count,
        status.state.running is not None,
        _intern(waiting.reason) if waiting else "",
        waiting.message if waiting else "",
        _intern(ended.reason) if ended else "",
        ended.message if ended else "",
        ended.exit_code if ended else None,
        _intern(last.reason) if last else "",
        last.exit_code if last else None,
        last.finished_at if last else None,
    )


def _interned(labels: dict[str, str]) -> Mapping[str, str]:
    # Keys and values repeat over thousands of pods; one shared copy of each is what makes a cached pod small.
    return {_intern(k): _intern(v) for k, v in labels.items()} if labels else _EMPTY


def _pod_view(raw: bytes) -> PodView:
    pod = _decode_pod(raw)
    meta, status = pod.metadata, pod.status
    ready = next((c for c in status.conditions if c.type == "Ready"), _NO_CONDITION)
    scheduled = next((c for c in status.conditions if c.type == "PodScheduled"), _NO_CONDITION)
    is_ready = ready.status == "True"
    return PodView(
        meta.name,
        _intern(meta.namespace),
        meta.uid,
        meta.resource_version,
        _interned(meta.labels),
        _interned(meta.annotations),
        tuple(OwnerView(_intern(o.uid), _intern(o.kind), _intern(o.name), o.controller) for o in meta.owner_references),
        meta.creation_timestamp,
        meta.deletion_timestamp,
        meta.deletion_grace_period_seconds,
        _intern(status.phase),
        _intern(status.reason),
        status.message,
        is_ready,
        ready.last_transition_time if is_ready else None,
        scheduled.status == "True" or bool(pod.spec.node_name),
        scheduled.message if scheduled.status == "False" else "",
        status.pod_ip,
        _intern(pod.spec.node_name),
        status.start_time,
        tuple(_container(c) for c in status.containers),
        tuple(_container(c) for c in status.init_containers),
    )


def _identity_of_pod(pod: PodView) -> Identity:
    return Identity(
        Key(pod.namespace, pod.name),
        pod.uid,
        pod.resource_version,
        next((owner.uid for owner in pod.owners if owner.controller), ""),
        pod.deletion_timestamp is not None,
    )


PODS_SLIM: Projection[PodView] = Projection(_pod_view, _identity_of_pod)
"""Pods as `PodView`."""
