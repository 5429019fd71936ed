"""What a structural schema refuses, fills in and drops."""

from typing import Any

import pytest

from .conftest import Wire, gadget

WRONG: list[tuple[dict[str, Any], set[tuple[str, str]]]] = [
    ({"size": "big"}, {("spec.size", "FieldValueTypeInvalid")}),
    ({"size": 0}, {("spec.size", "FieldValueInvalid")}),
    ({"size": 11}, {("spec.size", "FieldValueInvalid")}),
    ({"colour": "blue"}, {("spec.colour", "FieldValueNotSupported")}),
    ({"tag": "ABC"}, {("spec.tag", "FieldValueInvalid")}),
    ({"tag": "abcdef"}, {("spec.tag", "FieldValueTooLong")}),
    ({"tag": "a"}, {("spec.tag", "FieldValueInvalid")}),
    ({"replicas": -1}, {("spec.replicas", "FieldValueInvalid"), (".spec.replicas", "FieldValueInvalid")}),
    ({"share": True}, {("spec.share", "FieldValueTypeInvalid")}),
    ({"when": "tomorrow"}, {("spec.when", "FieldValueTypeInvalid")}),
    ({"atoms": "x"}, {("spec.atoms", "FieldValueTypeInvalid")}),
    ({"finish": []}, {("spec.finish", "FieldValueTypeInvalid")}),
    ({"parts": [{}]}, {("spec.parts[0].name", "FieldValueRequired")}),
    ({"parts": [{"name": n} for n in "abcde"]}, {("spec.parts", "FieldValueTooMany")}),
    ({"parts": [{"name": "a"}, {"name": "a"}]}, {("spec.parts[1]", "FieldValueDuplicate")}),
    ({"marks": ["a", "a"]}, {("spec.marks[1]", "FieldValueDuplicate")}),
    ({"colour": "blue", "size": 11}, {("spec.size", "FieldValueInvalid"), ("spec.colour", "FieldValueNotSupported")}),
]


@pytest.mark.parametrize(("spec", "fields"), WRONG, ids=[str(spec)[:40] for spec, _ in WRONG])
async def test_a_wrong_field_is_named(wire: Wire, spec: dict[str, Any], fields: set[tuple[str, str]]) -> None:
    answer = await wire.post("gadgets", gadget(spec=spec))
    assert answer.refusal == (422, "Invalid")
    assert answer.fields == fields
    assert answer.body["details"]["kind"] == "Gadget"
    assert answer.body["message"].startswith('Gadget.conformance.example.org "a" is invalid: ')


async def test_a_missing_field_is_named(wire: Wire) -> None:
    body = gadget()
    del body["spec"]["size"]
    assert (await wire.post("gadgets", body)).fields == {("spec.size", "FieldValueRequired")}
    del body["spec"]
    assert (await wire.post("gadgets", body)).fields == {("spec", "FieldValueRequired")}


async def test_an_update_is_held_to_the_schema_too(wire: Wire) -> None:
    await wire.post("gadgets", gadget())
    assert (await wire.merge("gadgets/a", {"spec": {"size": 99}})).refusal == (422, "Invalid")
    assert (await wire.merge("gadgets/a/status", {"status": {"replicas": "x"}})).refusal == (422, "Invalid")
    assert (await wire.merge("gadgets/a/scale", {"spec": {"replicas": -1}})).refusal == (422, "Invalid")


async def test_defaults_appear_where_their_parent_is(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget(spec={"finish": {}, "parts": [{"name": "a"}]}))
    assert made.body["spec"] == {
        "size": 1,
        "replicas": 1,
        "finish": {"gloss": True},
        "parts": [{"name": "a", "count": 1}],
    }


async def test_unknown_fields_are_dropped_except_where_they_are_welcome(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget(spec={"typo": 1, "free": {"any": {"thing": [1]}}, "finish": {"x": 1}}))
    assert made.body["spec"] == {"size": 1, "replicas": 1, "free": {"any": {"thing": [1]}}, "finish": {"gloss": True}}


async def test_unknown_fields_are_refused_when_asked(wire: Wire) -> None:
    answer = await wire.post("gadgets", gadget(spec={"typo": 1}), fieldValidation="Strict")
    assert answer.refusal == (400, "BadRequest")
    assert 'unknown field "spec.typo"' in answer.body["message"]


async def test_null_is_absence_unless_it_is_allowed(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget(spec={"replicas": None, "note": None}))
    assert made.body["spec"] == {"size": 1, "replicas": 1, "note": None}


async def test_int_or_string_takes_both(wire: Wire) -> None:
    assert (await wire.post("gadgets", gadget("a", spec={"share": "25%"}))).body["spec"]["share"] == "25%"
    assert (await wire.post("gadgets", gadget("b", spec={"share": 3}))).body["spec"]["share"] == 3


async def test_a_body_that_is_no_object_is_a_bad_request(wire: Wire) -> None:
    assert (await wire.post("gadgets", ["not", "an", "object"])).code == 400
    wrong = gadget()
    wrong["kind"] = "Gizmo"
    assert (await wire.post("gadgets", wrong)).fields == {("kind", "FieldValueInvalid")}
    del wrong["kind"]
    assert (await wire.post("gadgets", wrong)).refusal == (400, "BadRequest")
    assert (await wire.post("configmaps", gadget())).refusal == (400, "BadRequest")
