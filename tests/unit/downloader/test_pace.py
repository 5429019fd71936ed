"""As many connections as help, and fewer at once when the source asks for it."""

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.pace import Pace, first_pace, next_pace


def paced(capacity: float, each: float, most: int = 64, ticks: int = 60) -> Pace:
    """The pace after a while, against a source that gives `each` per connection up to `capacity`."""
    pace = Pace(4)
    for _ in range(ticks):
        pace = next_pace(pace, min(capacity, pace.width * each), pushed_back=False, busy=False, most=most)
    return pace


def test_it_grows_to_what_a_slow_distant_store_needs() -> None:
    assert paced(capacity=1e9, each=50e6).width >= 18


def test_it_stays_small_where_few_connections_fill_the_line() -> None:
    assert paced(capacity=1e9, each=500e6).width <= 6


def test_it_begins_with_a_connection_for_each_core_and_four_where_they_are_few() -> None:
    assert [first_pace(cores, 32).width for cores in (0.25, 1, 2, 4, 16, 96)] == [1, 2, 4, 4, 16, 32]


def test_while_it_helps_it_doubles() -> None:
    pace = first_pace(2, 64)
    widths = []
    for _ in range(4):
        pace = next_pace(pace, pace.width * 1e6, pushed_back=False, busy=False, most=64)
        widths.append(pace.width)
    assert widths == [8, 16, 32, 64]


def test_a_doubling_that_did_not_help_is_taken_back_and_was_the_last() -> None:
    pace = first_pace(2, 64)
    for rate in (4e6, 8e6, 8e6):
        pace = next_pace(pace, rate, pushed_back=False, busy=False, most=64)
    assert pace.width == 8
    assert not pace.doubling


def test_it_never_exceeds_the_limit() -> None:
    assert paced(capacity=1e12, each=1e6, most=16).width == 16


def test_it_does_not_grow_while_the_processor_is_the_limit() -> None:
    pace = Pace(4)
    for rate in range(1, 50):
        pace = next_pace(pace, float(rate), pushed_back=False, busy=True, most=64)
    assert pace.width == 4


def test_a_source_that_pushes_back_is_given_half_and_then_left_alone() -> None:
    pushed = next_pace(Pace(16), 1e9, pushed_back=True, busy=False, most=64)
    assert pushed.width == 8
    assert next_pace(pushed, 1e9, pushed_back=False, busy=False, most=64).width == 8


@given(st.lists(st.tuples(st.floats(0, 1e12), st.booleans(), st.booleans()), max_size=60), st.integers(1, 64))
def test_the_width_stays_within_its_bounds(history: list[tuple[float, bool, bool]], most: int) -> None:
    pace = Pace(min(4, most))
    for rate, pushed_back, busy in history:
        pace = next_pace(pace, rate, pushed_back=pushed_back, busy=busy, most=most)
        assert 1 <= pace.width <= most


def test_what_is_allowed_no_more_is_given_up_at_once_and_taken_again_later() -> None:
    pace = next_pace(Pace(16, doubling=True), 1e9, pushed_back=False, busy=False, most=3)
    assert pace.width == 3
    assert next_pace(Pace(16), 1e9, pushed_back=True, busy=False, most=3).width == 3
    assert next_pace(pace, 2e9, pushed_back=False, busy=False, most=8).width > 3
