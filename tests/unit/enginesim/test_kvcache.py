"""KV blocks: prefixes are found again, memory is never lost or handed out twice."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from matrixinfer.enginesim.kvcache import BlockPool, block_hashes


def test_a_hash_names_the_whole_prefix_and_the_adapter() -> None:
    one = block_hashes([1, 2, 3, 4, 5], 2)
    assert len(one) == 2
    assert block_hashes([9, 2, 3, 4], 2)[1] != one[1]
    assert block_hashes([1, 2, 3, 4], 2, salt="lora") != one
    assert block_hashes([1, 2, 3, 4, 6, 7], 2)[:2] == one


def test_a_released_prefix_is_found_until_its_memory_is_needed() -> None:
    pool = BlockPool(4)
    assert pool.acquire([], 3)
    assert pool.publish([11, 12]) == 2
    pool.release([11, 12], 1)
    assert pool.used == 0
    assert pool.matched([11, 12, 13]) == 2
    assert pool.acquire([], 3)
    assert pool.matched([11, 12]) == 1, "the end of a prefix goes before its beginning"


def test_without_reuse_nothing_is_ever_found() -> None:
    pool = BlockPool(4, reuse=False)
    assert pool.acquire([], 2)
    assert pool.publish([1, 2]) == 0
    pool.release([], 2)
    assert pool.matched([1]) == 0
    assert pool.used == 0


def test_too_much_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(2)
    assert not pool.acquire([], 3)
    assert pool.used == 0


class Pool(RuleBasedStateMachine):
    """Sequences come, publish and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.held: list[tuple[list[int], int]] = []

    @rule(kind=st.integers(0, 2), blocks=st.integers(1, 4))
    def start(self, kind: int, blocks: int) -> None:
        hashes = [kind * 100 + n for n in range(blocks)]
        shared = self.pool.matched(hashes)
        if self.pool.acquire(hashes[:shared], blocks + 1 - shared):
            assert self.pool.publish(hashes[shared:]) == blocks - shared
            self.held.append((hashes, 1))

    @rule(which=st.integers(0, 9))
    def end(self, which: int) -> None:
        if self.held:
            self.pool.release(*self.held.pop(which % len(self.held)))

    @invariant()
    def memory_is_conserved(self) -> None:
        distinct = {block for hashes, _ in self.held for block in hashes}
        assert self.pool.used == len(distinct) + len(self.held)
        assert self.pool.used <= self.pool.capacity
        for hashes, _ in self.held:
            assert self.pool.matched(hashes) == len(hashes)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=25, stateful_step_count=20)
