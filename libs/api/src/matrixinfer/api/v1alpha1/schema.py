"""The structural schema of each kind, made from its type: what CRDs, defaults and validation share.

Owns the translation from pydantic's JSON schema to the subset that a CustomResourceDefinition takes: references
inlined, nulls gone, formats named, core types filled in, CEL attached. Refuses to hold any rule of its own.

The trap: defaults are applied inside objects that are present, never by making an object; and nothing under `status`
has a default, because a default there would be a statement that nobody made.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from matrixinfer.api.meta import ApiObject, JsonObject
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicy, AutoscalingPolicyBinding
from matrixinfer.api.v1alpha1.cel import RULES
from matrixinfer.api.v1alpha1.core import MARKER
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.modelinfer import ModelInfer
from matrixinfer.api.v1alpha1.modelroute import ModelRoute
from matrixinfer.api.v1alpha1.modelserver import ModelServer
from matrixinfer.api.v1alpha1.modelversion import ModelVersion

__all__ = ["TYPES", "structural_schema"]

TYPES: Final[Mapping[str, type[ApiObject]]] = {
    type_.KIND: type_
    for type_ in (
        Model,
        ModelVersion,
        AutoscalingPolicy,
        AutoscalingPolicyBinding,
        ModelInfer,
        ModelServer,
        ModelRoute,
    )
}
"""The type of each kind."""

_KEPT: Final = (
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)


@cache
def structural_schema(kind: str) -> JsonObject:
    """Return the `openAPIV3Schema` of a kind. The value is shared: do not edit it.

    Raises:
        KeyError: not one of our kinds.
    """
    type_ = TYPES[kind]
    document = type_.model_json_schema(by_alias=True, mode="validation")
    definitions = document["$defs"]
    spec = _translated(document["properties"]["spec"], definitions)
    status = _without_defaults(_translated(document["properties"]["status"], definitions))
    return {
        "description": document["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Group and version of this form of the object."},
            "kind": {"type": "string", "description": "The kind of the object."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }


def _translated(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> JsonObject:
    if MARKER in node:
        return {**_described(node), **_core_types()[node[MARKER]]}
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        return {**_named(name, definitions), **_described(node), **_default(node), **_extensions(node)}
    choices = [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) == 1:
        return {**_translated(choices[0], definitions), **_described(node), **_default(node), **_extensions(node)}
    return {**_described(node), **_plain(node, definitions), **_default(node), **_extensions(node)}


def _named(name: str, definitions: Mapping[str, Any]) -> JsonObject:
    made = _translated(definitions[name], definitions)
    if name in RULES:
        made["x-kubernetes-validations"] = [rule.as_json() for rule in RULES[name]]
    return made


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> JsonObject:
    made: JsonObject = {key: node[key] for key in _KEPT if key in node}
    if "anyOf" in node:
        made["anyOf"] = node["anyOf"]
    if made.get("type") == "integer":
        made.setdefault("format", "int32")
    if "items" in node:
        made["items"] = _translated(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = _translated(node["additionalProperties"], definitions)
    if "properties" in node:
        made["properties"] = {name: _translated(value, definitions) for name, value in node["properties"].items()}
    if node.get("required"):
        made["required"] = list(node["required"])
    return made


def _described(node: Mapping[str, Any]) -> JsonObject:
    return {"description": " ".join(node["description"].split())} if "description" in node else {}


def _default(node: Mapping[str, Any]) -> JsonObject:
    value = node.get("default")
    return {"default": value} if isinstance(value, str | int | bool) else {}


def _extensions(node: Mapping[str, Any]) -> JsonObject:
    return {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}


def _without_defaults(node: JsonObject) -> JsonObject:
    made = {key: value for key, value in node.items() if key != "default"}
    if "properties" in made:
        made["properties"] = {name: _without_defaults(value) for name, value in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = _without_defaults(made[key])
    return made


@cache
def _core_types() -> JsonObject:
    text = resources.files("matrixinfer.api.v1alpha1").joinpath("core_schema.json").read_text(encoding="utf-8")
    types: JsonObject = json.loads(text)["types"]
    return {name: _inlined(node, types) for name, node in types.items()}


def _inlined(node: Mapping[str, Any], types: Mapping[str, Any]) -> JsonObject:
    if "$ref" in node:
        return _inlined({**types[node["$ref"]], **{k: v for k, v in node.items() if k != "$ref"}}, types)
    return dict(_inlined_members(node, types))


def _inlined_members(node: Mapping[str, Any], types: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key == "properties":
            yield key, {name: _inlined(member, types) for name, member in value.items()}
        elif key in ("items", "additionalProperties"):
            yield key, _inlined(value, types)
        else:
            yield key, value
