"""Quantities, counts in percent, selectors, revisions."""

from decimal import Decimal

import pytest

from matrixinfer.api import hashing, intstr, quantity, selectors
from matrixinfer.api.meta import LabelSelector


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (5, "5"),
        ("500m", "0.5"),
        ("2Gi", str(2 * 1024**3)),
        ("1e3", "1000"),
        ("+.5k", "500"),
        ("-1", "-1"),
        ("1E", "1e18"),
    ],
)
def test_a_quantity_is_its_number(text: int | str, number: str):
    assert quantity.parse(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "abc", "1 Gi", "1gi", "1ee3", "0x10"])
def test_a_text_that_is_no_quantity_is_refused(text: str):
    with pytest.raises(ValueError, match="not a quantity"):
        quantity.parse(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (98_776_000, "94.2 MiB"), (2**50, "1.0 PiB")]
)
def test_bytes_are_shown_for_people(count: int, text: str):
    assert quantity.format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "round_up", "count"),
    [(2, False, 2), ("34%", False, 1), ("34%", True, 2), ("0%", True, 0), ("100%", False, 3)],
)
def test_a_percentage_is_taken_of_the_total(value: int | str, round_up: bool, count: int):
    assert intstr.resolve(value, 3, round_up=round_up) == count


def test_a_text_that_is_no_percentage_is_refused():
    with pytest.raises(ValueError, match="neither a number nor a percentage"):
        intstr.resolve("half", 3, round_up=False)


@pytest.mark.parametrize(
    ("operator", "values", "labels", "takes"),
    [
        ("In", ["a", "b"], {"x": "a"}, True),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {}, True),
        ("NotIn", ["a"], {"x": "a"}, False),
        ("Exists", [], {"x": ""}, True),
        ("DoesNotExist", [], {"x": ""}, False),
        ("Near", [], {"x": ""}, False),
    ],
)
def test_an_expression_takes_labels(operator: str, values: list[str], labels: dict[str, str], takes: bool):
    selector = LabelSelector.model_validate(
        {"matchExpressions": [{"key": "x", "operator": operator, "values": values}]}
    )
    assert selectors.matches(selector, labels) is takes


def test_plain_labels_must_all_be_there():
    assert selectors.matches({"a": "1"}, {"a": "1", "b": "2"})
    assert not selectors.matches({"a": "1", "b": "3"}, {"a": "1", "b": "2"})
    assert selectors.format({"b": "2", "a": "1"}) == "a=1,b=2"


def test_a_revision_does_not_depend_on_the_order_of_keys():
    assert hashing.revision({"a": 1, "b": [1, 2]}) == hashing.revision({"b": [1, 2], "a": 1})
    assert hashing.revision({"a": 1}) != hashing.revision({"a": 2})


def test_a_revision_is_the_same_for_ever():
    assert hashing.revision({"model": "é", "n": 1}) == "c4976756dc"
