"""Revisions of a template: their names, their record in the cluster, and how long the record is kept.

A ControllerRevision is written before the first pod of its revision and never changed, so that an ordinal below the
partition can always be made again from what it was. Its name is a hash of what ends up in pods: counts and rollout
knobs are left out. The trap: defaults that this code fills in must not enter the hash, or an upgrade would replace
every fleet.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matrixinfer.api import hashing, names
from matrixinfer.api.meta import Json
from matrixinfer.infer_controller.fleet import Fleet, Infer, JsonObject, Role, Seen, StoredRevision, Template
from matrixinfer.kube.plan import Create, Delete
from matrixinfer.kube.resource import CONTROLLER_REVISIONS, Manifest

__all__ = ["expired", "missing", "parse", "render", "template_of"]


def template_of(roles: Sequence[Role], scheduler_name: str = "", spread: Sequence[JsonObject] = ()) -> Template:
    """Return the template with its revision, and a revision for each role alone."""
    shared: dict[str, Json] = {"schedulerName": scheduler_name, "spread": [dict(constraint) for constraint in spread]}
    parts = {role.name: _essence(role) for role in roles}
    whole: Json = {**shared, "roles": [parts[role.name] for role in roles]}
    return Template(
        revision=hashing.revision(whole),
        roles=tuple(roles),
        role_revisions={name: hashing.revision({**shared, "role": part}) for name, part in parts.items()},
        scheduler_name=scheduler_name,
        spread=tuple(spread),
    )


def _essence(role: Role) -> Json:
    essence: dict[str, Json] = {"name": role.name, "workers": role.worker_replicas, "entry": dict(role.entry)}
    if role.worker is not None and role.worker_replicas > 0:
        essence["worker"] = dict(role.worker)
    return essence


def render(infer: Infer, resource_owner: Mapping[str, Json], number: int) -> Manifest:
    """Return the ControllerRevision that records the present template."""
    template = infer.template
    return {
        "apiVersion": CONTROLLER_REVISIONS.api_version,
        "kind": CONTROLLER_REVISIONS.kind,
        "metadata": {
            "name": f"{infer.key.name}-{template.revision}",
            "namespace": infer.key.namespace,
            "labels": {
                names.INFER_NAME: infer.key.name,
                names.INFER_REVISION: template.revision,
                names.INFER_UID: infer.uid,
            },
            "ownerReferences": [dict(resource_owner)],
        },
        "data": {
            "schedulerName": template.scheduler_name,
            "spread": [dict(constraint) for constraint in template.spread],
            "roles": [_recorded(role) for role in template.roles],
        },
        "revision": number,
    }


def _recorded(role: Role) -> Json:
    return {
        "name": role.name,
        "replicas": role.replicas,
        "workers": role.worker_replicas,
        "entry": dict(role.entry),
        "worker": None if role.worker is None else dict(role.worker),
    }


def parse(data: Any, revision: str) -> Template | None:
    """Return the template of a ControllerRevision's data, or None for data that was not written by `render`."""
    try:
        roles = [
            Role(role["name"], int(role["replicas"]), int(role["workers"]), role["entry"], role["worker"])
            for role in data["roles"]
        ]
        template = template_of(roles, data["schedulerName"], data["spread"])
    except (KeyError, TypeError, ValueError):
        return None
    # The name is what pods carry; a record made by another scheme of hashing is still what they were made from.
    return Template(revision, template.roles, template.role_revisions, template.scheduler_name, template.spread)


def missing(seen: Seen, owner: Mapping[str, Json]) -> Sequence[Create]:
    """Return the step that records the present template, unless that is done."""
    infer = seen.infer
    if any(found.revision == infer.template.revision for found in seen.revisions):
        return ()
    number = 1 + max((found.number for found in seen.revisions), default=0)
    return (Create(CONTROLLER_REVISIONS, render(infer, owner, number)),)


def expired(seen: Seen, fleet: Fleet, current: str) -> Sequence[Delete]:
    """Return the removal of the oldest records that nothing uses, beyond the history limit."""
    used = {fleet.update.revision, current} | {pod.revision for pod in seen.pods}
    unused = sorted(_unused(seen.revisions, used), key=lambda found: found.number)
    surplus = unused[: max(len(unused) - seen.history_limit, 0)]
    return [Delete(CONTROLLER_REVISIONS, found.key, found.uid) for found in surplus]


def _unused(revisions: Iterable[StoredRevision], used: set[str]) -> Iterable[StoredRevision]:
    return (found for found in revisions if found.revision not in used)
