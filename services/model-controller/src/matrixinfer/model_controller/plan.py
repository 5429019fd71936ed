"""Decides the next step of one Model: what is made, corrected and removed, and what is said about it.

Pure. Waves: what pods need first (access, versions), then the pods, then what sends requests to them; removal last.
Each pass looks at everything; nothing is remembered between passes.

Traps: the replicas of a ModelInfer belong to whoever scales it, so they are never applied, only corrected through
the scale subresource when they leave the Model's bounds. The name of a ModelRoute cannot be changed, so a route with
another name is deleted, and made again by the pass that sees it gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from matrixinfer.api.conditions import is_true
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import Model, ModelBackend
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.api.v1alpha1.validation import validate
from matrixinfer.kube.plan import Apply, Delete, EventType, Note, Plan, Scale, Step, WriteStatus
from matrixinfer.kube.resource import Key, Manifest, Resource, key_of
from matrixinfer.model_controller.desired import Child, Desired, desired
from matrixinfer.model_controller.drift import has_drifted
from matrixinfer.model_controller.observe import Seen
from matrixinfer.model_controller.render.download import access
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.resources import (
    BINDINGS,
    CHILDREN,
    INFERS,
    MODELS,
    POLICIES,
    ROLE_BINDINGS,
    ROUTES,
    SERVERS,
    SERVICE_ACCOUNTS,
    VERSIONS,
)
from matrixinfer.model_controller.status import (
    BackendView,
    Claim,
    backend_views,
    comparable,
    download_fault,
    model_status,
    version_current,
    version_status,
)
from matrixinfer.model_controller.versions import expendable, version_manifest

__all__ = ["plan", "with_failure"]

_WAVES: tuple[tuple[Resource, ...], ...] = ((INFERS, SERVERS, POLICIES), (BINDINGS, ROUTES))


def plan(seen: Seen, environment: RenderEnvironment, now: datetime) -> Plan:
    """Return everything that one pass wants for a Model."""
    metadata: Any = seen.model["metadata"]
    if metadata.get("deletionTimestamp"):
        return Plan(why="the Model is being deleted; its children go by garbage collection")
    faults = validate({name: value for name, value in seen.model.items() if name != "status"})
    if faults:
        message = "; ".join(str(fault) for fault in faults)
        return _unparsed(seen, Claim("Failed", True, "InvalidSpec", message), now)
    model = Model.model_validate(seen.model)
    try:
        wanted = desired(model, seen.versions, environment)
    except RenderError as refusal:
        return _refused(seen, model, Claim("Failed", True, refusal.reason, refusal.message), now)
    return _carried_out(seen, model, wanted, now)


def with_failure(seen: Seen, made: Plan, reason: str, message: str, now: datetime) -> Sequence[WriteStatus]:
    """Return the status of a plan of which a step was refused by the API server."""
    others = [write for write in made.status if write.resource != MODELS]
    model = _readable(seen.model)
    if model is None:
        return made.status
    claim = Claim("Failed", True, reason, message)
    views = backend_views(seen, model, None)
    return [*others, _write_model(seen, model, views, _still_active(seen), claim, complete=False, now=now)]


def _carried_out(seen: Seen, model: Model, wanted: Desired, now: datetime) -> Plan:
    ready = [*_access_steps(seen, model), *_version_steps(model, wanted)]
    waves: list[list[Step]] = [ready]
    waves += [
        [step for child in wanted.children if child.resource in wave for step in _child_steps(seen, child)]
        for wave in _WAVES
    ]
    waves.append(_scale_steps(seen, model))
    spare = _expendable(seen, model, wanted)
    waves.append([*_unwanted(seen, wanted), *spare])
    views = backend_views(seen, model, wanted)
    active = _active_versions(seen, views)
    complete = all((child.resource, child.name) in seen.children for child in wanted.children)
    status = _write_model(seen, model, views, active, None, complete=complete, now=now)
    going = {step.key.name for step in spare}
    versions = [write for write in _write_versions(seen, views, active, now) if write.key.name not in going]
    full = [wave for wave in waves if wave]
    return Plan(
        why=_why(full),
        waves=full,
        status=[status, *versions],
        notes=[*_step_notes(seen, full), *_condition_notes(seen.model, status)],
    )


def _access_steps(seen: Seen, model: Model) -> Iterable[Step]:
    account, binding = access(model.metadata.namespace, seen.owners)
    for resource, manifest in ((SERVICE_ACCOUNTS, account), (ROLE_BINDINGS, binding)):
        if has_drifted(seen.access.get(resource), manifest):
            yield Apply(resource, manifest)


def _version_steps(model: Model, wanted: Desired) -> Iterable[Step]:
    made = {served.name: served for served in wanted.served if not served.is_recorded}
    return [Apply(VERSIONS, version_manifest(model, served)) for served in made.values()]


def _child_steps(seen: Seen, child: Child) -> Iterable[Step]:
    live = seen.children.get((child.resource, child.name))
    if not has_drifted(live, child.manifest):
        return
    if live is not None and child.resource == ROUTES and _model_name(live) != _model_name(child.manifest):
        yield _delete(child.resource, live)
        return
    yield Apply(child.resource, child.manifest)


def _scale_steps(seen: Seen, model: Model) -> list[Step]:
    steps: list[Step] = []
    for backend in model.spec.backends:
        name = backend_object_name(model.metadata.name, backend.name)
        live = seen.children.get((INFERS, name))
        if live is None:
            continue
        spec: Any = live.get("spec") or {}
        replicas = int(spec.get("replicas", 1))
        bounded = _bounded(replicas, model, backend)
        if bounded != replicas:
            steps.append(Scale(INFERS, Key(model.metadata.namespace, name), bounded))
    return steps


def _bounded(replicas: int, model: Model, backend: ModelBackend) -> int:
    """Replicas within the Model's bounds; an autoscaler keeps the upper one itself, and may take its time."""
    if model.spec.autoscaling_policy is not None or backend.autoscaling_policy is not None:
        return max(replicas, backend.min_replicas)
    return min(max(replicas, backend.min_replicas), backend.max_replicas)


def _unwanted(seen: Seen, wanted: Desired) -> Iterable[Step]:
    names = {(child.resource, child.name) for child in wanted.children}
    gone = [(place, live) for place, live in seen.children.items() if place not in names]
    order = tuple(reversed(CHILDREN))
    return [
        _delete(place[0], live)
        for place, live in sorted(gone, key=lambda found: (order.index(found[0][0]), found[0][1]))
    ]


def _expendable(seen: Seen, model: Model, wanted: Desired) -> list[Delete]:
    in_use = {served.name for served in wanted.served}
    backends = {backend.name for backend in model.spec.backends}
    found = expendable(seen.versions.values(), in_use, model.spec.version_history_limit, backends)
    return [
        Delete(VERSIONS, Key(version.metadata.namespace, version.metadata.name), version.metadata.uid)
        for version in found
    ]


def _delete(resource: Resource, live: Manifest) -> Delete:
    metadata: Any = live["metadata"]
    return Delete(resource, key_of(live), str(metadata["uid"]))


def _model_name(route: Mapping[str, Any]) -> Any:
    return (route.get("spec") or {}).get("modelName")


def _active_versions(seen: Seen, views: Sequence[BackendView]) -> set[str]:
    """Versions whose pods take requests: the wanted ones that are up, and older ones whose pods are not all gone."""
    active = {view.served.name for view in views if view.served is not None and view.serves_wanted}
    by_backend = {view.name: view for view in views}
    for version in seen.versions.values():
        view = by_backend.get(version.spec.backend_name)
        if view is None or not view.exists or not is_true(version.status.conditions, "Active"):
            continue
        wanted = view.served is not None and view.served.name == version.metadata.name
        if (wanted and view.is_available) or (not wanted and not view.is_rolled_out):
            active.add(version.metadata.name)
    return active


def _still_active(seen: Seen) -> set[str]:
    return {name for name, version in seen.versions.items() if is_true(version.status.conditions, "Active")}


def _write_model(
    seen: Seen,
    model: Model,
    views: Sequence[BackendView],
    active: Iterable[str],
    failure: Claim | None,
    *,
    complete: bool,
    now: datetime,
) -> WriteStatus:
    return WriteStatus(
        resource=MODELS,
        key=Key(model.metadata.namespace, model.metadata.name),
        uid=model.metadata.uid,
        desired=model_status(seen, model, views, active, failure, complete=complete, now=now),
        current=comparable(seen.model.get("status")),
    )


def _write_versions(
    seen: Seen, views: Sequence[BackendView], active: Iterable[str], now: datetime
) -> Iterable[WriteStatus]:
    serving = set(active)
    infers = {view.name: view.infer_name for view in views}
    return [
        WriteStatus(
            resource=VERSIONS,
            key=Key(version.metadata.namespace, name),
            uid=version.metadata.uid,
            desired=version_status(
                version,
                active=name in serving,
                infer_name=infers.get(version.spec.backend_name),
                failure=_version_failure(version),
                now=now,
            ),
            current=version_current(version),
        )
        for name, version in sorted(seen.versions.items())
    ]


def _version_failure(version: ModelVersion) -> Claim | None:
    """What the downloader could not do, as a condition of ours."""
    fault = download_fault(version)
    return Claim("Failed", True, fault.reason, fault.message) if fault is not None else None


def _refused(seen: Seen, model: Model, failure: Claim, now: datetime) -> Plan:
    views = backend_views(seen, model, None)
    status = _write_model(seen, model, views, _still_active(seen), failure, complete=False, now=now)
    return Plan(why=failure.message, status=[status], notes=_condition_notes(seen.model, status), error=failure.message)


def _unparsed(seen: Seen, failure: Claim, now: datetime) -> Plan:
    """The plan for a Model that is not valid: all stays as it is, and the reason is said."""
    model = _readable(seen.model)
    if model is None:
        return Plan(why=failure.message, error=failure.message, notes=[_note(failure)])
    return _refused(seen, model, failure, now)


def _readable(manifest: Manifest) -> Model | None:
    try:
        return Model.model_validate(manifest)
    except ValueError:
        return None


def _why(waves: Sequence[Sequence[Step]]) -> str:
    said = [_said(step) for wave in waves for step in wave]
    return ", ".join(said) if said else "everything is as the Model asks for"


def _said(step: Step) -> str:
    match step:
        case Apply():
            return f"write {step.resource.kind} {key_of(step.manifest).name}"
        case Delete():
            return f"delete {step.resource.kind} {step.key.name}"
        case Scale():
            return f"scale {step.resource.kind} {step.key.name} to {step.replicas}"
        case _:
            return type(step).__name__


def _step_notes(seen: Seen, waves: Sequence[Sequence[Step]]) -> list[Note]:
    return [note for wave in waves for step in wave if (note := _step_note(seen, step)) is not None]


def _step_note(seen: Seen, step: Step) -> Note | None:
    match step:
        case Apply() if step.resource == VERSIONS:
            return Note("VersionRecorded", f"Recorded {step.resource.kind} {key_of(step.manifest).name}")
        case Apply() if step.resource in CHILDREN:
            name = key_of(step.manifest).name
            known = (step.resource, name) in seen.children
            reason, verb = ("ChildUpdated", "Updated") if known else ("ChildCreated", "Created")
            return Note(reason, f"{verb} {step.resource.kind} {name}")
        case Delete():
            return Note("ChildDeleted", f"Deleted {step.resource.kind} {step.key.name}, which is no longer wanted")
        case Scale():
            return Note("Scaled", f"Scaled {step.key.name} to {step.replicas}, which the bounds of the Model ask for")
        case _:
            return None


def _condition_notes(model: Manifest, status: WriteStatus) -> list[Note]:
    """Events for what became true or false with this pass."""
    told: Any = model.get("status") or {}
    before = {found.get("type"): found.get("status") for found in told.get("conditions") or ()}
    conditions: Any = status.desired["conditions"]
    return [
        _note(Claim(found["type"], found["status"] == "True", found["reason"], found["message"]))
        for found in conditions
        if found["type"] in ("Active", "Failed") and before.get(found["type"], "False") != found["status"]
    ]


def _note(claim: Claim) -> Note:
    if claim.type == "Failed" and not claim.status:
        return Note("Recovered", "The failure is mended")
    if claim.type == "Failed":
        return Note(claim.reason, claim.message, EventType.WARNING)
    return Note(claim.reason, claim.message)
