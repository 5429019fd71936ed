"""The choice of an endpoint."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.schedule.framework import Decision, Refused, View, decide
from matrixinfer.gateway.core.schedule.profiles import LEAST_LOADED
from matrixinfer.gateway.core.split import draw
from matrixinfer.gateway.core.types import Endpoint


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(i, f"p{i}", f"u{i}", f"10.0.0.{i}", 8000) for i in range(count)]


def chosen(
    load: list[int],
    *,
    size: list[int] | None = None,
    tried: frozenset[str] = frozenset(),
    limit: int | None = None,
    request_id: str = "r",
) -> str:
    view = View(endpoints(len(load)), load, size or [0] * len(load), tried, limit)
    decision = decide(LEAST_LOADED, view, partial(draw, request_id))
    return decision.endpoint.uid if isinstance(decision, Decision) else f"refused by {decision.filter!r}"


def test_the_least_loaded_endpoint_is_chosen() -> None:
    assert chosen([3, 1, 2]) == "u1"


def test_a_full_endpoint_is_never_picked() -> None:
    assert chosen([9, 8], limit=9) == "u1"
    assert chosen([9, 9], limit=9) == "refused by 'below-limit'"


def test_an_endpoint_that_failed_is_asked_again_only_when_there_is_no_other() -> None:
    assert chosen([0, 5], tried=frozenset({"u0"})) == "u1"
    assert chosen([0, 5], tried=frozenset({"u0", "u1"})) == "u0"


def test_no_endpoint_is_a_refusal_without_a_filter() -> None:
    assert chosen([]) == "refused by ''"


def test_equals_share_the_work() -> None:
    picked = {chosen([2] * 8, request_id=f"r{i}") for i in range(200)}
    assert picked == {f"u{i}" for i in range(8)}


def test_among_equals_the_one_with_less_prompt_to_read_wins_every_comparison() -> None:
    picked = [chosen([1, 1], size=[100_000, 10], request_id=f"r{i}") for i in range(50)]
    assert set(picked) == {"u1"}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.text(min_size=1))
def test_the_choice_is_a_minimum_and_can_be_replayed(load: list[int], request_id: str) -> None:
    first, second = chosen(load, request_id=request_id), chosen(load, request_id=request_id)
    assert first == second
    assert load[int(first[1:])] == min(load)


def test_a_decision_tells_who_was_removed_and_what_the_others_scored() -> None:
    view = View(endpoints(3), [0, 4, 1], [0, 0, 0], frozenset({"u0"}), 4)
    decision = decide(LEAST_LOADED, view, partial(draw, "r"))
    assert isinstance(decision, Decision)
    assert [(r.filter, r.positions) for r in decision.removals] == [("untried", (0,)), ("below-limit", (1,))]
    assert (decision.candidates, decision.scores, decision.picker) == ((2,), (0.5,), "best-of-two-among-ties")
    refused = decide(LEAST_LOADED, View(endpoints(1), [4], [0], limit=4), partial(draw, "r"))
    assert isinstance(refused, Refused)
    assert refused.removals[0].filter == "below-limit"
