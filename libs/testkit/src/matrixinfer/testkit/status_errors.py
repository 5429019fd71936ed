"""Refusals of the API server, with the bodies that the real one sends."""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixinfer.kube.resource import Json, Key, Resource

__all__ = [
    "Cause",
    "ConnectionCut",
    "StatusError",
    "already_exists",
    "bad_request",
    "conflict",
    "expired",
    "invalid",
    "method_not_allowed",
    "not_found",
    "unknown_resource",
    "unsupported_media_type",
]


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason of a refusal: `reason` as in `metav1.CauseType`, and the field it is about."""

    reason: str
    message: str
    field: str

    def as_json(self) -> dict[str, Json]:
        """The entry of `details.causes`."""
        return {"reason": self.reason, "message": self.message, "field": self.field}


class StatusError(Exception):
    """A request was refused: `code`, `reason`, `message` and `details` of a `Status`."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        resource: Resource | None = None,
        name: str = "",
        causes: Sequence[Cause] = (),
        retry_after_seconds: int | None = None,
        uid: str = "",
        kind_detail: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)
        self.retry_after_seconds = retry_after_seconds
        self.details: dict[str, Json] = {}
        if name:
            self.details["name"] = name
        if resource is not None:
            if resource.group:
                self.details["group"] = resource.group
            self.details["kind"] = kind_detail or resource.plural
        if uid:
            self.details["uid"] = uid
        if causes:
            self.details["causes"] = [cause.as_json() for cause in causes]
        if retry_after_seconds is not None:
            self.details["retryAfterSeconds"] = retry_after_seconds

    @property
    def status(self) -> dict[str, Json]:
        """The `Status` object that the client receives."""
        body: dict[str, Json] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            body["details"] = dict(self.details)
        return body


class ConnectionCut(Exception):
    """The connection died; whether the write took effect is for the caller to find out."""


def _qualified(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def not_found(resource: Resource, key: Key) -> StatusError:
    """404 for one object."""
    return StatusError(
        404, "NotFound", f'{_qualified(resource)} "{key.name}" not found', resource=resource, name=key.name
    )


def already_exists(resource: Resource, key: Key) -> StatusError:
    """409 for a create of a name that is taken."""
    return StatusError(
        409, "AlreadyExists", f'{_qualified(resource)} "{key.name}" already exists', resource=resource, name=key.name
    )


def conflict(resource: Resource, key: Key, why: str, causes: Sequence[Cause] = ()) -> StatusError:
    """409 for a stale resourceVersion, a failed precondition, or fields that others own."""
    message = why if causes else f'Operation cannot be fulfilled on {_qualified(resource)} "{key.name}": {why}'
    if causes:
        return StatusError(409, "Conflict", message, causes=causes)
    return StatusError(409, "Conflict", message, resource=resource, name=key.name)


def invalid(resource: Resource, name: str, causes: Sequence[Cause]) -> StatusError:
    """422 with one cause per field."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    lines = [f"{cause.field}: {cause.message}" for cause in causes]
    detail = lines[0] if len(lines) == 1 else "[" + ", ".join(lines) + "]"
    return StatusError(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {detail}',
        resource=resource,
        name=name,
        causes=causes,
        kind_detail=resource.kind,
    )


def expired(why: str) -> StatusError:
    """410: the resourceVersion or the continue token is older than what is kept."""
    return StatusError(410, "Expired", why)


def bad_request(why: str) -> StatusError:
    """400: the request itself makes no sense."""
    return StatusError(400, "BadRequest", why)


def method_not_allowed() -> StatusError:
    """405: the resource has no such verb or subresource."""
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def unknown_resource() -> StatusError:
    """404: the server serves no such kind, or the kind has no such subresource."""
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def unsupported_media_type(content_type: str) -> StatusError:
    """415: a patch in a form that the resource does not take."""
    return StatusError(
        415,
        "UnsupportedMediaType",
        f'the body of the request was in an unknown format - content type was "{content_type}"',
    )
