"""Numbers that all workers share: requests and prompt bytes in flight per pod, in memory mapped by every process.

One writer per cell: worker w writes only row w, everybody reads all rows, so no lock is needed. Cells are 8 bytes and
aligned, so a reader sees the old or the new value, never half of one. The supervisor clears the row of a worker that
died.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from operator import add, itemgetter
from typing import TypeAlias

from matrixinfer.gateway.core.types import Slot

__all__ = ["Gather", "LoadBoard", "LoadRow", "gather"]

_CELL_BYTES = 8
_COLUMNS = 2

Gather: TypeAlias = Callable[[Sequence[int]], tuple[int, ...]]


def gather(slots: Sequence[Slot]) -> Gather:
    """Return a function that picks the cells of `slots` out of a row, as fast as Python can."""
    if len(slots) == 1:
        only = slots[0]
        return lambda row: (row[only],)
    if not slots:
        return lambda _row: ()
    return itemgetter(*slots)


class LoadBoard:
    """The whole board; every process may read it."""

    def __init__(self, fd: int, workers: int, capacity: int) -> None:
        """Map the board behind `fd`, which stays open and belongs to the caller."""
        self._map = mmap.mmap(fd, size_bytes(workers, capacity))
        cells = memoryview(self._map).cast("Q")
        rows = [cells[i * capacity : (i + 1) * capacity] for i in range(workers * _COLUMNS)]
        self._requests, self._bytes = rows[:workers], rows[workers:]

    @staticmethod
    def create(workers: int, capacity: int) -> int:
        """Make a new board, all zero; returns a file descriptor to map and to hand to workers."""
        fd = os.memfd_create("matrixinfer-gateway-loads")
        os.ftruncate(fd, size_bytes(workers, capacity))
        return fd

    def requests(self, pick: Gather) -> Sequence[int]:
        """Requests in flight per picked slot, over all workers."""
        return _summed([pick(row) for row in self._requests])

    def request_bytes(self, pick: Gather) -> Sequence[int]:
        """Bytes of request bodies in flight per picked slot, over all workers."""
        return _summed([pick(row) for row in self._bytes])

    def is_idle(self, slot: Slot) -> bool:
        """Whether no worker counts a request on `slot`."""
        return not any(row[slot] for row in self._requests)

    def clear(self, worker: int) -> None:
        """Forget what a dead worker counted. Only when its process has ended: until then it is the writer."""
        for row in (self._requests[worker], self._bytes[worker]):
            row[:] = memoryview(bytes(len(row) * _CELL_BYTES)).cast("Q")

    def row(self, worker: int) -> "LoadRow":
        """The cells that worker `worker` writes."""
        return LoadRow(self._requests[worker], self._bytes[worker])


class LoadRow:
    """One worker's cells; only that worker may hold one."""

    __slots__ = ("_bytes", "_requests")

    def __init__(self, requests: memoryview, request_bytes: memoryview) -> None:
        self._requests = requests
        self._bytes = request_bytes

    def enter(self, slot: Slot, size: int) -> None:
        """Count a request of `size` bytes in."""
        self._requests[slot] += 1
        self._bytes[slot] += size

    def leave(self, slot: Slot, size: int) -> None:
        """Count it out again."""
        self._requests[slot] -= 1
        self._bytes[slot] -= size


def size_bytes(workers: int, capacity: int) -> int:
    """Size of a board in bytes."""
    return workers * capacity * _COLUMNS * _CELL_BYTES


def _summed(rows: list[tuple[int, ...]]) -> Sequence[int]:
    total: Sequence[int] = rows[0]
    for row in rows[1:]:
        total = tuple(map(add, total, row))
    return total
