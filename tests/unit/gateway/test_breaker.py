"""Who is left out, for how long, and how one comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.breaker import (
    BreakerPolicy,
    Cause,
    Ejection,
    Standing,
    Suspect,
    eject,
    is_tripped,
    left_out,
    standing,
)
from matrixinfer.gateway.core.outliers import OutlierPolicy, Outliers, Tally, judge

POLICY = BreakerPolicy(failures=3, base_seconds=10, most_seconds=60, most_percent=50)


def suspect(uid: str = "a", *, until: float = 100, proved: float = 0, tried: float = 0) -> Suspect:
    return Suspect(uid, Ejection(until, 1, Cause.FAILURES), proved, tried)


# -- failures in a row --------------------------------------------------------------------------------------------


def test_failures_in_a_row_add_up_over_the_workers() -> None:
    assert is_tripped([(2, 5.0), (1, 6.0)], 0, POLICY)
    assert not is_tripped([(2, 5.0), (0, 0.0)], 0, POLICY)


def test_an_answer_to_any_worker_ends_the_rows_that_began_before() -> None:
    assert not is_tripped([(2, 5.0), (1, 6.0)], 5.5, POLICY)


def test_zero_means_never() -> None:
    assert not is_tripped([(1000, 5.0)], 0, BreakerPolicy(failures=0))


# -- for how long -------------------------------------------------------------------------------------------------


def test_each_ejection_lasts_twice_as_long_up_to_a_limit() -> None:
    last, now, spans = None, 0.0, []
    for _ in range(5):
        last = eject(last, POLICY, Cause.FAILURES, now)
        assert last is not None
        spans.append(last.until - now)
        now = last.until + 1
    assert spans == [10, 20, 40, 60, 60]


def test_requests_that_fail_while_it_is_out_already_change_nothing() -> None:
    assert eject(Ejection(100, 1, Cause.FAILURES), POLICY, Cause.FAILURES, 99) is None


def test_an_endpoint_that_was_back_for_long_starts_from_the_beginning() -> None:
    third = Ejection(100, 3, Cause.FAILURES)
    assert eject(third, POLICY, Cause.FAILURES, 159) == (219, 4, Cause.FAILURES)
    assert eject(third, POLICY, Cause.FAILURES, 161) == (171, 1, Cause.FAILURES)


# -- how it comes back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "now", "expected"),
    [
        (suspect(until=100), 99, Standing.OUT),
        (suspect(until=100), 100, Standing.ON_TRIAL),
        (suspect(until=100, proved=99), 5000, Standing.ON_TRIAL),
        (suspect(until=100, proved=101), 102, Standing.IN),
    ],
)
def test_standing(seen: Suspect, now: float, expected: Standing) -> None:
    assert standing(seen, now) is expected


def test_on_trial_one_request_at_a_time_is_sent() -> None:
    assert left_out([suspect(until=100)], 2, 50, 101) == frozenset()
    assert left_out([suspect(until=100, tried=100.5)], 2, 50, 101) == {"a"}


# -- the floor ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200)), max_size=12),
    st.integers(0, 8),
    st.integers(0, 100),
    st.integers(0, 200),
)
def test_never_more_than_the_share_is_left_out(
    seen: list[tuple[int, int, int]], healthy: int, percent: int, now: int
) -> None:
    suspects = [suspect(f"u{i}", until=u, proved=a, tried=t) for i, (u, a, t) in enumerate(seen)]
    endpoints = len(suspects) + healthy
    out = left_out(suspects, endpoints, percent, now)
    assert len(out) <= endpoints * percent / 100
    assert out == left_out(suspects[::-1], endpoints, percent, now)


def test_those_stay_who_would_be_back_first() -> None:
    suspects = [suspect("soon", until=110), suspect("late", until=130), suspect("later", until=150)]
    assert left_out(suspects, 4, 50, 100) == {"late", "later"}
    assert left_out([suspect("only")], 1, 50, 0) == frozenset()


# -- outliers -----------------------------------------------------------------------------------------------------

FINE = Tally(answers=100, errors=0, timed=50, log_ttft=50 * -1.2)  # 0.3 s each


def test_an_endpoint_whose_answers_are_errors_is_found() -> None:
    assert judge({"a": FINE, "b": Tally(10, 6)}, OutlierPolicy()) == {"b": Cause.ERRORS}


def test_streams_that_break_off_without_an_answer_in_the_same_span_are_judged() -> None:
    """They began before the span; their pod then has errors and not one answer."""
    assert judge({"a": FINE, "b": Tally(0, 6)}, OutlierPolicy()) == {"b": Cause.ERRORS}


def test_errors_that_all_have_are_nobodys() -> None:
    bad = Tally(10, 6)
    assert judge({"a": bad, "b": bad, "c": bad}, OutlierPolicy()) == {}


def test_a_few_errors_are_an_accident() -> None:
    assert judge({"a": FINE, "b": Tally(4, 4)}, OutlierPolicy()) == {}


def test_an_endpoint_whose_first_tokens_come_much_later_is_found() -> None:
    slow = Tally(20, 0, 20, 20 * 1.1)  # 3 s each
    assert judge({"a": FINE, "b": FINE, "c": slow}, OutlierPolicy(ttft_factor=5)) == {"c": Cause.LATENCY}
    assert judge({"a": FINE, "b": FINE, "c": slow}, OutlierPolicy(ttft_factor=11)) == {}
    assert judge({"a": FINE, "b": FINE, "c": slow}, OutlierPolicy(ttft_factor=0)) == {}


def test_of_two_nobody_can_say_which_is_slow() -> None:
    assert judge({"a": FINE, "c": Tally(20, 0, 20, 20 * 1.1)}, OutlierPolicy()) == {}


def test_milliseconds_are_no_reason() -> None:
    quick, ten_times = Tally(20, 0, 20, 20 * -5.3), Tally(20, 0, 20, 20 * -3.0)  # 5 ms, 50 ms
    assert judge({"a": quick, "b": quick, "c": ten_times}, OutlierPolicy()) == {}


def test_only_what_was_counted_lately_is_judged() -> None:
    outliers = Outliers()
    past = {"a": Tally(1000), "b": Tally(1000, 900)}
    assert outliers.look(past, OutlierPolicy()) == {}
    assert outliers.look({"a": Tally(1010), "b": Tally(1010, 906)}, OutlierPolicy()) == {"b": Cause.ERRORS}
    # Found once, it starts afresh.
    assert outliers.look({"a": Tally(1010), "b": Tally(1010, 906)}, OutlierPolicy()) == {}


def test_sums_that_a_dead_worker_took_along_are_no_negative_errors() -> None:
    outliers = Outliers()
    outliers.look({"a": Tally(1000), "b": Tally(1000, 500)}, OutlierPolicy())
    outliers.look({"a": Tally(10), "b": Tally(10, 0)}, OutlierPolicy())
    assert outliers.look({"a": Tally(20), "b": Tally(20, 10)}, OutlierPolicy()) == {"b": Cause.ERRORS}
