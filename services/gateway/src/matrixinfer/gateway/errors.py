"""Refusals of the gateway itself, in the form that the client of that path shows to people: OpenAI's or Anthropic's.

An engine's own answers are never touched. Every sentence tells the caller what to do; nothing names an internal
address.
"""

from collections.abc import Sequence

import msgspec

from matrixinfer.gateway.core.retry import Failure
from matrixinfer.gateway.core.surface import is_anthropic, makes_object, stored_object
from matrixinfer.gateway.wire.message import Headers, Refusal

__all__ = [
    "GatewayError",
    "allow_header",
    "bad_body",
    "error_body",
    "error_event",
    "internal",
    "method_not_allowed",
    "model_not_found",
    "no_endpoints",
    "no_rule",
    "not_found",
    "object_lost",
    "object_unknown",
    "overloaded",
    "refused",
    "unsupported_coding",
    "upstream_failed",
]

_JSON = (b"content-type", b"application/json")

# The types of Anthropic's API; a status that is not here is one of its two general ones.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


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


def error_body(error: GatewayError, path: bytes = b"", request_id: str = "") -> bytes:
    """Return the JSON document of an error, for a client that asked at `path`."""
    return msgspec.json.encode(_document(error, path, request_id))


def error_event(error: GatewayError, path: bytes, request_id: str) -> bytes:
    """Return the error as an event for a stream that has begun; the blank line before it ends a half-sent event."""
    document = _document(error, path, request_id)
    if makes_object(path) or stored_object(path):
        # Events of the Responses API carry their own type.
        document = {"type": "error", "code": error.code, "message": error.message, "param": error.param, **document}
    name = f"event: {document['type']}\n".encode() if "type" in document else b""
    return b"\n\n" + name + b"data: " + msgspec.json.encode(document) + b"\n\n"


def _document(error: GatewayError, path: bytes, request_id: str) -> dict[str, object]:
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def refused(refusal: Refusal) -> GatewayError:
    """The inlet could not accept the request."""
    server_side = refusal.status >= 500
    return GatewayError(
        refusal.status,
        refusal.message,
        type_="server_error" if server_side else "invalid_request_error",
        retry_after_seconds=1 if refusal.status == 503 else None,
    )


def bad_body(message: str, param: str | None) -> GatewayError:
    """The body cannot be routed."""
    return GatewayError(400, message, param=param)


def not_found(path: str) -> GatewayError:
    """No such path."""
    return GatewayError(404, f"There is nothing at {path!r}; the API begins at /v1/.", code="not_found")


def allow_header(allowed: Sequence[str]) -> tuple[bytes, bytes]:
    """Return the header that lists the methods of a path."""
    return b"allow", ", ".join((*allowed, "OPTIONS")).encode()


def method_not_allowed(method: str, allowed: Sequence[str]) -> GatewayError:
    """The path exists, the method does not."""
    return GatewayError(
        405,
        f"{method} is not allowed here; use {' or '.join(allowed)}.",
        code="method_not_allowed",
        extra=[allow_header(allowed)],
    )


def unsupported_coding(coding: str) -> GatewayError:
    """The body is compressed and cannot be read."""
    return GatewayError(
        415, f"A body with Content-Encoding {coding!r} cannot be routed; send it plain.", code="unsupported_media_type"
    )


def model_not_found(model: str) -> GatewayError:
    """Nobody serves that name."""
    return GatewayError(404, f"The model {model!r} does not exist.", code="model_not_found", param="model")


def object_unknown(object_id: str) -> GatewayError:
    """No worker has seen a response of that id being made."""
    return GatewayError(
        404, f"The response {object_id!r} does not exist or is no longer kept.", code="not_found", param="response_id"
    )


def object_lost(object_id: str) -> GatewayError:
    """Who kept the response serves no more."""
    return GatewayError(
        410,
        f"The endpoint that kept the response {object_id!r} no longer serves, and its responses with it; "
        "send the request again.",
        code="gone",
        param="response_id",
    )


def no_rule(model: str) -> GatewayError:
    """The model exists, but not for this request."""
    return GatewayError(
        404, f"No rule of the model {model!r} takes this request.", code="model_not_found", param="model"
    )


def no_endpoints(model: str, retry_after_seconds: int = 5) -> GatewayError:
    """The model exists and nothing serves it now."""
    return GatewayError(
        503,
        f"The model {model!r} has no ready endpoint; try again in a moment.",
        type_="server_error",
        code="no_endpoints",
        retry_after_seconds=retry_after_seconds,
    )


def overloaded(model: str, retry_after_seconds: int = 1) -> GatewayError:
    """Every endpoint has as many requests as it may have."""
    return GatewayError(
        429,
        f"All endpoints of the model {model!r} are busy; try again in a moment.",
        type_="rate_limit_error",
        code="overloaded",
        retry_after_seconds=retry_after_seconds,
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
