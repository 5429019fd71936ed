"""Blocks of KV memory with prefix reuse, as vLLM keeps them: hash chains, reference counts, eviction by age.

Owns: the count of blocks. Refuses: clocks and requests.
Trap: a cached block that no sequence uses counts as free (it can be evicted at once), so usage falls to zero when
all requests end although the prefixes are still there.
"""

from collections import OrderedDict
from collections.abc import Sequence
from zlib import crc32

__all__ = ["BlockPool", "block_hashes"]


def block_hashes(tokens: Sequence[int], block_size: int, salt: str = "") -> list[int]:
    """One hash per full block; each depends on all blocks before it, and on `salt` (the adapter's name)."""
    hashes: list[int] = []
    state = crc32(salt.encode())
    for end in range(block_size, len(tokens) + 1, block_size):
        state = hash((state, tuple(tokens[end - block_size : end])))
        hashes.append(state)
    return hashes


class BlockPool:
    """A fixed number of blocks. Every method keeps: used + cached + free = capacity."""

    def __init__(self, capacity: int, *, reuse: bool = True) -> None:
        self.capacity = capacity
        self._reuse = reuse
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return len(self._references) + self._private

    @property
    def usage(self) -> float:
        """Used share of the capacity, 0 to 1."""
        return self.used / self.capacity

    @property
    def available(self) -> int:
        """Blocks that could be handed out now, evicting idle ones."""
        return self.capacity - self.used

    def matched(self, hashes: Sequence[int]) -> int:
        """How many leading blocks are in memory."""
        if not self._reuse:
            return 0
        count = 0
        for block in hashes:
            if block not in self._references and block not in self._idle:
                break
            count += 1
        return count

    def acquire(self, hashes: Sequence[int], private: int) -> bool:
        """Take a reference on blocks that matched, and `private` fresh ones; all or nothing."""
        revived = sum(1 for block in hashes if block not in self._references)
        if revived + private > self.available:
            return False
        for block in hashes:
            self._idle.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1
        self._private += private
        self._evict()
        return True

    def publish(self, hashes: Sequence[int]) -> int:
        """Turn private blocks, now full, into shared ones under their hashes; return how many became shared."""
        if not self._reuse:
            return 0
        for block in hashes:
            self._private -= 1
            self._idle.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1
        return len(hashes)

    def release(self, hashes: Sequence[int], private: int) -> None:
        """Give back what a sequence held; shared blocks stay cached until they are needed."""
        self._private -= private
        # The last blocks of a prefix go first when memory is short, as they are worth nothing without the first.
        for block in reversed(hashes):
            self._references[block] -= 1
            if not self._references[block]:
                del self._references[block]
                self._idle[block] = None
        self._evict()

    def clear(self) -> None:
        """Forget all idle prefixes."""
        self._idle.clear()

    def _evict(self) -> None:
        while len(self._idle) > self.available:
            self._idle.popitem(last=False)
