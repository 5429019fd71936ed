"""Whatever is sent, defaults are idempotent and validation answers; nothing raises."""

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.schema import TYPES, structural_schema
from matrixinfer.api.v1alpha1.validation import validate, validate_deletion, warnings

ROOT = Path(__file__).parents[2]
GOOD = [
    manifest
    for path in [*sorted((ROOT / "tests/data/manifests").glob("*.yaml")), ROOT / "tests/data/every-field.yaml"]
    for manifest in yaml.safe_load_all(path.read_text())
]
TEXTS = ["", "a", "A b", "vLLM", "s3://b/k", "5", "-1s", "30s", "999999h", "10%", "(", "é" * 70, "\x00", "x\n"]
NUMBERS = [0, 1, -1, 7, 100, 2**31, -(2**63), 2**70, 0.5, float("inf"), float("nan")]


class Maker:
    """Random JSON that fits a schema, except where it was decided that it should not."""

    def __init__(self, seed: int, damage: float) -> None:
        self.chance = random.Random(seed)
        self.damage = damage

    def anything(self, depth: int = 0) -> Any:
        pick = self.chance.randrange(6 if depth < 3 else 4)
        if pick == 4:
            return [self.anything(depth + 1) for _ in range(self.chance.randrange(3))]
        if pick == 5:
            return {self.chance.choice(TEXTS): self.anything(depth + 1) for _ in range(self.chance.randrange(3))}
        return [None, self.chance.choice([True, False]), self.chance.choice(NUMBERS), self.chance.choice(TEXTS)][pick]

    def fitting(self, schema: Mapping[str, Any]) -> Any:
        if self.chance.random() < self.damage:
            return self.anything()
        if schema.get("x-kubernetes-int-or-string"):
            return self.chance.choice([1, "1", "50%", "500m"])
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                least = schema.get("minItems", 0)
                return [self.fitting(schema["items"]) for _ in range(least + self.chance.randrange(3))]
            case "string":
                return self._text(schema)
            case "integer":
                least = schema.get("minimum", 0)
                return self.chance.randint(least, min(schema.get("maximum", least + 9), least + 9))
            case "boolean":
                return self.chance.choice([True, False])
            case _:
                return self.anything()

    def _text(self, schema: Mapping[str, Any]) -> str:
        if "enum" in schema:
            return str(self.chance.choice(schema["enum"]))
        candidates = ["a", "b-1", "30s", "s3://b/k", "pvc://c/p", "http://p", "h:1", "ModelInfer", "sha256:" + "0" * 64]
        return self.chance.choice([text for text in candidates if re.search(schema.get("pattern", ""), text)])

    def _object(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        if "properties" not in schema:
            return {
                name: self.fitting(schema.get("additionalProperties", {}))
                for name in ("a", "b")[: self.chance.randrange(3)]
            }
        made = {}
        for name, member in schema["properties"].items():
            # Pods are deep and wide: most of their members are left out, so that the rest of the object is reached.
            if name in schema.get("required", ()) or self.chance.random() < (0.5 if "description" in member else 0.05):
                made[name] = self.fitting(member)
        if self.chance.random() < self.damage:
            made[self.chance.choice(TEXTS)] = self.anything()
        return made

    def damaged(self, value: Any) -> Any:
        """A copy of a good manifest, with any place possibly replaced."""
        if self.chance.random() < self.damage:
            return self.anything()
        if isinstance(value, dict):
            return {name: self.damaged(member) for name, member in value.items()}
        return [self.damaged(element) for element in value] if isinstance(value, list) else value


def made(kind: str, seed: int, damage: float) -> Any:
    maker = Maker(seed, damage)
    if good := [manifest for manifest in GOOD if manifest["kind"] == kind and seed % 2]:
        return maker.damaged(maker.chance.choice(good))
    schema = structural_schema(kind)
    manifest = {name: maker.fitting(member) for name, member in schema["properties"].items()}
    manifest |= {"apiVersion": TYPES[kind].API_VERSION, "kind": kind, "metadata": {"name": "a"}}
    if maker.chance.random() < damage:
        manifest[maker.chance.choice([*manifest, "extra"])] = maker.anything()
    return manifest


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(sorted(TYPES)), seed=st.integers(0, 2**32), damage=st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_no_manifest_makes_anything_raise(kind: str, seed: int, damage: float):
    manifest = made(kind, seed, damage)
    once = with_defaults(manifest)
    assert repr(with_defaults(once)) == repr(once), "defaults are idempotent"
    errors = validate(manifest, made(kind, seed + 1, damage))
    assert all(error.message and error.fix for error in errors)
    assert repr(validate(once)) == repr(validate(manifest)), "defaults change no verdict"
    warnings(manifest)
    validate_deletion(manifest)
    if not errors:
        typed = TYPES[kind].model_validate(once)
        assert validate(typed.to_manifest()) == [], "what was accepted reads back as something acceptable"


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_some_made_manifests_are_valid(kind: str):
    assert any(not validate(made(kind, seed, 0.0)) for seed in range(100)), "else the property above says nothing"


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_at_all_is_answered(value: Any):
    validate(value)
    warnings(value)
    with_defaults(value)
