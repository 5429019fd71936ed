"""How the bytes of pods, Services, ControllerRevisions, nodes and ModelInfers become the values that plans are made
from.

Owns what is kept of each object, and keeps little: a cached pod is a few hundred bytes more than its strings. Refuses
to judge, with one exception: a ModelInfer that cannot be carried out is kept with its `problem`, because its user
must be told. The trap: an exception here hides an object for ever, so nothing that somebody else may write can raise
one.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from matrixinfer.api import intstr, names
from matrixinfer.api.v1alpha1.modelinfer import (
    ModelInferSpec,
    ModelInferStatus,
    RollingUpdateConfiguration,
    RolloutStrategyType,
)
from matrixinfer.api.v1alpha1.modelinfer import Role as ApiRole
from matrixinfer.infer_controller import revisions
from matrixinfer.infer_controller.fleet import (
    HeadlessService,
    Infer,
    Pod,
    Removal,
    Role,
    StoredRevision,
    Template,
    UnitId,
)
from matrixinfer.infer_controller.render.pods import MAX_NAME_LENGTH, longest_name
from matrixinfer.kube.codec import Identity, Meta, Projection
from matrixinfer.kube.resource import Key, Manifest

__all__ = ["INFERS", "NODES", "PODS", "REVISIONS", "SERVICES", "Node"]

_intern = sys.intern
_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_NOWHERE: Final = UnitId(-1, "", -1)
_WAITING_ALIASES: Final[Mapping[str, str]] = {
    "ErrImagePull": "ImagePullBackOff",
    "ErrImageNeverPull": "ImagePullBackOff",
}
"""The kubelet alternates between these while nothing changes."""


class _Terminated(msgspec.Struct, rename="camel", gc=False):
    reason: str = ""
    exit_code: int = 0
    finished_at: datetime | None = None


class _Waiting(msgspec.Struct, gc=False):
    reason: str = ""


class _State(msgspec.Struct, gc=False):
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _Container(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    restart_count: int = 0
    state: _State = msgspec.field(default_factory=_State)
    last_state: _State = msgspec.field(default_factory=_State)


class _Condition(msgspec.Struct, rename="camel", gc=False):
    type: str = ""
    status: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class _PodStatus(msgspec.Struct, rename="camel", gc=False):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[_Condition] = msgspec.field(default_factory=list)
    container_statuses: list[_Container] = msgspec.field(default_factory=list)
    init_container_statuses: list[_Container] = msgspec.field(default_factory=list)


class _Port(msgspec.Struct, rename="camel", gc=False):
    container_port: int = 0
    name: str = ""


class _ContainerSpec(msgspec.Struct, gc=False):
    ports: list[_Port] = msgspec.field(default_factory=list)


class _InitContainerSpec(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    restart_policy: str = ""


class _PodSpec(msgspec.Struct, rename="camel", gc=False):
    node_name: str = ""
    init_containers: list[_InitContainerSpec] = msgspec.field(default_factory=list)
    containers: list[_ContainerSpec] = msgspec.field(default_factory=list)


class _Pod(msgspec.Struct, gc=False):
    metadata: Meta
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


_decode_pod = msgspec.json.Decoder(_Pod).decode


def _pod(raw: bytes) -> Pod:
    whole = _decode_pod(raw)
    meta, status = whole.metadata, whole.status
    ready = next((found for found in status.conditions if found.type == "Ready"), _Condition())
    scheduled = next((found for found in status.conditions if found.type == "PodScheduled"), _Condition())
    unit, index = _place(meta)
    waiting = _waiting(status)
    if sidecars := {found.name for found in whole.spec.init_containers if found.restart_policy == "Always"}:
        # The kubelet restarts a sidecar by itself, and the engine beside it is none the worse.
        status.init_container_statuses = [s for s in status.init_container_statuses if s.name not in sidecars]
    last = _last_exit(status)
    return Pod(
        name=meta.name,
        namespace=_intern(meta.namespace),
        uid=meta.uid,
        resource_version=meta.resource_version,
        owner_uid=_intern(_owner(meta)),
        infer=_intern(meta.labels.get(names.INFER_NAME, "")) if index >= 0 else "",
        unit=unit,
        index=index,
        revision=_intern(meta.labels.get(names.INFER_REVISION, "")),
        phase=_intern(status.phase),
        reason=_intern(status.reason),
        message=status.message,
        ready=ready.status == "True",
        ready_changed=ready.last_transition_time,
        created=meta.creation_timestamp,
        delete_by=meta.deletion_timestamp,
        restarts=_restarts(status),
        last_exit=last.finished_at if last else None,
        exit_reason=_intern(last.reason) if last else "",
        waiting=waiting,
        unscheduled=scheduled.message if scheduled.status == "False" else "",
        node=_intern(whole.spec.node_name),
        address=status.pod_ip,
        port=_http_port(whole.spec),
        deletion_cost=_number(meta.annotations.get(_DELETION_COST, "0"), 0),
        removal=Removal.read(meta.annotations),
    )


def _place(meta: Meta) -> tuple[UnitId, int]:
    """Return which unit a pod belongs to and its index in it; index -1 for a pod that is none of ours."""
    labels = meta.labels
    role = labels.get(names.INFER_ROLE, "")
    ordinal = _number(labels.get(names.INFER_GROUP_NAME, "").rpartition("-")[2], -1)
    replica = _number(labels.get(names.INFER_ROLE_ID, "").rpartition("-")[2], -1)
    index = _number(meta.name.rpartition("-")[2], -1)
    infer = labels.get(names.INFER_NAME, "")
    if min(ordinal, replica, index) < 0 or meta.name != names.pod_name(infer, ordinal, role, replica, index):
        return _NOWHERE, -1
    return UnitId(ordinal, _intern(role), replica), index


def _number(text: str, otherwise: int) -> int:
    try:
        return int(text)
    except ValueError:
        return otherwise


def _owner(meta: Meta) -> str:
    return next((owner.uid for owner in meta.owner_references if owner.controller), "")


def _http_port(spec: _PodSpec) -> int:
    ports = (port for container in spec.containers for port in container.ports)
    return next((port.container_port for port in ports if port.name == "http"), 0)


def _restarts(status: _PodStatus) -> int:
    return sum(found.restart_count for found in (*status.container_statuses, *status.init_container_statuses))


def _last_exit(status: _PodStatus) -> _Terminated | None:
    """Return the newest exit of a container that was meant to go on; an init container may end well once."""
    exits = [
        (ended.finished_at, ended)
        for containers, may_end in ((status.container_statuses, False), (status.init_container_statuses, True))
        for container in containers
        for ended in (container.state.terminated, container.last_state.terminated)
        if ended is not None and ended.finished_at is not None and not (may_end and ended.exit_code == 0)
    ]
    return max(exits, key=lambda found: found[0])[1] if exits else None


def _waiting(status: _PodStatus) -> str:
    reasons = (
        container.state.waiting.reason
        for container in (*status.init_container_statuses, *status.container_statuses)
        if container.state.waiting is not None
    )
    reason = next((found for found in reasons if found not in ("", "ContainerCreating", "PodInitializing")), "")
    return _intern(_WAITING_ALIASES.get(reason, reason))


PODS: Projection[Pod] = Projection(
    _pod,
    lambda pod: Identity(pod.key, pod.uid, pod.resource_version, pod.owner_uid, pod.is_terminating),
)
"""Pods."""


class _ServiceSpec(msgspec.Struct, rename="camel", gc=False):
    selector: dict[str, str] = msgspec.field(default_factory=dict)
    publish_not_ready_addresses: bool = False


class _Service(msgspec.Struct, gc=False):
    metadata: Meta
    spec: _ServiceSpec = msgspec.field(default_factory=_ServiceSpec)


_decode_service = msgspec.json.Decoder(_Service).decode


def _service(raw: bytes) -> HeadlessService:
    whole = _decode_service(raw)
    meta = whole.metadata
    return HeadlessService(
        meta.name,
        _intern(meta.namespace),
        meta.uid,
        meta.resource_version,
        _intern(_owner(meta)),
        _intern(meta.labels.get(names.INFER_NAME, "")),
        {_intern(key): _intern(value) for key, value in whole.spec.selector.items()},
        whole.spec.publish_not_ready_addresses,
        meta.deletion_timestamp is not None,
    )


SERVICES: Projection[HeadlessService] = Projection(
    _service,
    lambda found: Identity(found.key, found.uid, found.resource_version, found.owner_uid, found.is_deleting),
)
"""Services."""


class _Revision(msgspec.Struct, gc=False):
    metadata: Meta
    revision: int = 0
    data: Any = None


_decode_revision = msgspec.json.Decoder(_Revision).decode


def _revision(raw: bytes) -> StoredRevision:
    whole = _decode_revision(raw)
    meta = whole.metadata
    name = meta.labels.get(names.INFER_REVISION, "")
    return StoredRevision(
        meta.name,
        meta.namespace,
        meta.uid,
        meta.resource_version,
        _owner(meta),
        meta.labels.get(names.INFER_NAME, ""),
        name,
        whole.revision,
        revisions.parse(whole.data, name),
    )


REVISIONS: Projection[StoredRevision] = Projection(
    _revision, lambda found: Identity(found.key, found.uid, found.resource_version, found.owner_uid)
)
"""ControllerRevisions."""


class Node(msgspec.Struct, frozen=True, gc=False):
    """What we keep of a node. `since` is when its readiness last changed."""

    name: str
    uid: str
    resource_version: str
    ready: bool
    since: datetime | None


class _NodeStatus(msgspec.Struct, gc=False):
    conditions: list[_Condition] = msgspec.field(default_factory=list)


class _Node(msgspec.Struct, gc=False):
    metadata: Meta
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


_decode_node = msgspec.json.Decoder(_Node).decode


def _node(raw: bytes) -> Node:
    whole = _decode_node(raw)
    meta = whole.metadata
    ready = next((found for found in whole.status.conditions if found.type == "Ready"), _Condition())
    return Node(_intern(meta.name), meta.uid, meta.resource_version, ready.status == "True", ready.last_transition_time)


NODES: Projection[Node] = Projection(_node, lambda node: Identity(Key("", node.name), node.uid, node.resource_version))
"""Nodes."""


class _Bare(msgspec.Struct, gc=False):
    metadata: Meta
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: dict[str, Any] = msgspec.field(default_factory=dict)


_decode_bare = msgspec.json.Decoder(_Bare).decode


def _infer(raw: bytes) -> Infer:
    bare = _decode_bare(raw)
    try:
        infer = _readable(ModelInferSpec.model_validate_json(bytes(bare.spec)), bare)
    except ValidationError as refused:
        return _unreadable(bare, refused)
    return replace(infer, problem=_problem(infer))


def _readable(spec: ModelInferSpec, bare: _Bare) -> Infer:
    meta, status = bare.metadata, _status(bare.status)
    strategy = spec.rollout_strategy
    pace = (strategy.rolling_update_configuration if strategy else None) or RollingUpdateConfiguration()
    gang = spec.template.gang_schedule
    spread = [constraint.to_manifest() for constraint in spec.topology_spread_constraints]
    return Infer(
        key=Key(meta.namespace, meta.name),
        uid=meta.uid,
        resource_version=meta.resource_version,
        generation=meta.generation,
        template=revisions.template_of(
            [_role(role) for role in spec.template.roles], spec.scheduler_name or "", spread
        ),
        replicas=spec.replicas,
        is_deleting=meta.deletion_timestamp is not None,
        restart_grace=timedelta(seconds=spec.template.restart_grace_period_seconds),
        policy=spec.recovery_policy,
        strategy=strategy.type if strategy else RolloutStrategyType.INFER_GROUP_ROLLING_UPDATE,
        max_unavailable=pace.max_unavailable,
        max_surge=pace.max_surge,
        partition=pace.partition,
        backoff_limit=spec.backoff_limit,
        wants_gang=gang is not None and gang.enable,
        current_revision=status.current_revision or "",
        conditions=status.conditions,
        recoveries=status.recoveries,
        status=bare.status,
    )


def _role(role: ApiRole) -> Role:
    worker = role.worker_template.to_manifest() if role.worker_template and role.worker_replicas else None
    return Role(role.name, role.replicas, role.worker_replicas, role.entry_template.to_manifest(), worker)


def _unreadable(bare: _Bare, refused: ValidationError) -> Infer:
    meta = bare.metadata
    first = refused.errors(include_url=False, include_context=False)[0]
    where = ".".join(["spec", *(str(part) for part in first["loc"])])
    return Infer(
        key=Key(meta.namespace, meta.name),
        uid=meta.uid,
        resource_version=meta.resource_version,
        generation=meta.generation,
        template=Template("", (), {}),
        is_deleting=meta.deletion_timestamp is not None,
        conditions=_status(bare.status).conditions,
        status=bare.status,
        problem=f"{where}: {first['msg']}; correct the field",
    )


def _status(status: Manifest) -> ModelInferStatus:
    """Return what we wrote; a status that somebody else spoilt is as good as none and is written anew."""
    try:
        return ModelInferStatus.model_validate(status)
    except ValidationError:
        return ModelInferStatus()


def _problem(infer: Infer) -> str:
    """Return why pods cannot be made from the spec; what is merely unwise is admission's business."""
    for role in infer.template.roles:
        if role.name != role.name.lower():
            return f"spec.template.roles: {role.name!r} becomes part of pod names; write it in lower case"
        if role.worker_replicas and role.worker is None:
            return f"spec.template.roles: {role.name!r} has workerReplicas but no workerTemplate; add one"
    name = longest_name(infer, infer.replicas)
    if len(name) > MAX_NAME_LENGTH:
        return f"metadata.name: the pod name {name!r} has more than {MAX_NAME_LENGTH} characters; shorten the name"
    for field, value in (("maxUnavailable", infer.max_unavailable), ("maxSurge", infer.max_surge)):
        try:
            intstr.resolve(value, infer.replicas, round_up=True)
        except ValueError as refused:
            return f"spec.rolloutStrategy.rollingUpdateConfiguration.{field}: {refused}"
    return ""


INFERS: Projection[Infer] = Projection(
    _infer, lambda infer: Identity(infer.key, infer.uid, infer.resource_version, "", infer.is_deleting)
)
"""ModelInfers."""
