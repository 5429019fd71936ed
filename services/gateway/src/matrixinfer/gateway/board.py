"""Numbers that all processes share, in memory that each of them maps: what we sent to each pod, what its engine says.

One writer per cell. Worker w writes only row w of the counts; the supervisor alone writes what engines say, and clears
the row of a worker that died. Everybody reads everything, so no lock is needed: cells are aligned and copied whole, so
a reader sees the old or the new value of each.

The trap is the price of reading, paid for every request over the rows of all workers. So the cells of a slot lie side
by side, a reader copies runs of slots instead of cells, and rows are added as one long number each: lanes cannot run
over, because no worker counts more than `CELL_LIMIT` into one. What engines say changes about once a second, so a
reader keeps it for a moment.
"""

import mmap
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from math import inf
from operator import attrgetter, itemgetter
from struct import Struct
from typing import Any, Final

from matrixinfer.gateway.core.load import UNKNOWN, Burden, EngineLoads, EngineReport, Loads
from matrixinfer.gateway.core.types import Slot

__all__ = ["CELL_LIMIT", "WORKER_LIMIT", "Claim", "EngineCells", "LoadBoard", "LoadReader", "LoadRow"]

WORKER_LIMIT: Final = 64
"""Most rows of a board."""
CELL_LIMIT: Final = 2**32 // WORKER_LIMIT - 1
"""Most that one worker counts into one cell: 67 million requests or tokens on one pod."""

# Counts, per worker and slot: requests, prefill tokens, decode tokens; 32 bits each.
_LANES: Final = 3
_PREFILL: Final = 1
_DECODE: Final = 2
_COUNTS_BYTES: Final = 4 * _LANES
# Per slot: when the engine was last read (by the monotonic clock), reads that failed since, its report.
# Native, so that every number is stored whole.
_ENGINE: Final = Struct(f"@{2 + len(fields(EngineReport))}d")
_ENGINE_LANES: Final = _ENGINE.size // 8
# Several times faster than `astuple`, which copies deeply.
_VALUES: Final = attrgetter(*(field.name for field in fields(EngineReport)))
_NEVER: Final = _ENGINE.pack(-inf, 0.0, *_VALUES(UNKNOWN))

# Copying one more run costs about as much as copying this many slots that nobody asked for.
_GAP_SLOTS: Final = 8
_KEEP_SECONDS: Final = 0.05


class LoadBoard:
    """The whole board; every process may read it."""

    def __init__(self, fd: int, workers: int, capacity: int) -> None:
        """Map the board behind `fd`, which stays open and belongs to the caller."""
        self._map = mmap.mmap(fd, size_bytes(workers, capacity))
        parts = iter(_parts(memoryview(self._map), workers, capacity))
        self._counts = [next(parts) for _ in range(workers)]
        self._cells = [row.cast("I") for row in self._counts]
        self._engines = next(parts)

    @staticmethod
    def create(workers: int, capacity: int) -> int:
        """Make a new board: nothing in flight, nothing known. Returns a descriptor to map and to hand to workers."""
        if not 1 <= workers <= WORKER_LIMIT:
            raise ValueError(f"a board has 1 to {WORKER_LIMIT} workers, not {workers}")
        fd = os.memfd_create("matrixinfer-gateway-loads")
        os.ftruncate(fd, size_bytes(workers, capacity))
        os.pwrite(fd, _NEVER * capacity, sum(_part_sizes(workers, capacity)[:-1]))
        return fd

    def reader(self, slots: Sequence[Slot]) -> "LoadReader":
        """Return what reads `slots` together, again and again, in their order. Worth building once."""
        return LoadReader(slots, self._counts, self._engines)

    def is_idle(self, slot: Slot) -> bool:
        """Whether no worker counts a request on `slot`."""
        return not any(cells[slot * _LANES] for cells in self._cells)

    def clear(self, worker: int) -> None:
        """Forget what a dead worker counted. Only when its process has ended: until then it is the writer."""
        row = self._counts[worker]
        row[:] = bytes(len(row))

    def row(self, worker: int) -> "LoadRow":
        """The counts that worker `worker` writes."""
        return LoadRow(self._cells[worker])

    def engine_cells(self) -> "EngineCells":
        """What engines say, for the one process that asks them."""
        return EngineCells(self._engines)


class LoadReader:
    """The cells of some slots, with all that reading them needs worked out."""

    def __init__(self, slots: Sequence[Slot], counts: Sequence[memoryview], engines: memoryview) -> None:
        runs = _runs(slots)
        position = {slot: i for i, slot in enumerate(slot for run in runs for slot in run)}
        places = [position[slot] for slot in slots]
        self._counts = [_pieces(row, runs, _COUNTS_BYTES) for row in counts]
        self._counts_form = Struct(f"={len(position) * _LANES}I")
        self._columns = _columns(places, _LANES)
        self._engines = _pieces(engines, runs, _ENGINE.size)
        self._engine_columns = _columns(places, _ENGINE_LANES)
        self._kept: EngineLoads | None = None
        self._kept_at = -inf

    def loads(self) -> Loads:
        """Our requests in flight per slot, over all workers, as of now."""
        lanes = _added(self._counts, self._counts_form)
        requests, prefill, decode = self._columns
        return Loads(requests(lanes), prefill(lanes), decode(lanes))

    def engines(self, now: float) -> EngineLoads:
        """What the engines say, per slot, as read within the last moment; `now` by the monotonic clock."""
        if self._kept is None or now - self._kept_at > _KEEP_SECONDS:
            self._kept, self._kept_at = self._read_engines(now), now
        return self._kept

    def _read_engines(self, now: float) -> EngineLoads:
        lanes = memoryview(_joined(self._engines)).cast("d").tolist()
        read_at, *columns = (column(lanes) for column in self._engine_columns)
        return EngineLoads([now - at for at in read_at], *columns)


class LoadRow:
    """One worker's counts; only that worker may hold one."""

    __slots__ = ("_cells",)

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def enter(self, slot: Slot, burden: Burden) -> "Claim":
        """Count a request in, until the claim ends."""
        return Claim(self._cells, slot, burden)


class Claim:
    """What one request in flight counts for. `end` must be called, once or more often."""

    __slots__ = ("_cells", "_decode", "_ended", "_place", "_prefill")

    def __init__(self, cells: memoryview, slot: Slot, burden: Burden) -> None:
        place = slot * _LANES
        self._cells, self._place = cells, place
        self._prefill = min(burden.prefill_tokens, CELL_LIMIT - cells[place + _PREFILL])
        self._decode = min(burden.decode_tokens, CELL_LIMIT - cells[place + _DECODE])
        self._ended = False
        cells[place] += 1
        cells[place + _PREFILL] += self._prefill
        cells[place + _DECODE] += self._decode

    def prefilled(self) -> None:
        """The engine has read the prompt: it answers."""
        self._cells[self._place + _PREFILL] -= self._prefill
        self._prefill = 0

    def expect(self, tokens: int) -> None:
        """So many tokens of the answer are still to come."""
        if self._ended:
            return
        place = self._place + _DECODE
        others = self._cells[place] - self._decode
        self._decode = min(tokens, CELL_LIMIT - others)
        self._cells[place] = others + self._decode

    def end(self) -> None:
        """Count the request out."""
        if self._ended:
            return
        self.prefilled()
        self.expect(0)
        self._ended = True
        self._cells[self._place] -= 1


class EngineCells:
    """What engines say; only the supervisor may hold one."""

    __slots__ = ("_cells", "_engines")

    def __init__(self, engines: memoryview) -> None:
        self._engines = engines
        self._cells = engines.cast("d")

    def report(self, slot: Slot, report: EngineReport, now: float) -> None:
        """An engine said this."""
        _ENGINE.pack_into(self._engines, slot * _ENGINE.size, now, 0.0, *_VALUES(report))

    def fail(self, slot: Slot) -> None:
        """An engine could not be read: what it said last stays, and grows old."""
        self._cells[slot * _ENGINE_LANES + 1] += 1

    def forget(self, slot: Slot) -> None:
        """Another pod has the slot now, of which nothing is known."""
        self._engines[slot * _ENGINE.size : (slot + 1) * _ENGINE.size] = _NEVER


def size_bytes(workers: int, capacity: int) -> int:
    """Size of a board in bytes."""
    return sum(_part_sizes(workers, capacity))


def _part_sizes(workers: int, capacity: int) -> list[int]:
    # A multiple of eight each, so that every part is aligned.
    return [
        *[-(-capacity * _COUNTS_BYTES // 8) * 8] * workers,
        capacity * _ENGINE.size,
    ]


def _parts(board: memoryview, workers: int, capacity: int) -> list[memoryview]:
    parts = []
    for size in _part_sizes(workers, capacity):
        parts.append(board[:size])
        board = board[size:]
    return parts


def _runs(slots: Sequence[Slot]) -> list[range]:
    """Return few ranges that hold all `slots`, and not many others."""
    runs: list[range] = []
    for slot in sorted(set(slots)):
        if runs and slot - runs[-1].stop <= _GAP_SLOTS:
            runs[-1] = range(runs[-1].start, slot + 1)
        else:
            runs.append(range(slot, slot + 1))
    return runs


def _columns(places: Sequence[int], lanes: int) -> list[Callable[[Sequence[Any]], Sequence[Any]]]:
    """Return for each lane what takes it out of the lanes of all copied slots, in the order of `places`."""
    if list(places) == list(range(len(places))):
        return [itemgetter(slice(lane, len(places) * lanes, lanes)) for lane in range(lanes)]
    if len(places) == 1:
        return [itemgetter(slice(places[0] * lanes + lane, places[0] * lanes + lane + 1)) for lane in range(lanes)]
    return [itemgetter(*(place * lanes + lane for place in places)) for lane in range(lanes)]


def _pieces(row: memoryview, runs: Sequence[range], width: int) -> Sequence[memoryview]:
    return [row[run.start * width : run.stop * width] for run in runs]


def _added(rows: Sequence[Sequence[memoryview]], form: Struct) -> tuple[int, ...]:
    """Add rows lane by lane, as long numbers."""
    if len(rows) == 1:
        return form.unpack(_joined(rows[0]))
    total = 0
    for pieces in rows:
        total += int.from_bytes(_joined(pieces), sys.byteorder)
    return form.unpack(total.to_bytes(form.size, sys.byteorder))


def _joined(pieces: Sequence[memoryview]) -> bytes | memoryview:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
