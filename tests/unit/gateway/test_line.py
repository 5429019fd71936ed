"""Who is next."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.line import Line, Place, Turns

places = st.builds(Place.of, st.integers(0, 3), st.integers(-2, 2), st.floats(0, 100), st.integers(0, 10**6))
distinct_places = st.lists(places, max_size=40, unique_by=lambda place: place.number)


def line_of(waiting: Sequence[Place], limit: int = 1000) -> Line[Place]:
    line: Line[Place] = Line(limit)
    for place in waiting:
        line.join(place, place)
    return line


def served(line: Line[Place]) -> list[Place]:
    order = []
    while (place := line.next()) is not None:
        line.leave(place)
        line.turned()
        order.append(place)
    return order


@given(distinct_places, distinct_places)
def test_beat_84_the_order_is_total_and_does_not_depend_on_how_it_came_about(
    waiting: list[Place], others: list[Place]
) -> None:
    forwards, backwards = line_of(waiting), line_of(waiting[::-1])
    for place in others:
        if place not in forwards:
            forwards.join(place, place)
            forwards.leave(place)
    assert list(forwards) == list(backwards) == sorted(waiting)
    # Antisymmetric and complete: of two different places exactly one comes first.
    assert all((a < b) != (b < a) for a in waiting for b in waiting if a != b)


@given(distinct_places)
def test_everybody_is_served_once(waiting: list[Place]) -> None:
    assert sorted(served(line_of(waiting))) == sorted(waiting)


def test_the_routes_priority_goes_before_the_clients_and_among_equals_who_came_first() -> None:
    late_important = Place.of(5, 0, 9.0, 4)
    late_urgent, early, late = Place.of(0, 7, 3.0, 3), Place.of(0, 0, 1.0, 1), Place.of(0, 0, 2.0, 2)
    assert served(line_of([late, early, late_urgent, late_important])) == [late_important, late_urgent, early, late]


@given(st.integers(1, 60))
def test_nobody_starves_behind_ever_new_requests_of_a_higher_priority(ahead: int) -> None:
    humble = Place.of(0, 0, 50.0, 50)
    older = [Place.of(1, 0, float(i), i) for i in range(ahead) if i < 50]
    line = line_of([humble, *older])
    for turn in range(8 * (len(older) + 1)):
        line.join(Place.of(9, 0, 100.0 + turn, 100 + turn), Place.of(9, 0, 100.0 + turn, 100 + turn))
        place = line.next()
        assert place is not None
        line.leave(place)
        line.turned()
    assert humble not in line


def test_asking_twice_changes_nothing() -> None:
    line = line_of([Place.of(0, 0, float(i), i) for i in range(3)])
    assert [line.next() for _ in range(20)] == [line.next()] * 20


def test_a_full_line_makes_room_only_for_who_stands_before_its_last() -> None:
    first, last = Place.of(1, 0, 1.0, 1), Place.of(0, 0, 2.0, 2)
    line = line_of([last, first], limit=2)
    assert line.is_full
    assert next(line.behind(Place.of(0, 1, 3.0, 3))) == last
    assert list(line.behind(Place.of(0, 0, 3.0, 3))) == []


def test_leaving_twice_is_leaving_once() -> None:
    place = Place.of(0, 0, 1.0, 1)
    line = line_of([place])
    line.leave(place)
    line.leave(place)
    assert (len(line), line.next(), line.ahead_of(place)) == (0, None, 0)


def test_the_wait_is_told_once_enough_turns_were_seen() -> None:
    turns = Turns()
    for turn in range(16):
        turns.turned(turn * 2.0)
    assert turns.seconds(4) is None
    assert turns.retry_after(4, least=1, most=60) == 1
    turns.turned(32.0)
    assert turns.seconds(4) == pytest.approx(10.0)
    assert turns.retry_after(4, least=1, most=60) == 10
    assert turns.retry_after(400, least=1, most=60) == 60


def test_a_pause_in_which_nobody_waited_is_not_slowness() -> None:
    turns = Turns()
    for turn in range(20):
        turns.turned(turn * 1.0)
    turns.emptied()
    turns.turned(1000.0)
    turns.turned(1001.0)
    assert turns.seconds(0) == pytest.approx(1.0)
