"""Field ownership and server-side apply, as structured-merge-diff does it.

A path is a tuple of encoded elements (`f:spec`, `k:{"name":"a"}`, `v:"x"`), a field set a frozenset of paths. The
schema says which lists merge by keys; without one, maps merge member by member and lists are atomic.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from matrixinfer.testkit.structural import Schema

__all__ = ["FieldSet", "Path", "changed_paths", "decode", "dotted", "encode", "field_set", "merged", "without_dropped"]

Path = tuple[str, ...]
"""Where a field is."""

FieldSet = frozenset[Path]
"""Fields that one manager owns."""

_EMPTY: Final[Schema] = {}
_MEMBER: Final = ("member of a list or map",)
_GONE: Final = object()


def _encoded(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _child(schema: Schema, name: str) -> tuple[Schema, bool]:
    """The schema of a member and whether the schema names it."""
    named = schema.get("properties", _EMPTY).get(name)
    if named is not None:
        return named, True
    additional = schema.get("additionalProperties")
    return (additional if isinstance(additional, Mapping) else _EMPTY), False


def _item_key(item: Any, schema: Schema) -> str:
    properties = schema.get("items", _EMPTY).get("properties", _EMPTY)
    keys = {
        key: item.get(key, properties.get(key, _EMPTY).get("default")) for key in schema["x-kubernetes-list-map-keys"]
    }
    return "k:" + _encoded({key: value for key, value in keys.items() if value is not None})


def _is_granular_map(value: Any, schema: Schema) -> bool:
    return isinstance(value, dict) and schema.get("x-kubernetes-map-type") != "atomic"


def _list_type(value: Any, schema: Schema) -> str:
    if not isinstance(value, list):
        return ""
    kind = str(schema.get("x-kubernetes-list-type", "atomic"))
    if kind == "map" and not all(isinstance(item, dict) for item in value):
        return "atomic"
    return kind


def _flatten(value: Any, schema: Schema, path: Path, out: dict[Path, Any], *, containers: bool) -> None:
    if _is_granular_map(value, schema):
        if path and (containers or not value):
            out[path] = _MEMBER
        for name, member in value.items():
            child, named = _child(schema, name)
            here = (*path, "f:" + name)
            if not named or member is None:
                out[here] = _MEMBER
            _flatten(member, child, here, out, containers=containers)
        return
    kind = _list_type(value, schema)
    if kind not in ("map", "set"):
        out[path] = value
        return
    if containers:
        out[path] = _MEMBER
    for item in value:
        if kind == "set":
            out[(*path, "v:" + _encoded(item))] = _MEMBER
            continue
        here = (*path, _item_key(item, schema))
        out[here] = _MEMBER
        _flatten(item, schema.get("items", _EMPTY), here, out, containers=containers)


def field_set(value: Any, schema: Schema) -> FieldSet:
    """Return every field that an applied configuration sets."""
    out: dict[Path, Any] = {}
    _flatten(value, schema, (), out, containers=False)
    return frozenset(out)


def changed_paths(old: Any, new: Any, schema: Schema) -> tuple[FieldSet, FieldSet]:
    """Return what was added or modified from `old` to `new`, what was removed; new maps and lists count too."""
    before: dict[Path, Any] = {}
    after: dict[Path, Any] = {}
    _flatten(old, schema, (), before, containers=True)
    _flatten(new, schema, (), after, containers=True)
    touched = frozenset(path for path, value in after.items() if path not in before or before[path] != value)
    return touched, frozenset(path for path in before if path not in after)


def _by_key(items: Iterable[Any], schema: Schema, *, as_set: bool) -> dict[str, Any]:
    return {("v:" + _encoded(item)) if as_set else _item_key(item, schema): item for item in items}


def _merged_list(live: list[Any], wanted: list[Any], schema: Schema, *, as_set: bool) -> list[Any]:
    """Merge item by item: the order of `wanted`, with items that only live keeps at their place among it."""
    ours, theirs = _by_key(wanted, schema, as_set=as_set), _by_key(live, schema, as_set=as_set)
    child = schema.get("items", _EMPTY)
    out: list[Any] = []
    queue = [key for key in theirs if key not in ours]
    live_order = {key: index for index, key in enumerate(theirs)}
    for key, item in ours.items():
        place = live_order.get(key)
        while place is not None and queue and live_order[queue[0]] < place:
            out.append(theirs[queue.pop(0)])
        out.append(merged(theirs[key], item, child) if key in theirs and not as_set else item)
    return out + [theirs[key] for key in queue]


def merged(live: Any, wanted: Any, schema: Schema) -> Any:
    """Return `live` with everything that `wanted` says."""
    if _is_granular_map(wanted, schema) and isinstance(live, dict):
        out = dict(live)
        for name, member in wanted.items():
            child, _ = _child(schema, name)
            out[name] = merged(live[name], member, child) if name in live else member
        return out
    kind = _list_type(wanted, schema)
    if kind in ("map", "set") and _list_type(live, schema) == kind:
        return _merged_list(live, wanted, schema, as_set=kind == "set")
    return wanted


def _prefixes(paths: Iterable[Path]) -> set[Path]:
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


class _Pruner:
    """Takes away what one manager owned before, no longer applies, and nobody else owns."""

    def __init__(self, before: FieldSet, owned: Iterable[Path]) -> None:
        self._before = before
        self._before_prefixes = _prefixes(before)
        self._owned = _prefixes(owned)

    def _is_dropped(self, path: Path, *, named: bool) -> bool:
        if path == ("f:metadata",) or path in self._owned:
            return False
        return path in self._before or (named and path in self._before_prefixes)

    def prune(self, value: Any, schema: Schema, path: Path = (), *, named: bool = False) -> Any:
        if path and self._is_dropped(path, named=named):
            return _GONE
        if path and path not in self._before_prefixes:
            return value
        if _is_granular_map(value, schema):
            out: dict[str, Any] = {}
            for name, member in value.items():
                child, is_named = _child(schema, name)
                kept = self.prune(member, child, (*path, "f:" + name), named=is_named)
                if kept is not _GONE:
                    out[name] = kept
            return out
        kind = _list_type(value, schema)
        if kind in ("map", "set"):
            child = schema.get("items", _EMPTY)
            keyed = _by_key(value, schema, as_set=kind == "set")
            pairs = [self.prune(item, child, (*path, key)) for key, item in keyed.items()]
            return [item for item in pairs if item is not _GONE]
        return value


def without_dropped(value: Any, schema: Schema, before: FieldSet, owned: Iterable[Path]) -> Any:
    """Return `value` without the fields in `before` that no longer are in `owned` (the union over all managers)."""
    return _Pruner(before, owned).prune(value, schema)


@lru_cache(maxsize=2048)
def encode(paths: FieldSet) -> bytes:
    """Return the set in the form of `fieldsV1`, as JSON bytes."""
    root: dict[str, Any] = {}
    inner = {path[:length] for path in paths for length in range(1, len(path))}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        if path in inner:
            node["."] = {}
    return orjson.dumps(root)


def decode(tree: Mapping[str, Any]) -> FieldSet:
    """Return the set that a `fieldsV1` object stands for."""
    out: set[Path] = set()

    def walk(node: Mapping[str, Any], path: Path) -> None:
        for element, below in node.items():
            if element == ".":
                out.add(path)
                continue
            here = (*path, element)
            if not below:
                out.add(here)
            walk(below, here)

    walk(tree, ())
    return frozenset(out)


def dotted(path: Path) -> str:
    """Return the path as conflict messages show it, e.g. `.spec.replicas`."""
    shown = ""
    for element in path:
        if element.startswith("f:"):
            shown += "." + element[2:]
        elif element.startswith("k:"):
            keys = orjson.loads(element[2:])
            shown += "[" + ",".join(f"{key}={orjson.dumps(value).decode()}" for key, value in keys.items()) + "]"
        else:
            shown += f"[{element[2:]}]"
    return shown
