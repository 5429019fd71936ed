"""Shared counts: who may write where, and when a slot may move on."""

import os
from collections.abc import Iterator
from math import inf, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.board import CELL_LIMIT, LoadBoard
from matrixinfer.gateway.core.load import Burden, EngineReport, Loads
from matrixinfer.gateway.core.slots import SlotBook


@pytest.fixture
def fd() -> Iterator[int]:
    made = LoadBoard.create(2, 40)
    yield made
    os.close(made)


def board(fd: int) -> LoadBoard:
    """The board as one more process maps it."""
    return LoadBoard(fd, 2, 40)


def test_every_worker_sees_the_load_that_the_others_create(fd: int) -> None:
    one, two = board(fd), board(fd)
    first = one.row(0).enter(3, Burden(25, 200))
    two.row(1).enter(3, Burden(12, 100))
    two.row(1).enter(5, Burden(2, 9))
    slots = (3, 5, 7)
    expected = Loads((2, 1, 0), (37, 2, 0), (300, 9, 0))
    assert one.reader(slots).loads() == two.reader(slots).loads() == expected
    first.end()
    assert two.reader((3,)).loads() == Loads((1,), (12,), (100,))
    assert two.reader(()).loads() == Loads((), (), ())


def test_a_claim_follows_its_request_and_leaves_nothing_behind(fd: int) -> None:
    seen = board(fd)
    reader = seen.reader((4,))
    claim = seen.row(0).enter(4, Burden(30, 256))
    claim.prefilled()
    claim.expect(100)
    assert reader.loads() == Loads((1,), (0,), (100,))
    claim.prefilled()
    claim.end()
    claim.end()
    claim.expect(7)
    assert reader.loads() == Loads((0,), (0,), (0,))


def test_what_is_beyond_all_measure_stays_in_its_cell(fd: int) -> None:
    seen = board(fd)
    claims = [seen.row(1).enter(4, Burden(2**40, 2**40)) for _ in range(3)]
    claims[0].expect(2**50)
    assert seen.reader((3, 4, 5)).loads() == Loads((0, 3, 0), (0, CELL_LIMIT, 0), (0, CELL_LIMIT, 0))
    for claim in claims:
        claim.end()
    assert seen.reader((3, 4, 5)).loads() == Loads((0,) * 3, (0,) * 3, (0,) * 3)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 39), st.integers(0, 999), st.integers(0, 999)), max_size=20),
    st.lists(st.integers(0, 39), unique=True),
)
def test_any_slots_are_read_in_the_order_asked_for(work: list[tuple[int, int, int, int]], slots: list[int]) -> None:
    made = LoadBoard.create(2, 40)
    seen = board(made)
    for worker, slot, prefill, decode in work:
        seen.row(worker).enter(slot, Burden(prefill, decode))
    loads = seen.reader(slots).loads()
    assert list(loads.requests) == [sum(1 for w in work if w[1] == slot) for slot in slots]
    assert list(loads.prefill_tokens) == [sum(w[2] for w in work if w[1] == slot) for slot in slots]
    assert list(loads.decode_tokens) == [sum(w[3] for w in work if w[1] == slot) for slot in slots]
    os.close(made)


def test_other_processes_write_the_same_board(fd: int) -> None:
    """Two at once, each in its own row: nothing is lost, and what they end with is what is left."""
    children = []
    for worker in range(2):
        child = os.fork()
        if child == 0:
            row = board(fd).row(worker)
            for _ in range(5000):
                row.enter(2, Burden(3, 5)).end()
            row.enter(2, Burden(3, 5))
            os._exit(0)
        children.append(child)
    seen = board(fd)
    reader = seen.reader((1, 2, 3))
    for child in children:
        for _ in range(200):
            loads = reader.loads()
            assert loads.requests[0] == loads.requests[2] == 0
            assert 0 <= loads.requests[1] <= 4
        assert os.waitpid(child, 0)[1] == 0
    assert reader.loads() == Loads((0, 2, 0), (0, 6, 0), (0, 10, 0))


def test_a_dead_workers_row_is_forgotten_and_no_other(fd: int) -> None:
    seen = board(fd)
    reader = seen.reader((1,))
    seen.row(0).enter(1, Burden(6, 7))
    seen.row(1).enter(1, Burden(6, 7))
    seen.clear(0)
    assert reader.loads() == Loads((1,), (6,), (7,))
    assert not seen.is_idle(1)
    seen.clear(1)
    assert seen.is_idle(1)


def test_nothing_is_known_of_an_engine_until_it_was_read(fd: int) -> None:
    loads = board(fd).reader((0, 39)).engines(50.0)
    assert loads.ages == [inf, inf]
    assert all(isnan(value) for value in (*loads.running, *loads.waiting, *loads.kv_usage, *loads.kv_tokens))


def test_what_an_engine_says_travels_with_its_age_and_a_failure_is_visible(fd: int) -> None:
    cells, reader = board(fd).engine_cells(), board(fd).reader((30, 7))
    cells.report(7, EngineReport(running=3, waiting=1, kv_usage=0.5), 100.0)
    cells.report(30, EngineReport(running=9), 101.0)
    cells.fail(30)
    cells.fail(30)
    loads = reader.engines(103.5)
    assert (loads.ages, list(loads.failures)) == ([2.5, 3.5], [2.0, 0.0])
    assert list(loads.running) == [9.0, 3.0]
    assert isnan(loads.waiting[0])
    assert loads.kv_usage[1] == 0.5
    cells.report(30, EngineReport(running=1), 104.0)
    cells.forget(7)
    later = reader.engines(104.5)
    assert (later.ages, list(later.failures)) == ([0.5, inf], [0.0, 0.0])
    assert isnan(later.running[1])


def test_a_board_has_no_more_rows_than_can_be_added() -> None:
    with pytest.raises(ValueError, match="1 to 64 workers"):
        LoadBoard.create(65, 8)


def test_a_pod_keeps_its_slot_and_a_returning_pod_gets_it_back() -> None:
    book = SlotBook(4)
    book.assign({"a", "b"}, 1)
    slot = book.held["a"]
    book.assign({"b"}, 2)
    assert "a" not in book.held
    book.assign({"a", "b", "c"}, 3)
    assert book.held["a"] == slot


def test_a_freed_slot_rests_until_every_worker_let_go_and_counts_nothing() -> None:
    book = SlotBook(1)
    book.assign({"a"}, 1)
    book.assign(set(), 2)
    assert book.assign({"b"}, 3) == ["b"]
    assert book.reclaim(1, lambda _: True) == 0
    assert book.reclaim(2, lambda _: False) == 0
    assert book.reclaim(2, lambda _: True) == 1
    assert book.assign({"b"}, 4) == []


@given(st.lists(st.sets(st.sampled_from("abcdefgh")), max_size=12), st.data())
def test_no_two_pods_ever_share_a_slot(worlds: list[set[str]], data: st.DataObject) -> None:
    book = SlotBook(6)
    resting: dict[str, int] = {}
    for revision, uids in enumerate(worlds, 1):
        left_out = book.assign(uids, revision)
        assert set(book.held) == uids - set(left_out)
        resting = {uid: slot for uid, (slot, _) in book._resting.items()}
        taken = [*book.held.values(), *resting.values()]
        assert len(taken) == len(set(taken))
        book.reclaim(data.draw(st.integers(0, revision)), lambda _: data.draw(st.booleans()))
