"""Compares what a role grants with what its holder did, as the API server's audit log tells it.

Owns the arithmetic only: rules in, audit events in, permissions out. The trap: a rule that is never used is a hole
that nobody needs, and a request that no rule allowed shows only in production; so both differences matter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Permission", "granted", "refused", "used"]

_CREATED: Final = 201


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One verb on one resource; `resource` includes the subresource, as roles spell it (`pods/status`)."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        """`verb resource.group`, as `kubectl auth can-i` takes it."""
        return f"{self.verb} {self.resource}{'.' + self.group if self.group else ''}"


def granted(rules: Iterable[Mapping[str, Any]]) -> frozenset[Permission]:
    """Everything the rules of a Role or ClusterRole allow; resource names narrow a rule and are ignored here."""
    return frozenset(
        Permission(group, resource, verb)
        for rule in rules
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for verb in rule["verbs"]
    )


def used(events: Iterable[Mapping[str, Any]], user: str) -> frozenset[Permission]:
    """Every permission that `user` (`system:serviceaccount:NAMESPACE:NAME`) needed for its successful requests."""
    mine = [event for event in events if _is_by(event, user) and not _is_refused(event)]
    return frozenset(_permission(event) for event in mine) | {_made_by_apply(e) for e in mine if _is_made_by_apply(e)}


def refused(events: Iterable[Mapping[str, Any]], user: str) -> frozenset[Permission]:
    """Every permission that `user` lacked: requests that the API server answered with 403."""
    return frozenset(_permission(e) for e in events if _is_by(e, user) and _is_refused(e))


def _is_by(event: Mapping[str, Any], user: str) -> bool:
    return event.get("user", {}).get("username") == user and "resource" in event.get("objectRef", {})


def _is_refused(event: Mapping[str, Any]) -> bool:
    return bool(event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid")


def _is_made_by_apply(event: Mapping[str, Any]) -> bool:
    """A server-side apply that makes its object is audited as a patch, and asks for the right to create as well."""
    return bool(event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == _CREATED)


def _made_by_apply(event: Mapping[str, Any]) -> Permission:
    return _permission({**event, "verb": "create"})


def _permission(event: Mapping[str, Any]) -> Permission:
    ref = event["objectRef"]
    resource = f"{ref['resource']}/{ref['subresource']}" if ref.get("subresource") else ref["resource"]
    return Permission(ref.get("apiGroup", ""), resource, event["verb"])
