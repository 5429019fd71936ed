"""Hypothesis strategies for Kubernetes objects: valid ones from a schema, damaged ones from any manifest.

`manifests` follows the structural schema only; CEL rules and webhooks may still refuse what it makes, which is what
most tests with it are about.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from matrixinfer.testkit.clock import rfc3339
from matrixinfer.testkit.kinds import KindSpec, crds_in
from matrixinfer.testkit.records import Object, copied
from matrixinfer.testkit.structural import Schema

__all__ = ["crd_schema", "json_values", "labels", "manifests", "mutations", "names", "values"]

_WORDS = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


def names() -> st.SearchStrategy[str]:
    """Names of objects (DNS labels)."""
    return _WORDS


def labels() -> st.SearchStrategy[dict[str, str]]:
    """Small label maps."""
    return st.dictionaries(_WORDS, _WORDS, max_size=3)


def json_values(*, max_leaves: int = 6) -> st.SearchStrategy[Any]:
    """Any JSON value."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=12),
    )
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3)
        ),
        max_leaves=max_leaves,
    )


def crd_schema(path: Path) -> Schema:
    """The schema of the stored version in a CRD file."""
    return _kind(path).schema


def _kind(path: Path) -> KindSpec:
    ((_, kind),) = crds_in(path)
    return kind


def manifests(crd: Path, *, namespace: str = "default") -> st.SearchStrategy[Object]:
    """Objects of the kind in a CRD file that its structural schema accepts, without status."""
    kind = _kind(crd)
    resource, spec = kind.resource, kind.schema["properties"]["spec"]
    return st.builds(
        lambda name, own_labels, body: {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": namespace, "labels": own_labels},
            "spec": body,
        },
        names(),
        labels(),
        values(spec),
    )


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that a structural schema accepts."""
    if schema.get("enum"):
        return st.sampled_from([copied(choice) for choice in schema["enum"]])
    if schema.get("x-kubernetes-int-or-string"):
        return _int_or_string(schema)
    match schema.get("type"):
        case "object":
            return _objects(schema)
        case "array":
            return _arrays(schema)
        case "string":
            return _strings(schema)
        case "integer":
            return _integers(schema)
        case "number":
            low, high = schema.get("minimum", -1000), schema.get("maximum", 1000)
            return st.floats(low, high, allow_nan=False)
        case "boolean":
            return st.booleans()
        case _:
            return json_values()


def _int_or_string(schema: Schema) -> st.SearchStrategy[Any]:
    percentages = st.integers(0, 100).map(lambda percent: f"{percent}%")
    matching = _strings(schema) if "pattern" in schema else percentages
    return st.one_of(st.integers(0, 100), matching)


def _objects(schema: Schema) -> st.SearchStrategy[Object]:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    additional = schema.get("additionalProperties")
    if not properties and isinstance(additional, Mapping):
        low, high = schema.get("minProperties", 0), schema.get("maxProperties", 3)
        return st.dictionaries(_WORDS, values(additional), min_size=low, max_size=min(high, low + 3))
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: values(child) for name, child in properties.items() if name in required},
        optional={name: values(child) for name, child in properties.items() if name not in required},
    )


def _arrays(schema: Schema) -> st.SearchStrategy[list[Any]]:
    low = schema.get("minItems", 0)
    high = min(schema.get("maxItems", low + 3), low + 3)
    keys: Sequence[str] = schema.get("x-kubernetes-list-map-keys", ())
    items = values(schema.get("items", {}))
    if keys:
        defaults = schema["items"].get("properties", {})
        return st.lists(items, min_size=low, max_size=high, unique_by=lambda item: _identity(item, keys, defaults))
    if schema.get("x-kubernetes-list-type") == "set" or schema.get("uniqueItems"):
        return st.lists(items, min_size=low, max_size=high, unique_by=repr)
    return st.lists(items, min_size=low, max_size=high)


def _identity(item: Mapping[str, Any], keys: Sequence[str], defaults: Mapping[str, Schema]) -> tuple[str, ...]:
    return tuple(repr(item.get(key, defaults.get(key, {}).get("default"))) for key in keys)


def _strings(schema: Schema) -> st.SearchStrategy[str]:
    if schema.get("format") == "date-time":
        return st.integers(0, 2**32).map(lambda seconds: rfc3339(datetime.fromtimestamp(seconds, UTC)))
    low = schema.get("minLength", 0)
    high = min(schema.get("maxLength", low + 20), low + 20)
    if "pattern" not in schema:
        return st.text(st.characters(codec="ascii", min_codepoint=32), min_size=low, max_size=high)
    limit = schema.get("maxLength", 10_000)
    pattern: str = schema["pattern"]
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: low <= len(text) <= limit)


def _integers(schema: Schema) -> st.SearchStrategy[int]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and schema.get("exclusiveMinimum"):
        low += 1
    if high is not None and schema.get("exclusiveMaximum"):
        high -= 1
    bound = 2**31 if schema.get("format") != "int64" else 2**53
    return st.integers(-bound if low is None else int(low), bound - 1 if high is None else int(high))


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, Mapping):
        for name, member in value.items():
            found += _places(member, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _places(item, (*path, index))
    return found


def _damaged(manifest: Object, path: tuple[str | int, ...], how: str, value: Any) -> Object:
    result = copied(manifest)
    parent: Any = result
    for step in path[:-1]:
        parent = parent[step]
    last = path[-1]
    match how:
        case "remove":
            del parent[last]
        case "rename" if isinstance(last, str):
            parent[last + "x"] = parent.pop(last)
        case "wrap":
            parent[last] = [parent[last]]
        case _:
            parent[last] = value
    return result  # type: ignore[no-any-return]  # copied keeps the type


def mutations(manifest: Mapping[str, Any], *, below: str = "spec") -> st.SearchStrategy[Object]:
    """The manifest with one random damage below a member: something removed, misspelt, wrapped or replaced."""
    whole: Object = copied(manifest)
    places = [(below, *path) for path in _places(whole.get(below))] or [(below,)]
    return st.builds(
        lambda path, how, value: _damaged(whole, path, how, value),
        st.sampled_from(places),
        st.sampled_from(("remove", "rename", "wrap", "replace")),
        json_values(),
    )
