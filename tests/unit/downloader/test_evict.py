"""What goes first when there is too little room, and what never goes."""

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.evict import Shelved, room_to_make, to_evict

OLD = Shelved("old", {"a": 10, "shared": 5}, 1.0, is_referenced=False)
NEW = Shelved("new", {"b": 10, "shared": 5}, 2.0, is_referenced=False)
USED = Shelved("used", {"c": 10}, 0.0, is_referenced=True)


def test_the_least_recently_used_goes_first_and_no_more_than_is_needed() -> None:
    assert to_evict([NEW, OLD, USED], {}, 10, ()) == ["old"]
    assert to_evict([NEW, OLD, USED], {}, 11, ()) == ["old", "new"]


def test_what_something_refers_to_or_was_asked_for_never_goes() -> None:
    assert to_evict([NEW, OLD, USED], {}, 10**9, {"old"}) == ["new"]


def test_contents_of_no_model_count_before_any_model() -> None:
    assert to_evict([OLD], {"loose": 10}, 10, ()) == []


def test_room_is_made_below_the_mark_and_above_the_reserve() -> None:
    volume = {"free_bytes": 300, "total_bytes": 1000}
    assert room_to_make(**volume, needed_bytes=200, reserve_bytes=0, high_water=90) == 0
    assert room_to_make(**volume, needed_bytes=250, reserve_bytes=0, high_water=90) == 50
    assert room_to_make(**volume, needed_bytes=250, reserve_bytes=100, high_water=100) == 50


@given(
    st.lists(
        st.builds(
            Shelved,
            st.uuids().map(str),
            st.dictionaries(st.sampled_from("abcdef"), st.just(7)),
            st.floats(0, 10),
            is_referenced=st.booleans(),
        ),
        unique_by=lambda model: model.digest,
    ),
    st.integers(0, 100),
)
def test_nothing_in_use_is_ever_evicted(models: list[Shelved], missing: int) -> None:
    evicted = to_evict(models, {}, missing, ())
    assert not {model.digest for model in models if model.is_referenced} & set(evicted)
    assert len(set(evicted)) == len(evicted)
