"""Weights: shares, health, fallbacks, replay."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.split import choose_target, draw, weighted
from matrixinfer.gateway.core.types import Rule, Target

ONE, TWO, SPARE = Target("one", 90, 0), Target("two", 10, 1), Target("spare", 0, 2)
RULE = Rule("r", None, (ONE, TWO), (SPARE,))


def test_the_same_request_id_draws_the_same_number_and_salts_differ() -> None:
    assert draw("abc", "target") == draw("abc", "target")
    assert draw("abc", "target") != draw("abc", "tie-first")


@given(st.text(), st.text())
def test_a_draw_is_at_least_0_and_below_1(request_id: str, salt: str) -> None:
    assert 0 <= draw(request_id, salt) < 1


def test_shares_follow_the_weights() -> None:
    counts = Counter(choose_target(RULE, draw(f"r-{i}", "target"), lambda _: True) for i in range(4000))
    assert set(counts) == {ONE, TWO}
    assert 0.87 < counts[ONE] / 4000 < 0.93


def test_the_share_of_a_target_that_cannot_serve_goes_to_the_others() -> None:
    assert {choose_target(RULE, i / 100, lambda t: t is TWO) for i in range(100)} == {TWO}


def test_fallbacks_serve_only_when_no_target_can() -> None:
    assert choose_target(RULE, 0.5, lambda t: t is SPARE) is SPARE
    assert choose_target(RULE, 0.5, lambda _: False) is None


def test_a_weight_of_zero_takes_nothing_even_alone() -> None:
    rule = Rule("r", None, (Target("off", 0, 0),))
    assert choose_target(rule, 0.0, lambda _: True) is None
    assert choose_target(Rule("r", None, ()), 0.0, lambda _: True) is None


@given(
    st.lists(st.integers(0, 100), max_size=16), st.floats(0, 1, exclude_max=True, allow_nan=False, allow_infinity=False)
)
def test_a_position_has_a_weight_above_zero(weights: list[int], number: float) -> None:
    position = weighted(weights, number)
    assert (position is None) == (sum(weights) == 0)
    assert position is None or weights[position] > 0
