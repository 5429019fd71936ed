"""The spans of a request, made when it is over from the times that were noted on its way, as OTLP writes them. Pure.

Names and attributes follow OpenTelemetry's semantic conventions for HTTP and generative AI; what they have no word for
is called `matrixinfer.…`. Nothing of a prompt, an answer or a header gets here. Source of the form: the JSON encoding
of OTLP (ids are hex, 64-bit numbers are text, members lowerCamelCase).
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

__all__ = [
    "CLIENT",
    "INTERNAL",
    "SERVER",
    "Attribute",
    "Attributes",
    "Span",
    "Status",
    "attributes",
    "export_body",
    "operation",
]

INTERNAL, SERVER, CLIENT = 1, 2, 3

Attributes: TypeAlias = Mapping[str, str | int | float | bool | None]
"""By name; None is left out."""

_TEXT_LIMIT = 256

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class _Value(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: str | None = None
    double_value: float | None = None


class Attribute(msgspec.Struct, frozen=True):
    """One attribute."""

    key: str
    value: _Value


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """Code 2 is an error; 0 says nothing."""

    code: int = 0
    message: str = ""


class Span(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One span in OTLP's words."""

    trace_id: str
    span_id: str
    name: str
    kind: int
    start_time_unix_nano: str
    end_time_unix_nano: str
    parent_span_id: str = ""
    trace_state: str = ""
    attributes: tuple[Attribute, ...] = ()
    status: Status = Status()


class _Resource(msgspec.Struct, frozen=True):
    attributes: tuple[Attribute, ...]


class _Scope(msgspec.Struct, frozen=True):
    name: str = "matrixinfer.gateway"


class _ScopeSpans(msgspec.Struct, frozen=True):
    scope: _Scope
    spans: list[Span]


class _ResourceSpans(msgspec.Struct, frozen=True, rename="camel"):
    resource: _Resource
    scope_spans: tuple[_ScopeSpans]


class _Export(msgspec.Struct, frozen=True, rename="camel"):
    resource_spans: tuple[_ResourceSpans]


def attributes(values: Attributes) -> tuple[Attribute, ...]:
    """Return attributes in OTLP's form."""
    return tuple(Attribute(key, _value(value)) for key, value in values.items() if value is not None)


def operation(path: str) -> str:
    """Return what generative AI's conventions call a surface; its own name where they have no word."""
    return _OPERATIONS.get(path) or path.removeprefix("/v1/")[:_TEXT_LIMIT]


def export_body(resource: Mapping[str, str], spans: Iterable[Span]) -> bytes:
    """Return the body of one export."""
    scope = _ScopeSpans(_Scope(), list(spans))
    return msgspec.json.encode(_Export((_ResourceSpans(_Resource(attributes(resource)), (scope,)),)))


def _value(value: str | float) -> _Value:
    # A bool is an int to Python, so it is asked first.
    match value:
        case bool():
            return _Value(bool_value=value)
        case int():
            return _Value(int_value=str(value))
        case float():
            return _Value(double_value=value)
        case str():
            return _Value(string_value=value[:_TEXT_LIMIT])
