"""Windows over noted values, against a naive reading of their definition."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.autoscaler.core.windows import (
    KEPT,
    Point,
    Series,
    appended,
    highest,
    highest_in_force,
    lowest,
    lowest_in_force,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def series(*points: tuple[int, int]) -> Series:
    return tuple(Point(START + timedelta(seconds=at), value) for at, value in points)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("now", "window", "expected"), [(10, 10, 5), (10, 9, 3), (10, 0, None), (30, 10, None), (20, 10, 3)]
)
def test_samples_count_from_their_moment_to_the_end_of_the_window(now: int, window: int, expected: int | None) -> None:
    assert highest(series((0, 5), (10, 3)), at(now), timedelta(seconds=window)) == expected


def test_the_lowest_sample() -> None:
    assert lowest(series((0, 5), (5, 2), (10, 3)), at(10), timedelta(seconds=6)) == 2


def test_a_value_in_force_at_the_start_of_the_window_counts() -> None:
    set_once = series((0, 9), (50, 4))
    assert highest_in_force(set_once, at(60), timedelta(seconds=15)) == 9
    assert highest_in_force(set_once, at(66), timedelta(seconds=15)) == 4
    assert lowest_in_force(set_once, at(60), timedelta(seconds=15)) == 4


def test_a_series_that_stopped_long_ago_says_nothing() -> None:
    assert highest_in_force(series((0, 9)), at(31), timedelta(seconds=15)) is None
    assert highest_in_force((), at(0), timedelta(seconds=15)) is None


def test_what_no_window_reaches_is_forgotten() -> None:
    kept = appended(series((0, 1)), START + KEPT + timedelta(seconds=1), 2)
    assert [point.value for point in kept] == [2]


moments = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9)), max_size=8, unique_by=lambda pair: pair[0])


@settings(max_examples=50)
@given(moments.map(sorted), st.integers(0, 120), st.integers(1, 60))
def test_in_force_is_what_held_at_some_second_of_the_window(
    points: list[tuple[int, int]], now: int, window: int
) -> None:
    points = [pair for pair in points if pair[0] <= now]
    if not points or points[-1][0] + 2 * window < now:
        expected: list[int] = []
    else:
        seconds = range(max(now - window, points[0][0]), now + 1)
        expected = [[value for moment, value in points if moment <= second][-1] for second in seconds]
        expected += [value for moment, value in points if now - window <= moment]
    span = timedelta(seconds=window)
    assert highest_in_force(series(*points), at(now), span) == max(expected, default=None)
    assert lowest_in_force(series(*points), at(now), span) == min(expected, default=None)
