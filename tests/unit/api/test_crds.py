"""The generated definitions: complete, small enough, and what is checked in."""

import json
from typing import Any

import pytest
from tools.crds import MOST_BYTES, definition, main, rendered

from matrixinfer.api.v1alpha1.cel import RULES
from matrixinfer.api.v1alpha1.kinds import ALL_KINDS, MODEL_INFER, Kind
from matrixinfer.api.v1alpha1.schema import TYPES, structural_schema


def nodes(schema: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [
        *schema.get("properties", {}).values(),
        *(schema[k] for k in ("items", "additionalProperties") if k in schema),
    ]
    return [schema, *(node for member in inner for node in nodes(member))]


def test_what_is_checked_in_is_what_is_generated():
    assert main(["--check"]) == 0


@pytest.mark.parametrize("name", sorted(rendered()))
def test_a_file_is_small_enough_for_kubectl_apply(name: str):
    assert len(rendered()[name].encode()) < MOST_BYTES


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.kind)
def test_a_definition_has_what_users_see(kind: Kind):
    made = definition(kind)
    version = made["spec"]["versions"][0]
    assert made["metadata"]["name"] == f"{kind.plural}.{kind.group}"
    assert made["spec"]["names"]["categories"] == ["matrixinfer"]
    assert made["spec"]["names"]["shortNames"]
    assert version["additionalPrinterColumns"][-1]["name"] == "Age"
    assert ("scale" in version["subresources"]) == (kind is MODEL_INFER)
    conditions = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_defaults_have_the_type_of_their_field(kind: str):
    python = {"integer": int, "string": str, "boolean": bool}
    for node in nodes(structural_schema(kind)):
        if "default" in node and "type" in node:
            assert type(node["default"]) is python[node["type"]], node


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_status_has_no_defaults(kind: str):
    assert not any("default" in node for node in nodes(structural_schema(kind)["properties"]["status"]))


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_field_of_ours_is_described(kind: str):
    spec = structural_schema(kind)["properties"]["spec"]
    assert all("description" in member for member in spec["properties"].values())


def test_every_rule_of_cel_reaches_a_definition():
    text = json.dumps([structural_schema(kind) for kind in TYPES])
    missing = [rule.rule for rules in RULES.values() for rule in rules if json.dumps(rule.rule) not in text]
    assert missing == []
