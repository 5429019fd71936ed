"""Strategies make what they say: values that a schema accepts, and damaged ones."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matrixinfer.testkit.strategies import crd_schema, json_values, mutations, values
from matrixinfer.testkit.structural import problems

CRDS = sorted((Path(__file__).parents[3] / "crds").glob("*_*.yaml"))
GADGETS = crd_schema(Path(__file__).parents[2] / "conformance" / "gadgets.yaml")["properties"]["spec"]


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(values(GADGETS))
def test_values_of_a_schema_satisfy_it(value: Any) -> None:
    assert list(problems(value, GADGETS)) == []


@pytest.mark.parametrize("crd", CRDS, ids=lambda path: path.stem)
def test_every_kind_of_ours_has_valid_values(crd: Path) -> None:
    spec = crd_schema(crd)["properties"]["spec"]

    @settings(max_examples=1, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(values(spec))
    def accepted(value: Any) -> None:
        assert list(problems(value, spec)) == []

    accepted()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_mutation_leaves_the_original_alone(data: st.DataObject) -> None:
    manifest = {"kind": "X", "spec": {"a": [{"b": 1}], "c": "d"}}
    damaged = data.draw(mutations(manifest))
    assert manifest == {"kind": "X", "spec": {"a": [{"b": 1}], "c": "d"}}
    assert damaged["kind"] == "X"


@settings(max_examples=30, deadline=None)
@given(json_values())
def test_json_values_are_json(value: Any) -> None:
    assert isinstance(value, dict | list | str | int | float | bool | None)
