"""Extremes over a span of time, over values that were noted now and then.

Two readings of the same points: as *samples* (a recommendation counts only at its moment) and as a *step function*
(replicas that were set stay in force until the next change). Series are short (one point a round, an hour at most),
so they are plain tuples and every question is a scan.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

__all__ = ["KEPT", "Point", "Series", "appended", "highest", "highest_in_force", "lowest", "lowest_in_force"]

KEPT: Final = timedelta(hours=1)
"""Twice the longest window that a policy may ask for."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value and its moment."""

    at: datetime
    value: int


Series: TypeAlias = tuple[Point, ...]
"""Points in order of time."""


def appended(series: Series, at: datetime, value: int) -> Series:
    """The series with one more point, and without what no window can reach any more."""
    return (*(point for point in series if point.at >= at - KEPT), Point(at, value))


def highest(series: Series, now: datetime, window: timedelta) -> int | None:
    """The highest sample of the window; `None` without one, or when the window is empty."""
    return _extreme(max, _samples(series, now, window))


def lowest(series: Series, now: datetime, window: timedelta) -> int | None:
    """The lowest sample of the window; `None` without one, or when the window is empty."""
    return _extreme(min, _samples(series, now, window))


def highest_in_force(series: Series, now: datetime, window: timedelta) -> int | None:
    """The highest value that was in force at any time of the window."""
    return _extreme(max, _in_force(series, now, window))


def lowest_in_force(series: Series, now: datetime, window: timedelta) -> int | None:
    """The lowest value that was in force at any time of the window."""
    return _extreme(min, _in_force(series, now, window))


def _extreme(choose: Callable[[Iterable[int]], int], values: list[int]) -> int | None:
    return choose(values) if values else None


def _samples(series: Series, now: datetime, window: timedelta) -> list[int]:
    return [point.value for point in series if window and point.at + window >= now]


def _in_force(series: Series, now: datetime, window: timedelta) -> list[int]:
    """Values of the window, and the one that held at its start; nothing when the last point is too old to trust."""
    if not window or not series or series[-1].at + 2 * window < now:
        return []
    held = [point.value for point in series if point.at + window <= now]
    return held[-1:] + [point.value for point in series if point.at + window > now]
