"""Shared counts: who may write where, and when a slot may move on."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.board import LoadBoard, gather
from matrixinfer.gateway.core.slots import SlotBook


@pytest.fixture
def fd() -> object:
    made = LoadBoard.create(2, 8)
    yield made
    os.close(made)


def test_every_worker_sees_the_load_that_the_others_create(fd: int) -> None:
    one, two = LoadBoard(fd, 2, 8), LoadBoard(fd, 2, 8)
    one.row(0).enter(3, 100)
    two.row(1).enter(3, 50)
    two.row(1).enter(5, 7)
    pick = gather((3, 5, 7))
    assert list(one.requests(pick)) == list(two.requests(pick)) == [2, 1, 0]
    assert list(one.request_bytes(pick)) == [150, 7, 0]
    one.row(0).leave(3, 100)
    assert list(two.requests(gather((3,)))) == [1]
    assert list(two.requests(gather(()))) == []


def test_another_process_writes_the_same_board(fd: int) -> None:
    child = os.fork()
    if child == 0:
        LoadBoard(fd, 2, 8).row(1).enter(2, 9)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert list(LoadBoard(fd, 2, 8).requests(gather((2,)))) == [1]


def test_a_dead_workers_row_is_forgotten_and_no_other(fd: int) -> None:
    board = LoadBoard(fd, 2, 8)
    board.row(0).enter(1, 5)
    board.row(1).enter(1, 5)
    board.clear(0)
    assert list(board.requests(gather((1,)))) == [1]
    assert not board.is_idle(1)
    board.clear(1)
    assert board.is_idle(1)


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
