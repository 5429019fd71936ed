"""How many requests may be sent again."""

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.budget import WINDOW_SECONDS, BudgetLimits, RetryBudget


def granted(budget: RetryBudget, now: float, asked: int = 1000) -> int:
    return sum(budget.spend(now) for _ in range(asked))


def test_retries_are_a_share_of_the_requests() -> None:
    budget = RetryBudget(BudgetLimits(share=0.2, least_per_second=0))
    for _ in range(500):
        budget.request(7.3)
    assert granted(budget, 7.4) == 100


def test_a_server_that_is_asked_seldom_may_repeat_a_few() -> None:
    assert granted(RetryBudget(BudgetLimits(share=0.2, least_per_second=3)), 5.0) == 3 * WINDOW_SECONDS


def test_what_lies_outside_the_window_counts_no_more() -> None:
    budget = RetryBudget(BudgetLimits(share=0.5, least_per_second=0))
    for _ in range(10):
        budget.request(100.9)
    assert granted(budget, 109.0) == 5
    assert granted(budget, 109.9) == 0
    assert granted(budget, 111.0) == 0
    for _ in range(4):
        budget.request(120.0)
    assert granted(budget, 120.0) == 2


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.4, 1.0, 3.7, 25.0]), st.booleans()), max_size=300))
def test_within_every_window_retries_stay_within_their_share(events: list[tuple[float, bool]]) -> None:
    limits = BudgetLimits(share=0.2, least_per_second=0.2)
    budget, now = RetryBudget(limits), 1000.0
    requests: list[float] = []
    retries: list[float] = []
    for pause, is_request in events:
        now += pause
        if is_request:
            budget.request(now)
            requests.append(now)
        elif budget.spend(now):
            retries.append(now)
        # By whole seconds, so what is counted reaches back between one second less than the window and the window.
        since = int(now) - WINDOW_SECONDS + 1
        allowed = max(limits.least_per_second * WINDOW_SECONDS, limits.share * sum(at >= since for at in requests))
        if retries and retries[-1] == now:
            assert sum(at >= since for at in retries) <= allowed + 1
