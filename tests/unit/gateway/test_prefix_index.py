"""The shared table of prompts: found by all workers, forgotten with the pod, bounded whatever comes."""

import os
import random
from collections.abc import Iterator, Sequence

import pytest

from matrixinfer.gateway.core.prompt import chain, seed_of
from matrixinfer.gateway.core.slots import MARKS, SlotBook
from matrixinfer.gateway.prefixes import Found, PrefixIndex

WORKERS, CAPACITY, TABLE_BYTES = 2, 64, 1 << 16
PODS = {mark: mark for mark in range(16)}


@pytest.fixture
def fd() -> Iterator[int]:
    made = PrefixIndex.create(workers=WORKERS, capacity=CAPACITY, table_bytes=TABLE_BYTES)
    yield made
    os.close(made)


def index(fd: int, worker: int = 0) -> PrefixIndex:
    return PrefixIndex(fd, worker=worker, workers=WORKERS, capacity=CAPACITY, table_bytes=TABLE_BYTES)


def prompt(number: int, blocks: int = 20) -> list[int]:
    return chain(random.Random(number).randbytes(blocks * 512), seed_of("", "m", ""))


def holdings(found: Found) -> dict[int, int]:
    return {mark: blocks for mark, (blocks, _) in found.holdings.items()}


def note(table: PrefixIndex, blocks: Sequence[int], pod: int, tokens: int = 0) -> None:
    table.note(blocks, pod, pod)
    table.advance(pod, tokens)


@pytest.mark.parametrize("shared", range(21))
def test_the_longest_common_beginning_is_found(fd: int, shared: int) -> None:
    table, first = index(fd), prompt(1)
    note(table, first[:shared], 3)
    assert holdings(table.find(first, PODS)) == ({3: shared} if shared else {})


def test_what_one_worker_sends_all_know_at_once(fd: int) -> None:
    """BEAT-43: known at dispatch, so the second of two simultaneous requests finds the first."""
    note(index(fd, 0), prompt(1), 3)
    assert holdings(index(fd, 1).find(prompt(1), PODS)) == {3: 20}


def test_the_table_outlives_a_worker(fd: int) -> None:
    table = index(fd, 0)
    note(table, prompt(1), 3, tokens=500)
    del table
    assert index(fd, 0).find(prompt(1), PODS) == Found({3: (20, 256)})


def test_another_process_writes_the_same_table(fd: int) -> None:
    child = os.fork()
    if child == 0:
        note(index(fd, 1), prompt(9), 5, tokens=2560)
        os._exit(0)
    os.waitpid(child, 0)
    assert index(fd, 0).find(prompt(9), PODS) == Found({5: (20, 2560)})


def test_several_pods_may_have_it_each_its_part(fd: int) -> None:
    table, blocks = index(fd), prompt(1)
    note(table, blocks, 1)
    note(table, blocks[:12], 2)
    found = holdings(table.find(blocks, PODS))
    assert found[1] == 20
    assert found.get(2, 0) <= 12
    assert holdings(table.find(blocks[:12], PODS)) == {1: 12, 2: 12}


def test_pods_of_other_servers_do_not_crowd_the_answer(fd: int) -> None:
    """BEAT-50."""
    table, blocks = index(fd), prompt(1)
    note(table, blocks[:10], 3)
    note(table, blocks, 30)
    assert holdings(table.find(blocks, PODS)) == {3: 10}


def test_a_prompt_that_was_not_sent_is_taken_back(fd: int) -> None:
    """BEAT-43: undone when the endpoint could not be reached; what it had before stays."""
    table, blocks = index(fd), prompt(1)
    note(table, blocks[:4], 3)
    table.note(blocks, 3, 3, known=4)
    table.forget(blocks, 3, known=4)
    assert holdings(table.find(blocks, PODS)) == {3: 4}


def test_age_is_counted_in_tokens_of_the_pod(fd: int) -> None:
    """BEAT-52: what the engine's memory can hold decides, and only traffic to that pod ages it."""
    one, two = index(fd, 0), index(fd, 1)
    note(one, prompt(1), 3, tokens=1000)
    note(two, prompt(2), 3, tokens=100_000)
    note(two, prompt(3), 4, tokens=900_000)
    age = one.find(prompt(1), PODS).holdings[3][1]
    assert 101_000 - 512 <= age <= 101_000 + 512
    note(one, prompt(1), 3)
    assert two.find(prompt(1), PODS).holdings[3][1] <= 256


def test_a_new_pod_in_an_old_slot_has_nothing(fd: int) -> None:
    """Entries carry a mark, which is not given again while another one was not."""
    book, table = SlotBook(4), index(fd)
    book.assign(["old"], 1)
    slot, mark = book.held["old"], book.marks["old"]
    table.note(prompt(1), mark, slot)
    book.assign([], 2)
    assert book.reclaim(2, lambda _slot: True)
    book.assign(["new"], 3)
    assert book.held["new"] == slot
    assert not table.find(prompt(1), {book.marks["new"]: slot}).holdings


def test_a_pod_that_comes_back_keeps_its_mark() -> None:
    book = SlotBook(4)
    book.assign(["a", "b"], 1)
    mark = book.marks["a"]
    book.assign(["b"], 2)
    book.assign(["a", "b"], 3)
    assert book.marks["a"] == mark
    assert book.marks["a"] != book.marks["b"]


def test_marks_that_are_in_use_are_passed_over() -> None:
    book = SlotBook(4)
    book.assign(["old"], 1)
    book._next_mark = MARKS - 1
    for i in range(3):
        book.assign(["old", f"p{i}"], i + 2)
        book.assign(["old"], i + 2)
        book.reclaim(99, lambda _slot: True)
    assert book._next_mark > MARKS + 1
    book.assign(["old", "x"], 99)
    assert book.marks["x"] != book.marks["old"]


def test_a_prompt_that_everybody_sends_leaves_room_for_others(fd: int) -> None:
    """Owners of one hash are bounded, so other hashes of the set stay; what has that many may be anywhere."""
    table, blocks = index(fd), prompt(1, blocks=1)
    for pod in range(16):
        note(table, blocks, pod)
    found = table.find(blocks, PODS)
    assert found == Found({}, common_blocks=1)


def test_adversarial_prompts_stay_within_the_bound(fd: int) -> None:
    """Twenty times as many entries as fit: no growth, and what comes last is found."""
    size = os.fstat(fd).st_size
    table = index(fd)
    for number in range(1000, 2000):
        note(table, prompt(number, blocks=200), number % 16)
    assert os.fstat(fd).st_size == size
    note(table, prompt(1), 3)
    assert 3 in table.find(prompt(1), PODS).holdings


def test_entries_of_one_set_cannot_be_told_apart_by_their_victim(fd: int) -> None:
    """Hashes made to fall into one set push each other out, and nothing else."""
    table = index(fd)
    note(table, [77], 1)
    for number in range(1, 1000):
        note(table, [number << 40 | 13], 2)
    assert holdings(table.find([77], PODS)) == {1: 1}


def test_false_hits_are_rare(fd: int) -> None:
    table = index(fd)
    for number in range(100, 400):
        note(table, prompt(number), number % 16)
    assert not any(table.find(prompt(number, blocks=4), PODS).holdings for number in range(10_000, 12_000))


def test_the_size_is_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        PrefixIndex.create(workers=1, capacity=4, table_bytes=3000)
