"""Checks and fills a manifest by its structural schema, as the API server does, with errors for people.

Owns shape only: types, bounds, patterns, enums, required members, unknown members, keys of list-maps, defaults.
Refuses to know any kind. Accepts any JSON whatsoever without raising.

The trap: the order of the API server is defaults first, then checks; a required member with a default may be absent.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from matrixinfer.api import durations, intstr, quantity
from matrixinfer.api.errors import FieldError
from matrixinfer.api.meta import Json
from matrixinfer.api.v1alpha1.model import (
    CACHE_URI_PATTERN,
    DNS_NAME_PATTERN,
    IMAGE_PATTERN,
    MODEL_NAME_PATTERN,
    MODEL_URI_PATTERN,
)

__all__ = ["check", "fill", "joined"]

_FIXES: Final[Mapping[str, str]] = {
    DNS_NAME_PATTERN: "use lower-case letters, digits and '-', beginning and ending with a letter or digit",
    MODEL_NAME_PATTERN: "use letters, digits and '-', '.', '_', '/', ':', beginning and ending with a letter or digit",
    MODEL_URI_PATTERN: "begin with hf://, s3://, obs://, pvc://, ms://, http://, https:// or file://, then the place",
    CACHE_URI_PATTERN: "begin with hostpath:// or pvc://, then the place",
    IMAGE_PATTERN: "an image reference has no spaces; write for example registry/name:tag",
    durations.PATTERN: "write a duration such as 30s, 1m30s or 500ms",
    quantity.PATTERN: "write a quantity such as 2, 500m or 1Gi; quote decimal numbers",
    intstr.PERCENT_PATTERN: "write a percentage such as 25%",
}
_INT_BOUNDS: Final = {"int32": 2**31 - 1, "int64": 2**63 - 1}
_NAMES: Final[Mapping[str, str]] = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_MOST_LISTED: Final = 12
_LONGEST_SHOWN: Final = 60


def joined(path: str, member: str) -> str:
    """Return the path of a member: `spec.name`, or `metadata.labels["a.b/c"]` where a dot would mislead."""
    if not _PLAIN_KEY.fullmatch(member):
        return f'{path}["{member}"]'
    return f"{path}.{member}" if path else member


def fill(value: Json, schema: Mapping[str, Any]) -> Json:
    """Return `value` with the defaults of `schema` filled in, in all objects that are present."""
    if isinstance(value, list) and "items" in schema:
        return [fill(element, schema["items"]) for element in value]
    if not isinstance(value, Mapping):
        return value
    members: Mapping[str, Any] = schema.get("properties", {})
    rest: Mapping[str, Any] | None = schema.get("additionalProperties")
    made: dict[str, Json] = {}
    for name, member in value.items():
        inner = members.get(name, rest)
        if member is None and inner is not None and "default" in inner:
            continue
        made[name] = member if inner is None else fill(member, inner)
    for name, inner in members.items():
        if name not in made and "default" in inner:
            made[name] = inner["default"]
    return made


def check(value: Json, schema: Mapping[str, Any], path: str = "") -> Iterator[FieldError]:
    """Yield an error for each place where `value` is not what `schema` allows."""
    if schema.get("x-kubernetes-int-or-string"):
        yield from _check_int_or_string(value, schema, path)
        return
    type_ = schema.get("type")
    if type_ is None:
        return
    if not _is_of(value, type_):
        yield FieldError(path, f"must be {_NAMES[type_]}, not {_shown(value)}", _type_fix(value, type_))
        return
    if isinstance(value, Mapping):
        yield from _check_object(value, schema, path)
    elif isinstance(value, list):
        yield from _check_list(value, schema, path)
    elif isinstance(value, str):
        yield from _check_text(value, schema, path)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from _check_number(value, schema, path)


def _is_of(value: Json, type_: str) -> bool:
    match type_:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)


def _type_fix(value: Json, type_: str) -> str:
    if value is None:
        return "leave the field out, or give it a value"
    if type_ == "string" and isinstance(value, int | float):
        return f"put it in quotes: {_quoted(value)}"
    if type_ == "integer" and isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
        return f"remove the quotes: {value}"
    if type_ == "array":
        return "begin each element with '- '"
    return f"write {_NAMES[type_]}"


def _quoted(value: object) -> str:
    return f'"{str(value).lower() if isinstance(value, bool) else value}"'


def _shown(value: Json) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _check_object(value: Mapping[str, Json], schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    members: Mapping[str, Any] = schema.get("properties", {})
    rest: Mapping[str, Any] | None = schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value and "default" not in members.get(name, {}):
            yield FieldError(joined(path, name), "is missing", _missing_fix(name, members.get(name, {})))
    for name, member in value.items():
        inner = members.get(str(name), rest)
        if inner is not None:
            yield from check(member, inner, joined(path, str(name)))
        elif members and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield FieldError(joined(path, str(name)), "is not a field of this object", _unknown_fix(str(name), members))


def _missing_fix(name: str, schema: Mapping[str, Any]) -> str:
    meaning = schema.get("description", "").rstrip(".")
    return f"set {name}: {meaning[:1].lower()}{meaning[1:]}" if meaning else f"set {name}"


def _unknown_fix(name: str, members: Mapping[str, Any]) -> str:
    if near := _nearest(name, members):
        return f"did you mean '{near}'?"
    listed = ", ".join(list(members)[:_MOST_LISTED])
    return f"remove it; the fields are {listed}{', …' if len(members) > _MOST_LISTED else ''}"


def _nearest(text: str, choices: Iterable[str]) -> str:
    """The choice that was probably meant, in whatever case it was written; empty when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(text[:_LONGEST_SHOWN].lower(), by_lower, n=1)
    return by_lower[near[0]] if near else ""


def _check_list(value: Sequence[Json], schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < least:
        yield FieldError(path, f"must have at least {least} element{'s' * (least != 1)}, not {len(value)}", "add one")
    if most is not None and len(value) > most:
        yield FieldError(path, f"must have at most {most} elements, not {len(value)}", "remove some")
    for index, element in enumerate(value):
        yield from check(element, schema.get("items", {}), f"{path}[{index}]")
    if schema.get("x-kubernetes-list-type") == "map":
        yield from _check_keys(value, schema["x-kubernetes-list-map-keys"], path)


def _check_keys(value: Sequence[Json], keys: Sequence[str], path: str) -> Iterator[FieldError]:
    seen: set[str] = set()
    for index, element in enumerate(value):
        if not isinstance(element, Mapping):
            continue
        identity = ", ".join(f"{key} {_shown(element.get(key))}" for key in keys)
        if identity in seen:
            yield FieldError(
                joined(f"{path}[{index}]", keys[0]),
                f"is used twice in this list ({identity})",
                f"give every element a different {' and '.join(keys)}",
            )
        seen.add(identity)


def _check_text(value: str, schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    choices: Sequence[str] | None = schema.get("enum")
    if choices is not None and value not in choices:
        near = _nearest(value, choices)
        hint = f"did you mean '{near}'? " if near else ""
        yield FieldError(path, f"cannot be {_shown(value)}", f"{hint}write one of {', '.join(choices)}")
    if len(value) < schema.get("minLength", 0):
        yield FieldError(path, "must not be empty", "give it a value")
    most = schema.get("maxLength")
    if most is not None and len(value) > most:
        yield FieldError(path, f"must be at most {most} characters long, not {len(value)}", "shorten it")
    pattern = schema.get("pattern")
    if pattern is not None and not _compiled(pattern).search(value):
        yield FieldError(path, f"cannot be {_shown(value)}", _FIXES.get(pattern, f"it must match {pattern}"))
    if schema.get("format") == "date-time" and not _is_time(value):
        yield FieldError(path, f"cannot be {_shown(value)}", "write a time such as 2026-01-31T12:00:00Z")


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _check_number(value: int, schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    bound = _INT_BOUNDS.get(schema.get("format", ""), 2**63 - 1)
    least, most = schema.get("minimum", -bound - 1), schema.get("maximum", bound)
    if least <= value <= most:
        return
    fault = f"must be at least {least}, not {value}" if value < least else f"must be at most {most}, not {value}"
    yield FieldError(path, fault, f"write a number from {least} to {most}")


def _check_int_or_string(value: Json, schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    if isinstance(value, str):
        yield from _check_text(value, schema, path)
    elif not isinstance(value, int) or isinstance(value, bool):
        fix = f"put it in quotes: {_quoted(value)}" if isinstance(value, float) else "write for example 1"
        yield FieldError(path, f"must be a whole number or a string, not {_shown(value)}", fix)
    else:
        yield from _check_number(value, {}, path)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # `$` of Python also matches before a final newline; the API server's does not.
    return re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern)
