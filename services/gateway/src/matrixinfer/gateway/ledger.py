"""Which endpoint keeps which stored object, in memory that all workers share.

One writer per page: worker w writes only page w, everybody reads all pages, so no lock is needed, and a worker that
is restarted finds what its predecessor knew. An entry is two words, `key ^ keeper` and `keeper`: a reader that catches
half of a write computes another key and sees nothing. A page is a table of buckets of a fixed size; a new entry pushes
the oldest of its bucket out. The trap: ids are chosen by engines, sometimes by clients, so the hash has a seed of its
own in every gateway.
"""

import mmap
import os
import secrets

from xxhash import xxh3_64_intdigest

from matrixinfer.gateway.core.objects import Keeper

__all__ = ["Ledger", "LedgerPage"]

_WORD_BYTES = 8
_WORDS = 2
_WAYS = 8
_BUCKET_WORDS = _WAYS * _WORDS


class Ledger:
    """The whole ledger; every process may read it."""

    def __init__(self, fd: int, workers: int, entries: int) -> None:
        """Map the ledger behind `fd`, which stays open and belongs to the caller."""
        self._map = mmap.mmap(fd, size_bytes(workers, entries))
        words = memoryview(self._map).cast("Q")
        size = entries * _WORDS
        self._seed = words[0]
        self._buckets = entries // _WAYS
        self._pages = [words[1 + worker * size : 1 + (worker + 1) * size] for worker in range(workers)]

    @staticmethod
    def create(workers: int, entries: int) -> int:
        """Return the descriptor of an empty ledger with `entries` per worker, a multiple of 8."""
        fd = os.memfd_create("matrixinfer-gateway-ledger")
        os.ftruncate(fd, size_bytes(workers, entries))
        os.pwrite(fd, secrets.token_bytes(_WORD_BYTES), 0)
        return fd

    def find(self, object_id: str) -> Keeper | None:
        """Return who keeps an object, as far as any worker knows."""
        key = _key(object_id, self._seed)
        at = key % self._buckets * _BUCKET_WORDS
        for page in self._pages:
            for word in range(at, at + _BUCKET_WORDS, _WORDS):
                keeper = page[word + 1]
                if keeper and page[word] ^ keeper == key:
                    return Keeper(keeper)
        return None

    def page(self, worker: int) -> "LedgerPage":
        """The page that worker `worker` writes."""
        return LedgerPage(self._pages[worker], self._buckets, self._seed)


class LedgerPage:
    """One worker's entries; only that worker may hold one."""

    def __init__(self, words: memoryview, buckets: int, seed: int) -> None:
        self._words = words
        self._buckets = buckets
        self._seed = seed

    def remember(self, object_id: str, keeper: Keeper) -> None:
        """Note who keeps an object; the oldest entry of its bucket is forgotten."""
        words, key = self._words, _key(object_id, self._seed)
        at = key % self._buckets * _BUCKET_WORDS
        # Last entry first: at every moment each entry that stays can be found in one place or in two.
        for word in range(at + _BUCKET_WORDS - 1, at + _WORDS - 1, -1):
            words[word] = words[word - _WORDS]
        words[at], words[at + 1] = key ^ keeper, keeper


def _key(object_id: str, seed: int) -> int:
    return xxh3_64_intdigest(object_id.encode(errors="replace"), seed)


def size_bytes(workers: int, entries: int) -> int:
    """Size of a ledger in bytes."""
    return (1 + workers * entries * _WORDS) * _WORD_BYTES
