"""A Model with a typo, or with a value of the wrong form, in every field in turn gets an error that names the field."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.structural import joined
from matrixinfer.api.v1alpha1.validation import validate

ROOT = Path(__file__).parents[3]
MODEL: dict[str, Any] = yaml.safe_load((ROOT / "tests/data/every-field.yaml").read_text())
FREE = ("config", "headers", "limits", "requests", "nodeSelector")
"""Objects whose keys are the user's."""


def places(value: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every member of every object: (its container's steps, key, path)."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield value, key, joined(path, key)
            yield from places(member, joined(path, key))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from places(member, f"{path}[{index}]")


SPEC_PATHS = [path for _, _, path in places(MODEL) if path.startswith("spec.")]


def damaged(path: str, *, typo: bool) -> tuple[dict[str, Any], str]:
    """The Model with one place damaged, and the path that an error must name."""
    made = deepcopy(MODEL)
    container, key, _ = next(place for place in places(made) if place[2] == path)
    if typo:
        container[key + "x"] = container.pop(key)
        return made, path + "x"
    container[key] = 12.5 if not isinstance(container[key], int) else "many"
    return made, path


def is_free(path: str) -> bool:
    return any(f".{name}." in path or f".{name}[" in path for name in FREE)


def test_the_model_is_valid_and_sets_every_field():
    assert validate(MODEL) == []
    text = yaml.safe_dump(MODEL)
    missing = {
        (owner.__name__, field.alias)
        for owner in _types(Model.model_fields["spec"].annotation)
        for field in owner.model_fields.values()
        if f"{field.alias}:" not in text
    }
    assert missing == set()


def _types(owner: Any) -> Iterator[Any]:
    if hasattr(owner, "model_fields"):
        yield owner
        for field in owner.model_fields.values():
            yield from _types(field.annotation)
    for argument in getattr(owner, "__args__", ()):
        yield from _types(argument)


@pytest.mark.parametrize("path", [path for path in SPEC_PATHS if not is_free(path)])
def test_a_misspelt_field_is_named_with_the_right_spelling(path: str):
    made, wrong = damaged(path, typo=True)
    found = [error for error in validate(made) if error.path == wrong]
    assert len(found) == 1
    assert path.rsplit(".", 1)[-1] in found[0].fix


@pytest.mark.parametrize("path", [path for path in SPEC_PATHS if ".config" not in path])
def test_a_value_of_the_wrong_form_is_named(path: str):
    made, wrong = damaged(path, typo=False)
    assert wrong in [error.path for error in validate(made)]
