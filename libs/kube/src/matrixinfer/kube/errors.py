"""What can go wrong between us and an API server, one exception per meaning.

Owns the mapping from a status code and a `Status` body to a type. Refuses to decide what to do about it: that is
`reconcile.outcome`. The traps: 409 means two things (`AlreadyExists` for a create, `Conflict` for a precondition), and
only the reason in the body tells them apart; a uid that does not match is a 409 in a delete, but a 422 in a patch.
"""

from collections.abc import Mapping
from typing import Any

import orjson

__all__ = [
    "AlreadyExists",
    "ApiError",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "Forbidden",
    "Gone",
    "Invalid",
    "KubeError",
    "LeaseLost",
    "NotFound",
    "NotOwned",
    "ServerFault",
    "TooManyRequests",
    "Unauthorized",
    "Unreachable",
    "error_from_response",
    "error_from_status",
]


class KubeError(Exception):
    """Root of everything this library raises on purpose."""


class ConfigError(KubeError):
    """The kubeconfig or the in-cluster credentials are missing or unusable; a retry does not help."""


class LeaseLost(KubeError):
    """The lease went to another holder or could not be renewed in time; the process must exit."""


class NotOwned(KubeError):
    """An object has the name that we need and another controller, or none."""

    reason = "NotOwned"

    def __init__(self, what: str, owner: str) -> None:
        super().__init__(f"{what} exists and belongs to {owner}; it is left as it is. Delete or rename it to go on.")


class ApiError(KubeError):
    """The API server answered with something other than success, or not at all (`status` 0).

    `reason` and `message` are the server's own, `details` the `details` of its Status object, `retry_after` the
    seconds it asked us to wait.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{message} ({reason or 'no reason'}, status {status})")
        self.status = status
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.retry_after = retry_after


class NotFound(ApiError):
    """404: no such object, or no such resource."""


class AlreadyExists(ApiError):
    """409 on a create: the name is taken."""


class Conflict(ApiError):
    """409: a precondition (uid, resourceVersion, field ownership) does not hold."""


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list again."""


class Invalid(ApiError):
    """400 or 422: the object was refused; the message names the field."""


class Unauthorized(ApiError):
    """401: the credentials are not accepted."""


class Forbidden(ApiError):
    """403: the role lacks the verb, a quota is used up, or the namespace is being deleted."""


class TooManyRequests(ApiError):
    """429: the server asks for patience; `retry_after` says for how long."""


class ServerFault(ApiError):
    """5xx: the server, or a webhook behind it, failed."""


class Unreachable(ApiError):
    """No answer: the connection was refused, reset, or TLS failed."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


class DeadlineExceeded(ApiError):
    """No answer within our own deadline. A write may or may not have happened."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "DeadlineExceeded", message)


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_from_status(code: int, body: Mapping[str, Any], *, retry_after: float | None = None) -> ApiError:
    """Return the exception for a `Status` object; `code` counts when the body carries none."""
    status = int(body.get("code") or code)
    reason = str(body.get("reason") or "")
    details = body.get("details")
    details = details if isinstance(details, dict) else {}
    if retry_after is None and isinstance(details.get("retryAfterSeconds"), int):
        retry_after = float(details["retryAfterSeconds"])
    return _type_of(status, reason, details)(
        status, reason, str(body.get("message") or "the API server gave no message"), details, retry_after=retry_after
    )


def error_from_response(code: int, raw: bytes, *, retry_after: str | None = None) -> ApiError:
    """Return the exception for a response that is not a success; the body may be anything."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = {"message": raw[:500].decode(errors="replace").strip()}
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return error_from_status(code, body if isinstance(body, dict) else {}, retry_after=seconds)


def _type_of(status: int, reason: str, details: Mapping[str, Any]) -> type[ApiError]:
    if reason == "AlreadyExists":
        return AlreadyExists
    if reason == "Invalid" and _only_uid_differs(details):
        return Conflict
    if reason == "Expired":
        return Gone
    if status >= 500:
        return ServerFault
    return _BY_STATUS.get(status, ApiError)


def _only_uid_differs(details: Mapping[str, Any]) -> bool:
    """True when a patch was refused because its uid is not the object's.

    The API server answers that with 422 "field is immutable"; to us the uid was a precondition.
    """
    causes = details.get("causes") or ()
    return bool(causes) and all(cause.get("field") == "metadata.uid" for cause in causes)
