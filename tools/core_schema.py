"""Trims the core types that our objects embed from what an API server publishes, into a file of libs/api.

    python -m tools.core_schema OPENAPI_V3_DOCUMENT

The document is the answer of `GET /openapi/v3/api/v1` (`kubectl get --raw`), or the same file of the Kubernetes source
tree. Descriptions and patch hints are dropped; quantities get their pattern; the metadata of embedded objects is cut
down to what a user may write. Run it by hand for a new version of Kubernetes; its output is checked in.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from matrixinfer.api import quantity

__all__ = ["main", "trimmed"]

TARGET: Final = Path(__file__).parent.parent / "libs/api/src/matrixinfer/api/v1alpha1/core_schema.json"

_ROOTS: Final = ("PodSpec", "EnvVar", "EnvFromSource", "Affinity", "ResourceRequirements", "Toleration")
_CORE: Final = "io.k8s.api.core.v1."
_KEPT: Final = (
    "type",
    "format",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
)
_ANY_OF: Final = [{"type": "integer"}, {"type": "string"}]
_SPECIAL: Final[dict[str, dict[str, Any]]] = {
    "Quantity": {"x-kubernetes-int-or-string": True, "anyOf": _ANY_OF, "pattern": quantity.PATTERN},
    "IntOrString": {"x-kubernetes-int-or-string": True, "anyOf": _ANY_OF},
    "Time": {"type": "string", "format": "date-time"},
    "ObjectMeta": {
        "type": "object",
        "properties": {
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            "finalizers": {"type": "array", "items": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "name": {"type": "string"},
            "namespace": {"type": "string"},
        },
    },
}


def trimmed(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the core types that our objects need, by short name, references kept as `{"$ref": short name}`."""
    schemas = document["components"]["schemas"]
    by_name = {name.rsplit(".", 1)[-1]: name for name in schemas if name.startswith((_CORE, "io.k8s.apimachinery."))}
    made: dict[str, dict[str, Any]] = {}
    waiting = list(_ROOTS)
    while waiting:
        name = waiting.pop()
        if name in made:
            continue
        made[name] = _SPECIAL.get(name) or _node(schemas[by_name[name]], waiting)
    return dict(sorted(made.items()))


def _node(node: dict[str, Any], waiting: list[str]) -> dict[str, Any]:
    reference = node.get("$ref") or (node["allOf"][0].get("$ref") if len(node.get("allOf", ())) == 1 else None)
    if reference:
        name = reference.rsplit(".", 1)[-1]
        waiting.append(name)
        extensions: dict[str, Any] = {key: node[key] for key in _KEPT if key in node}
        return {"$ref": name, **extensions}
    made: dict[str, Any] = {key: node[key] for key in _KEPT if key in node}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            made[key] = _node(node[key], waiting)
    if "properties" in node:
        made["properties"] = {name: _node(member, waiting) for name, member in sorted(node["properties"].items())}
    if made.get("x-kubernetes-list-type") == "map":
        made["items"] = _keys_given(node, made["items"])
    return made


def _keys_given(node: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """Mark a list's keys, for `_with_key_defaults`: a key of a list-map must be required or have a default."""
    return {**items, "x-keys": node["x-kubernetes-list-map-keys"]}


def _with_key_defaults(types: dict[str, dict[str, Any]], document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the keys of list-maps that are not required their default, in the type that the list holds."""
    keyed: dict[str, set[str]] = {}
    for node in types.values():
        _collect(node, keyed)
    for name, keys in keyed.items():
        type_ = types[name]
        for key in keys - set(type_.get("required", ())):
            published = document["components"]["schemas"][_CORE + name]["properties"][key]
            type_["properties"][key] = {**type_["properties"][key], "default": published.get("default", "")}
    return types


def _collect(node: dict[str, Any], keyed: dict[str, set[str]]) -> None:
    keys = node.pop("x-keys", None)
    if keys is not None:
        keyed.setdefault(node["$ref"], set()).update(keys)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            _collect(node[key], keyed)
    for member in node.get("properties", {}).values():
        _collect(member, keyed)


def main(argv: list[str]) -> int:
    """Write the file from the document named on the command line."""
    if len(argv) != 1:
        print("usage: python -m tools.core_schema OPENAPI_V3_DOCUMENT", file=sys.stderr)
        return 2
    document = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    types = _with_key_defaults(trimmed(document), document)
    version = document["info"]["version"]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(node, separators=(',', ':'))}" for name, node in types.items())
    TARGET.write_text(f'{{"source": "Kubernetes {version}",\n"types": {{\n{lines}\n}}}}\n', encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
