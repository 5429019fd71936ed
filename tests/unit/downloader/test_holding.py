"""A holder is overtaken when it is known to be dead, or showed no life for long enough on the waiter's own clock."""

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.holding import Holder, Observation, judge, observe

PATIENCE = 12.0


def judged(holder: Holder | None, *, alive: bool | None, stands_still: float = 0.0) -> int | None:
    seen = observe(None, holder, 0.0) if holder else None
    return judge(Observation(holder, alive), seen, stands_still, patience_seconds=PATIENCE)


def test_a_folder_without_a_holder_is_free() -> None:
    assert judged(None, alive=None) == 1


def test_a_holder_that_is_done_is_followed_at_once() -> None:
    assert judged(Holder(4, 9, released=True), alive=True) == 5


def test_a_holder_that_is_known_to_be_dead_is_followed_at_once() -> None:
    assert judged(Holder(4, 9), alive=False) == 5


def test_a_holder_that_is_known_to_live_is_never_overtaken() -> None:
    assert judged(Holder(4, 9), alive=True, stands_still=1e9) is None


def test_a_holder_elsewhere_is_overtaken_only_after_it_stood_still() -> None:
    assert judged(Holder(4, 9), alive=None, stands_still=PATIENCE - 0.1) is None
    assert judged(Holder(4, 9), alive=None, stands_still=PATIENCE) == 5


@given(st.lists(st.floats(0.1, PATIENCE - 0.1), min_size=1, max_size=30))
def test_a_holder_that_keeps_counting_is_never_overtaken(gaps: list[float]) -> None:
    now, seen = 0.0, None
    for count, gap in enumerate(gaps):
        seen = observe(seen, Holder(1, count), now)
        now += gap
        assert judge(Observation(Holder(1, count), None), seen, now, patience_seconds=PATIENCE) is None
