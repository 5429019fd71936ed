"""Who probably has which beginning of a prompt in its cache: a table in memory that all workers share.

A block hash (`core.prompt`) leads to a set of eight words of eight bytes. A word is a whole entry: a tag of the hash,
the mark of a pod, and when it was sent there. Whole words are read and written at once, so every worker writes
anywhere without a lock, and what one learns all know at the next request. The table is a memory of hints: two writers
of one word at the same moment lose one hint, and a hint that is wrong costs one prompt read twice. It belongs to the
supervisor, so it outlives its workers; its size is fixed, whatever clients send: new entries replace old ones.

Time is counted in tokens. An engine forgets what it has not used for as many tokens as its memory holds; so each pod
has a clock that counts the tokens sent to it, and an entry that is older than the pod's memory is not believed. That
clock has one cell per worker, as on the load board.

The trap: a slot on the board is used again by another pod, which has nothing of the first one's. Entries carry the
pod's mark instead, which is not used again before a million other pods have come.
"""

import mmap
import os
import sys
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from matrixinfer.gateway.core.slots import MARKS
from matrixinfer.gateway.core.types import Mark, Slot

__all__ = ["Found", "Holding", "PrefixIndex"]

_WAYS: Final = 8
_SET: Final = Struct(f"={_WAYS}Q")
_SET_BYTES: Final = _SET.size
_SET_SHIFT: Final = _SET_BYTES.bit_length() - 1
_WORD_BYTES: Final = 8
_EMPTY: Final = bytes(_WORD_BYTES)

# A word, from the top: tag, mark, stamp.
_TAG_BYTES: Final = 3
_TAG_BITS: Final = 8 * _TAG_BYTES
_TAG_SHIFT: Final = 64 - _TAG_BITS
_MARK_BITS: Final = (MARKS - 1).bit_length()
_STAMP_BITS: Final = 20
_OVER_TAG: Final = _MARK_BITS + _STAMP_BITS
_UNDER_TAG: Final = (1 << _OVER_TAG) - 1
_MARK_MASK: Final = (1 << _MARK_BITS) - 1
_STAMP_MASK: Final = (1 << _STAMP_BITS) - 1
_STAMP_TOKENS: Final = 256
"""Tokens that make a clock step once."""
_AHEAD_STEPS: Final = 1 << 14
"""A stamp up to so many steps ahead of its clock is of just now: a request that is taken back turns the clock back."""
_OWNER_LIMIT: Final = 6
"""Most words of a set that one hash may take: beside a prompt that everybody sends there is room for others. What has
so many owners is taken to be everywhere: keeping it to these few would starve the rest of the pods."""


Holding: TypeAlias = tuple[int, int]
"""How many blocks of a chain a pod was sent, and how many tokens it was sent since."""


class Found(NamedTuple):
    """Who has what of a chain. Of a beginning with so many owners that they were not all kept, anyone may be one."""

    holdings: Mapping[Mark, Holding]
    """Those that have more than what is common."""
    common_blocks: int = 0


_NOBODY: Final[Mapping[Mark, Holding]] = {}
_NOTHING: Final = Found(_NOBODY)


class PrefixIndex:
    """One worker's hand on the table. The clock cells of `worker` are its own."""

    def __init__(self, fd: int, *, worker: int, workers: int, capacity: int, table_bytes: int) -> None:
        """Map the table behind `fd`, which stays open and belongs to the caller. `capacity` is that of the board."""
        self._map = mmap.mmap(fd, _size(workers, capacity, table_bytes))
        whole = memoryview(self._map)
        self._words = whole[:table_bytes].cast("Q")
        self._sets = table_bytes // _SET.size - 1
        clocks = whole[table_bytes:].cast("Q")
        rows = [clocks[i * capacity : (i + 1) * capacity] for i in range(workers)]
        self._clock, self._others = rows[worker], rows[:worker] + rows[worker + 1 :]
        self._turn = 0

    @staticmethod
    def create(*, workers: int, capacity: int, table_bytes: int) -> int:
        """Make an empty table of `table_bytes`, a power of two; returns a descriptor to map and to hand to workers."""
        if table_bytes < _SET.size or table_bytes & (table_bytes - 1):
            raise ValueError(f"the size of the table must be a power of two, not {table_bytes}")
        fd = os.memfd_create("matrixinfer-gateway-prefixes")
        os.ftruncate(fd, _size(workers, capacity, table_bytes))
        return fd

    def find(self, chain: Sequence[int], pods: Mapping[Mark, Slot]) -> Found:
        """Return which of `pods` were sent the beginning of `chain`, and how much of it.

        A search by halves for the longest beginning that anyone has. Who shows up on the way has at least that much,
        so shorter holdings come for free; they may be shorter than what is true.
        """
        seen: dict[Mark, tuple[int, int]] = {}
        read, table, sets = _SET.unpack_from, self._map, self._sets
        common = low = 0
        high, at = len(chain), 1
        while low < high:
            block = chain[at - 1]
            least = (block >> _TAG_SHIFT or 1) << _OVER_TAG
            most = least | _UNDER_TAG
            owners = [
                word
                for word in read(table, (block & sets) << _SET_SHIFT)
                if least <= word <= most and word >> _STAMP_BITS & _MARK_MASK in pods
            ]
            if not owners:
                high = at - 1
            elif len(owners) >= _OWNER_LIMIT:
                # Who has only what all may have is no better than they.
                low = common = at
                seen.clear()
            else:
                low = at
                for word in owners:
                    seen[word >> _STAMP_BITS & _MARK_MASK] = at, word & _STAMP_MASK
            at = (low + high + 1) >> 1
        if not seen:
            return Found(_NOBODY, common) if common else _NOTHING
        return Found({mark: (blocks, self._age(pods[mark], stamp)) for mark, (blocks, stamp) in seen.items()}, common)

    def note(self, chain: Sequence[int], mark: Mark, slot: Slot, *, known: int = 0) -> int | None:
        """A pod is being sent a prompt; of its blocks the first `known` are noted already.

        Returns what the clock of the pod shows, None when there was nothing to note.
        """
        if known >= len(chain):
            return None
        now = self.now(slot)
        entry = mark << _STAMP_BITS | (now // _STAMP_TOKENS) & _STAMP_MASK
        table, sets, words = self._map, self._sets, self._words
        for block in chain[known:] if known else chain:
            tag, number = block >> _TAG_SHIFT or 1, block & sets
            first = number << _SET_SHIFT
            entries = table[first : first + _SET_BYTES]
            if tag.to_bytes(_TAG_BYTES, sys.byteorder) in entries:
                way = self._way(tag, block, _SET.unpack(entries), mark)
            else:
                way = self._free(block, entries)
            words[number * _WAYS + way] = tag << _OVER_TAG | entry
        return now

    def advance(self, slot: Slot, tokens: int) -> None:
        """So many tokens more will be in the memory of the pod at `slot`; fewer, when a request is taken back."""
        self._clock[slot] += tokens

    def forget(self, chain: Sequence[int], mark: Mark, *, known: int = 0) -> None:
        """Take `note` back: the pod did not get the prompt."""
        for block in chain[known:]:
            # Never 0, which is an empty word. The low bits choose the set.
            wanted, number = (block >> _TAG_SHIFT or 1) << _MARK_BITS | mark, block & self._sets
            for way, word in enumerate(_SET.unpack_from(self._map, number << _SET_SHIFT)):
                if word >> _STAMP_BITS == wanted:
                    self._words[number * _WAYS + way] = 0

    def _way(self, tag: int, block: int, words: tuple[int, ...], mark: Mark) -> int:
        """Which word of its set an entry takes: its own of before, a free one, else somebody's."""
        oldest = (tag << _MARK_BITS | mark) << _STAMP_BITS
        newest = oldest | _STAMP_MASK
        for way, word in enumerate(words):
            if oldest <= word <= newest:
                return way
        rivals = [way for way, word in enumerate(words) if word >> _OVER_TAG == tag]
        if len(rivals) < _OWNER_LIMIT:
            return words.index(0) if 0 in words else self._free(block, b"")
        self._turn += 1
        return rivals[self._turn % len(rivals)]

    def _free(self, block: int, entries: bytes) -> int:
        """Which word an entry takes whose hash nobody has: a free one, else somebody's."""
        at = entries.find(_EMPTY)
        while at % _WORD_BYTES and at >= 0:
            at = entries.find(_EMPTY, at + 1)
        if at >= 0:
            return at // _WORD_BYTES
        # By turns, so that whoever fills a set on purpose cannot say which entry goes.
        self._turn += 1
        return (self._turn ^ block >> 32) % _WAYS

    def now(self, slot: Slot) -> int:
        """What the clock of the pod at `slot` shows: the tokens that all workers sent there."""
        now = self._clock[slot]
        for row in self._others:
            now += row[slot]
        return now

    def _age(self, slot: Slot, stamp: int) -> int:
        steps = (self.now(slot) // _STAMP_TOKENS - stamp) & _STAMP_MASK
        return 0 if steps > _STAMP_MASK - _AHEAD_STEPS else steps * _STAMP_TOKENS


def _size(workers: int, capacity: int, table_bytes: int) -> int:
    return table_bytes + workers * capacity * _WORD_BYTES
