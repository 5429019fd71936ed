"""Structural schemas of CustomResourceDefinitions: prune, default, validate.

Covers what our kinds use: types, required, enum, pattern, bounds, formats int32/int64/date-time, int-or-string,
nullable, list maps and sets, value validations under allOf/anyOf/oneOf/not. CEL rules are not evaluated: the
conformance and integration tests on the real API server own those.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from matrixinfer.testkit.status_errors import Cause

__all__ = ["Schema", "defaulted", "problems", "pruned"]

Schema = Mapping[str, Any]
"""One node of an OpenAPI v3 structural schema."""

_ALWAYS_KEPT: Final = frozenset({"apiVersion", "kind", "metadata"})
_INT_BOUNDS: Final = {"int32": 2**31, "int64": 2**63}


def _preserves(schema: Schema) -> bool:
    return schema.get("x-kubernetes-preserve-unknown-fields", False) is True


def _takes_null(schema: Schema) -> bool:
    return schema.get("nullable", False) is True


def pruned(value: Any, schema: Schema, path: str = "", unknown: list[str] | None = None) -> Any:
    """Return `value` without the fields that the schema does not name, and without nulls where none are allowed.

    Dotted paths of what was dropped for being unknown are added to `unknown`.
    """
    if isinstance(value, dict):
        properties: Mapping[str, Schema] = schema.get("properties", {})
        additional = schema.get("additionalProperties")
        kept: dict[str, Any] = {}
        for name, member in value.items():
            here = f"{path}.{name}" if path else name
            child = properties.get(name)
            if child is None and isinstance(additional, Mapping):
                child = additional
            if child is None:
                if _preserves(schema) or additional is True or (not path and name in _ALWAYS_KEPT):
                    kept[name] = member
                elif unknown is not None:
                    unknown.append(here)
                continue
            if member is None and not _takes_null(child) and not _preserves(child):
                continue
            kept[name] = member if (not path and name == "metadata") else pruned(member, child, here, unknown)
        return kept
    if isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, Mapping):
            return [pruned(item, items, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    return value


class _DefaultsBelow:
    """Remembers which schema nodes have a default somewhere below them; nodes are kept alive, so ids stay unique."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Schema, bool]] = {}

    def __call__(self, schema: Schema) -> bool:
        known = self._known.get(id(schema))
        if known is None:
            known = self._known[id(schema)] = (schema, next(_defaults_below(schema), None) is not None)
        return known[1]


_has_defaults = _DefaultsBelow()


def _defaults_below(schema: Schema) -> Iterator[Schema]:
    if "default" in schema:
        yield schema
    for child in schema.get("properties", {}).values():
        yield from _defaults_below(child)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), Mapping):
            yield from _defaults_below(schema[name])


def defaulted(value: Any, schema: Schema) -> Any:
    """Return `value` with the schema's defaults filled in, at every level that is present."""
    if not _has_defaults(schema):
        return value
    if isinstance(value, dict):
        filled = dict(value)
        additional = schema.get("additionalProperties")
        properties: Mapping[str, Schema] = schema.get("properties", {})
        for name, child in properties.items():
            if name not in filled and "default" in child:
                filled[name] = orjson.loads(orjson.dumps(child["default"]))
        for name, member in filled.items():
            below = properties.get(name, additional)
            if isinstance(below, Mapping):
                filled[name] = defaulted(member, below)
        return filled
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [defaulted(item, schema["items"]) for item in value]
    return value


def _is_type(value: Any, name: str) -> bool:
    match name:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return whole and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return True


def _type_name(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")


def _shown(value: Any) -> str:
    return orjson.dumps(value).decode()


def _invalid(path: str, value: Any, detail: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {_shown(value)}: {path} in body {detail}", path)


def _number_problems(value: float, schema: Schema, path: str) -> Iterator[Cause]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value <= low if schema.get("exclusiveMinimum") else value < low):
        yield _invalid(path, value, f"should be greater than or equal to {low}")
    if high is not None and (value >= high if schema.get("exclusiveMaximum") else value > high):
        yield _invalid(path, value, f"should be less than or equal to {high}")
    bound = _INT_BOUNDS.get(str(schema.get("format")))
    if bound and not -bound <= value < bound:
        yield _invalid(path, value, f"must be of type {schema['format']}")
    if schema.get("multipleOf") and value % schema["multipleOf"]:
        yield _invalid(path, value, f"should be a multiple of {schema['multipleOf']}")


def _is_date_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return "T" in text


def _string_problems(value: str, schema: Schema, path: str) -> Iterator[Cause]:
    if len(value) < schema.get("minLength", 0):
        yield _invalid(path, value, f"should be at least {schema['minLength']} chars long")
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield Cause("FieldValueTooLong", f"Too long: may not be more than {schema['maxLength']} bytes", path)
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield _invalid(path, value, f"should match '{schema['pattern']}'")
    if schema.get("format") == "date-time" and not _is_date_time(value):
        message = f"Invalid value: {_shown(value)}: {path} in body must be of type date-time: {_shown(value)}"
        yield Cause("FieldValueTypeInvalid", message, path)


def _item_identity(item: Any, schema: Schema, keys: Sequence[str]) -> str:
    properties = schema.get("items", {}).get("properties", {})
    return _shown({k: item.get(k, properties.get(k, {}).get("default")) for k in keys} if keys else item)


def _list_problems(value: list[Any], schema: Schema, path: str) -> Iterator[Cause]:
    if len(value) < schema.get("minItems", 0):
        yield _invalid(path, len(value), f"should have at least {schema['minItems']} items")
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield Cause("FieldValueTooMany", f"Too many: {len(value)}: must have at most {schema['maxItems']} items", path)
    kind = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys", ()) if kind == "map" else ()
    if kind in ("map", "set"):
        seen: set[str] = set()
        for index, item in enumerate(value):
            if keys and not isinstance(item, dict):
                continue
            identity = _item_identity(item, schema, keys)
            if identity in seen:
                yield Cause("FieldValueDuplicate", f"Duplicate value: {identity}", f"{path}[{index}]")
            seen.add(identity)
    items = schema.get("items")
    if isinstance(items, Mapping):
        for index, item in enumerate(value):
            yield from problems(item, items, f"{path}[{index}]")


def _object_problems(value: dict[str, Any], schema: Schema, path: str) -> Iterator[Cause]:
    for name in schema.get("required", ()):
        if name not in value:
            yield Cause("FieldValueRequired", "Required value", f"{path}.{name}" if path else name)
    if len(value) < schema.get("minProperties", 0):
        yield _invalid(path, len(value), f"should have at least {schema['minProperties']} properties")
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield Cause("FieldValueTooMany", f"Too many: must have at most {schema['maxProperties']} items", path)
    properties: Mapping[str, Schema] = schema.get("properties", {})
    additional = schema.get("additionalProperties")
    for name, member in value.items():
        child = properties.get(name, additional)
        if isinstance(child, Mapping):
            yield from problems(member, child, f"{path}.{name}" if path else name)


def _combined_problems(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    for part in schema.get("allOf", ()):
        yield from problems(value, part, path)
    if "anyOf" in schema and not any(_fits(value, part) for part in schema["anyOf"]):
        yield _invalid(path, value, "must validate at least one schema (anyOf)")
    if "oneOf" in schema and sum(_fits(value, part) for part in schema["oneOf"]) != 1:
        yield _invalid(path, value, "must validate one and only one schema (oneOf)")
    if "not" in schema and _fits(value, schema["not"]):
        yield _invalid(path, value, "must not validate the schema (not)")


def _fits(value: Any, schema: Schema) -> bool:
    return next(problems(value, schema, ""), None) is None


def problems(value: Any, schema: Schema, path: str = "") -> Iterator[Cause]:
    """Yield one cause for each way in which `value` breaks the schema."""
    if value is None and _takes_null(schema):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not (_is_type(value, "integer") or isinstance(value, str)):
            yield Cause(
                "FieldValueTypeInvalid",
                f'Invalid value: "{_type_name(value)}": {path} in body must be of type integer,string',
                path,
            )
            return
    elif "type" in schema and not _is_type(value, schema["type"]):
        found = _type_name(value)
        yield Cause(
            "FieldValueTypeInvalid",
            f'Invalid value: "{found}": {path} in body must be of type {schema["type"]}: "{found}"',
            path,
        )
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(_shown(choice) for choice in schema["enum"])
        yield Cause(
            "FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {supported}", path
        )
    if isinstance(value, str):
        yield from _string_problems(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_problems(value, schema, path)
    elif isinstance(value, list):
        yield from _list_problems(value, schema, path)
    elif isinstance(value, dict):
        yield from _object_problems(value, schema, path)
    yield from _combined_problems(value, schema, path)
