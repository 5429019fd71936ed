"""Refusals of the gateway itself, in the form that OpenAI clients show to people.

An engine's own answers are never touched. Every sentence tells the caller what to do; nothing names an internal
address.
"""

import msgspec

from matrixinfer.gateway.core.retry import Failure
from matrixinfer.gateway.wire.message import Headers, Refusal

__all__ = [
    "GatewayError",
    "bad_body",
    "error_body",
    "error_event",
    "internal",
    "method_not_allowed",
    "model_not_found",
    "no_endpoints",
    "no_rule",
    "not_found",
    "overloaded",
    "refusal_answer",
    "unsupported_media",
    "upstream_failed",
]

_JSON = (b"content-type", b"application/json")


class GatewayError(Exception):
    """A request that the gateway answers itself, with a status, an OpenAI error object and perhaps `Retry-After`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        extra: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type_
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra

    @property
    def headers(self) -> Headers:
        """The headers that belong to the answer, without its length."""
        again = [] if self.retry_after_seconds is None else [(b"retry-after", b"%d" % self.retry_after_seconds)]
        return [_JSON, *again, *self.extra]


def error_body(error: GatewayError) -> bytes:
    """Return the JSON document of an error."""
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


def error_event(error: GatewayError) -> bytes:
    """Return the error as an event for a stream that has begun; the blank line before it ends a half-sent event."""
    return b"\n\ndata: " + error_body(error) + b"\n\n"


def refusal_answer(refusal: Refusal) -> tuple[Headers, bytes]:
    """Return headers and body for a request that the inlet could not accept."""
    server_side = refusal.status >= 500
    error = GatewayError(
        refusal.status,
        refusal.message,
        type_="server_error" if server_side else "invalid_request_error",
        retry_after_seconds=1 if refusal.status == 503 else None,
    )
    return error.headers, error_body(error)


def bad_body(message: str, param: str | None) -> GatewayError:
    """The body cannot be routed."""
    return GatewayError(400, message, param=param)


def not_found(path: str) -> GatewayError:
    """No such path."""
    return GatewayError(404, f"There is nothing at {path!r}; the API begins at /v1/.", code="not_found")


def method_not_allowed(method: str, allowed: str) -> GatewayError:
    """The path exists, the method does not."""
    return GatewayError(
        405,
        f"{method} is not allowed here; use {allowed}.",
        code="method_not_allowed",
        extra=[(b"allow", allowed.encode())],
    )


def unsupported_media(media: str) -> GatewayError:
    """The body is of a type that cannot be routed."""
    return GatewayError(415, f"A body of type {media!r} cannot be routed; send JSON.", code="unsupported_media_type")


def model_not_found(model: str) -> GatewayError:
    """Nobody serves that name."""
    return GatewayError(404, f"The model {model!r} does not exist.", code="model_not_found", param="model")


def no_rule(model: str) -> GatewayError:
    """The model exists, but not for this request."""
    return GatewayError(
        404, f"No rule of the model {model!r} takes this request.", code="model_not_found", param="model"
    )


def no_endpoints(model: str) -> GatewayError:
    """The model exists and nothing serves it now."""
    return GatewayError(
        503,
        f"The model {model!r} has no ready endpoint; try again in a moment.",
        type_="server_error",
        code="no_endpoints",
        retry_after_seconds=5,
    )


def overloaded(model: str) -> GatewayError:
    """Every endpoint has as many requests as it may have."""
    return GatewayError(
        429,
        f"All endpoints of the model {model!r} are busy; try again in a moment.",
        type_="rate_limit_error",
        code="overloaded",
        retry_after_seconds=1,
    )


def upstream_failed(failure: Failure) -> GatewayError:
    """The endpoints that were asked gave no answer, or broke off."""
    if failure in (Failure.FIRST_BYTE, Failure.IDLE, Failure.TOTAL):
        return GatewayError(504, "The model did not answer in time.", type_="server_error", code=failure.value)
    return GatewayError(
        503,
        "The model's endpoint failed before the answer was complete; try again.",
        type_="server_error",
        code=failure.value,
        retry_after_seconds=1,
    )


def internal() -> GatewayError:
    """A fault of ours."""
    return GatewayError(500, "The gateway failed on this request.", type_="server_error", code="internal_error")
