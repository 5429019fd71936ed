from typing import Any

import pytest

from matrixinfer.api import names
from matrixinfer.model_controller.drift import has_drifted, holds, with_revision

CHILD: dict[str, Any] = {
    "metadata": {"name": "c", "labels": {"a": "1"}},
    "spec": {"ports": [{"name": "http", "port": 1}], "argv": ["a", "b"], "on": True, "count": 1},
}


def test_an_object_with_more_than_we_set_holds():
    live = {
        "metadata": {"name": "c", "labels": {"a": "1", "b": "2"}, "uid": "u"},
        "spec": {**CHILD["spec"], "ports": [{"name": "x"}, {"name": "http", "port": 1, "protocol": "TCP"}], "new": 1},
    }
    assert holds(live, CHILD)
    assert not has_drifted(live, CHILD)


@pytest.mark.parametrize(
    "change",
    [
        {"ports": [{"name": "http", "port": 2}]},
        {"ports": []},
        {"argv": ["b", "a"]},
        {"argv": ["a", "b", "c"]},
        {"argv": "ab"},
        {"on": 1},
        {"count": True},
        {"count": None},
    ],
)
def test_a_changed_field_of_ours_is_drift(change: dict[str, Any]):
    assert has_drifted({**CHILD, "spec": {**CHILD["spec"], **change}}, CHILD)


def test_a_missing_object_is_drift():
    assert has_drifted(None, CHILD)


def test_the_revision_names_everything_else():
    first, second = with_revision(CHILD), with_revision({**CHILD, "spec": {}})
    assert first["metadata"]["labels"][names.MODEL_REVISION] != second["metadata"]["labels"][names.MODEL_REVISION]
    assert first["metadata"]["labels"]["a"] == "1"
    assert "labels" in CHILD["metadata"]
    assert names.MODEL_REVISION not in CHILD["metadata"]["labels"]


def test_a_field_that_we_no_longer_set_is_drift_by_revision():
    before, after = with_revision(CHILD), with_revision({**CHILD, "spec": {"on": True}})
    assert has_drifted(before, after)


@pytest.mark.parametrize("name", ["rules", "targetModels", "fallbacks"])
def test_an_element_too_many_is_drift_where_order_is_meaning(name: str):
    """Whoever puts a rule before ours takes all of the traffic."""
    ours = {"spec": {name: [{"name": "default", "weight": 1}]}}
    hijacked = {"spec": {name: [{"name": "hijack"}, {"name": "default", "weight": 1}]}}
    assert has_drifted(hijacked, ours)
    assert not has_drifted({"spec": {name: [{"name": "default", "weight": 1, "extra": 2}]}}, ours)
