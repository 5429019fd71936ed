"""Builders of what a pass has seen: plain values, every part overridable."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from matrixinfer.api import names
from matrixinfer.api.v1alpha1.modelinfer import ModelInferStatus
from matrixinfer.infer_controller.fleet import (
    Cause,
    Fleet,
    HeadlessService,
    Infer,
    Pod,
    Removal,
    Role,
    Scope,
    Seen,
    StoredRevision,
    Template,
    Unit,
    UnitId,
)
from matrixinfer.infer_controller.groups import muster
from matrixinfer.infer_controller.plan import plan
from matrixinfer.infer_controller.render.services import selector_of
from matrixinfer.infer_controller.revisions import template_of
from matrixinfer.infer_controller.status import comparable
from matrixinfer.kube.plan import Create, Delete, Merge, Plan
from matrixinfer.kube.resource import PODS, Key

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = Key("default", "m")
UID = "uid-m"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def role(name: str = "leader", replicas: int = 1, workers: int = 0, image: str = "engine:1") -> Role:
    pod_template = {"spec": {"containers": [{"name": "engine", "image": image}]}}
    return Role(name, replicas, workers, pod_template, pod_template if workers else None)


def template(*roles: Role, image: str = "engine:1") -> Template:
    return template_of(roles or (role(image=image),))


OLD = template(image="engine:0")
NEW = template(image="engine:1")


def infer(made_from: Template = NEW, **given: Any) -> Infer:
    given = {"current_revision": made_from.revision, **given}
    return Infer(KEY, UID, "1", 1, made_from, **given)


def pod(
    ordinal: int = 0, index: int = 0, *, replica: int = 0, role: str = "leader", of: Template = NEW, **given: Any
) -> Pod:
    """A ready pod of a group; `of` is the template that it was made from."""
    name = names.pod_name(KEY.name, ordinal, role, replica, index)
    ready = given.pop("ready", True)
    fields = {
        "phase": "Running",
        "ready": ready,
        "ready_changed": ago(3600),
        "created": ago(3700),
        "node": "node-0",
        **given,
    }
    return Pod(
        name=name,
        namespace=KEY.namespace,
        uid=f"uid-{name}",
        resource_version="1",
        owner_uid=UID,
        infer=KEY.name,
        unit=UnitId(ordinal, role, replica),
        index=index,
        revision=of.revision,
        **fields,
    )


def leaving(one: Pod, scope: Scope = Scope.GROUP, cause: Cause = Cause.SCALE_DOWN, **given: Any) -> Pod:
    """The pod with the mark of a removal."""
    given = {"since": NOW, **given}
    return msgspec.structs.replace(one, removal=Removal(scope, cause, **given))


def changed(one: Pod, **given: Any) -> Pod:
    return msgspec.structs.replace(one, **given)


def stored(made_from: Template, number: int = 1) -> StoredRevision:
    name = f"{KEY.name}-{made_from.revision}"
    return StoredRevision(name, KEY.namespace, f"uid-{name}", "1", UID, KEY.name, made_from.revision, number, made_from)


def service(ordinal: int = 0, role: str = "leader", replica: int = 0, **given: Any) -> HeadlessService:
    unit = UnitId(ordinal, role, replica)
    name = names.entry_pod_name(KEY.name, ordinal, role, replica)
    fields = {"selector": {k: str(v) for k, v in selector_of(infer(), unit).items()}, "publishes_not_ready": True}
    return HeadlessService(name, KEY.namespace, f"uid-{name}", "1", UID, KEY.name, **{**fields, **given})


def seen(of: Infer | None = None, pods: Iterable[Pod] = (), **given: Any) -> Seen:
    """A look at a ModelInfer whose templates, the old one too, are on record."""
    whole = of or infer()
    recorded = {t.revision: stored(t, number) for number, t in enumerate((OLD, NEW, whole.template), 1)}
    return Seen(whole, tuple(pods), **{"revisions": tuple(recorded.values()), **given})


def fleet(of: Infer | None = None, pods: Iterable[Pod] = (), **given: Any) -> Fleet:
    return muster(seen(of, pods, **given), NOW)


def unit(*pods: Pod, size: int | None = None, **given: Any) -> Unit:
    return Unit(pods[0].unit, pods, size or len(pods), **given)


def recorded(world: Seen, made: Plan) -> Seen:
    """The same look after the plan's status was written."""
    status: Mapping[str, Any] = made.status[0].desired
    read = ModelInferStatus.model_validate(status)
    told = replace(world.infer, status=status, conditions=read.conditions, recoveries=read.recoveries)
    return replace(world, infer=told)


def settled(world: Seen) -> Seen:
    """The same look with the status that it should have."""
    return recorded(world, plan(world, NOW))


def created(made: Plan) -> list[str]:
    """Names of the pods that a plan makes."""
    return sorted(
        str(step.manifest["metadata"]["name"])  # type: ignore[call-overload, index]  # a rendered manifest
        for step in made.steps
        if isinstance(step, Create) and step.resource == PODS
    )


def marked(made: Plan) -> dict[str, str]:
    """Names of the pods that a plan marks, with what the mark says."""
    return {
        step.key.name: step.patch["metadata"]["annotations"][names.INFER_REMOVAL]  # type: ignore[call-overload, index]
        for step in made.steps
        if isinstance(step, Merge)
    }


def deleted(made: Plan) -> list[str]:
    """Names of the pods that a plan deletes."""
    return sorted(step.key.name for step in made.steps if isinstance(step, Delete) and step.resource == PODS)


def condition(made: Plan, type_: str) -> dict[str, Any]:
    """One condition of the status that a plan wants; empty when it is not there."""
    conditions: Any = comparable(made.status[0].desired).get("conditions", [])
    return next((found for found in conditions if found["type"] == type_), {})
