"""What all workers know of each endpoint's health, in memory that every process maps.

One writer per cell, as on the load board: worker w writes row w, the supervisor a row of its own, everybody reads all.
Times are microseconds of the monotonic clock, which all processes of a machine share. What becomes of the facts is
decided in `core.breaker` and `core.outliers`; here they are kept.

Nobody is ejected most of the time, so that is what must cost nothing: a request compares one short run of bytes, the
version of every row, with those seen last, and only a new ejection makes a worker look at the cells.
"""

import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from math import log as natural_log
from typing import Final

from matrixinfer.gateway.core.breaker import (
    BreakerPolicy,
    Cause,
    Ejection,
    Standing,
    Suspect,
    eject,
    is_proved,
    is_tripped,
    left_out,
    standing,
)
from matrixinfer.gateway.core.outliers import Tally
from matrixinfer.gateway.core.retry import status_is_transient
from matrixinfer.gateway.core.types import Endpoint, Slot, TrafficPolicy
from matrixinfer.service.logging import get_logger

__all__ = ["Health", "HealthBoard", "HealthRow", "log_ejection"]

log = get_logger("health")

_CELL_BYTES: Final = 8
_MICROSECONDS: Final = 1_000_000
# Ejection packed into one cell, so that it is read whole: until << 16 | times << 8 | cause. 48 bits of microseconds
# are nine years of uptime.
_TIMES_SHIFT, _UNTIL_SHIFT = 8, 16
_COLUMNS: Final = (
    "ejections",
    "streaks",
    "streaks_since",
    "answered",
    "trials",
    "proved",
    "answers",
    "errors",
    "timed",
    "ttft",
)
_SERVER_ERRORS: Final = 500
_SHORTEST_SECONDS: Final = 1e-6
_NOBODY: Final[frozenset[str]] = frozenset()


class HealthBoard:
    """The whole board; every process may read it."""

    def __init__(self, fd: int, workers: int, capacity: int) -> None:
        """Map the board behind `fd`, which stays open and belongs to the caller."""
        self._map = mmap.mmap(fd, _size_bytes(workers, capacity))
        self._cells = memoryview(self._map).cast("q")
        count = workers + 1
        self.versions = memoryview(self._map)[: count * _CELL_BYTES]
        """Changes when anybody ejects an endpoint."""
        rest = self._cells[count:]
        width = capacity * len(_COLUMNS)
        self._rows = [HealthRow(self, self._cells[i : i + 1], rest[i * width : (i + 1) * width]) for i in range(count)]

    @staticmethod
    def create(workers: int, capacity: int) -> int:
        """Make a new board, on which nobody ever failed. Returns a descriptor to map and to hand to workers."""
        fd = os.memfd_create("matrixinfer-gateway-health")
        os.ftruncate(fd, _size_bytes(workers, capacity))
        return fd

    def row(self, worker: int) -> "HealthRow":
        """The cells that worker `worker` writes."""
        return self._rows[worker]

    def own_row(self) -> "HealthRow":
        """The cells that the supervisor writes."""
        return self._rows[-1]

    def clear(self, worker: int) -> None:
        """Forget what a dead worker knew. Only when its process has ended: until then it is the writer."""
        self._rows[worker].clear()

    def ejection(self, slot: Slot) -> Ejection | None:
        """The latest ejection of the pod with this slot."""
        latest = max(row.ejections[slot] for row in self._rows)
        return _unpacked(latest) if latest else None

    def ejected(self, slots: Iterable[Slot]) -> list[Slot]:
        """Those of `slots` that have an ejection on record."""
        columns = [row.ejections for row in self._rows]
        return [slot for slot in slots if any(column[slot] for column in columns)]

    def answered_at(self, slot: Slot) -> float:
        """When the pod last answered anybody."""
        return max(row.answered[slot] for row in self._rows) / _MICROSECONDS

    def tried_at(self, slot: Slot) -> float:
        """When the last request was sent that is to prove it and has no outcome yet; 0 when there is none."""
        return max(row.trials[slot] for row in self._rows) / _MICROSECONDS

    def proved_at(self, slot: Slot) -> float:
        """When the newest request was sent that proved it."""
        return max(row.proved[slot] for row in self._rows) / _MICROSECONDS

    def streaks(self, slot: Slot) -> list[tuple[int, float]]:
        """Failures in a row of each worker, and when they began."""
        return [(row.streaks[slot], row.streaks_since[slot] / _MICROSECONDS) for row in self._rows]

    def tally(self, slot: Slot) -> Tally:
        """What all workers counted."""
        rows = self._rows
        return Tally(
            sum(row.answers[slot] for row in rows),
            sum(row.errors[slot] for row in rows),
            sum(row.timed[slot] for row in rows),
            sum(row.ttft[slot] for row in rows) / _MICROSECONDS,
        )


class HealthRow:
    """One process's cells; only that process may write them."""

    __slots__ = (
        "_board",
        "_cells",
        "_troubled",
        "_version",
        "answered",
        "answers",
        "ejections",
        "errors",
        "proved",
        "streaks",
        "streaks_since",
        "timed",
        "trials",
        "ttft",
    )

    def __init__(self, board: HealthBoard, version: memoryview, cells: memoryview) -> None:
        self._board = board
        self._version = version
        # Where this process began a row of failures, known without a look: nowhere, for nearly every answer.
        self._troubled: set[Slot] = set()
        self._cells = cells
        size = len(cells) // len(_COLUMNS)
        columns = (cells[i * size : (i + 1) * size] for i in range(len(_COLUMNS)))
        self.ejections, self.streaks, self.streaks_since, self.answered, *others = columns
        self.trials, self.proved, self.answers, self.errors, self.timed, self.ttft = others

    def answer(self, slot: Slot, now: float) -> None:
        """The endpoint answers: its failures are no row any more."""
        self.answered[slot] = int(now * _MICROSECONDS)
        self.answers[slot] += 1
        if slot in self._troubled:
            self._troubled.discard(slot)
            self.streaks[slot] = 0

    def first_token(self, slot: Slot, log_seconds: float) -> None:
        """The logarithm of the time that the first token of a stream took."""
        self.timed[slot] += 1
        self.ttft[slot] += int(log_seconds * _MICROSECONDS)

    def error_answer(self, slot: Slot, policy: BreakerPolicy, now: float, tried_at: float) -> Ejection | None:
        """The endpoint answers with an error: it is at work, and perhaps not well.

        Returns its ejection, when the request of `tried_at` was to prove that it is.
        """
        self.answers[slot] += 1
        self.errors[slot] += 1
        last = self._board.ejection(slot)
        if last is None or tried_at <= last.until or is_proved(last, self._board.proved_at(slot)):
            return None
        return self.eject(slot, policy, Cause.ERRORS, now)

    def error(self, slot: Slot) -> None:
        """An answer broke off."""
        self.errors[slot] += 1

    def failure(self, slot: Slot, policy: BreakerPolicy, now: float, tried_at: float = 0.0) -> Ejection | None:
        """The endpoint gave no answer. Returns its ejection, when this was one failure too many.

        `tried_at` is when the request was sent, if it was to prove the endpoint.
        """
        self.answers[slot] += 1
        self.errors[slot] += 1
        last = self._board.ejection(slot)
        if last is not None and not is_proved(last, self._board.proved_at(slot)):
            return self.eject(slot, policy, Cause.FAILURES, now) if tried_at > last.until else None
        self._troubled.add(slot)
        answered_at = self._board.answered_at(slot)
        if not self.streaks[slot] or self.streaks_since[slot] <= answered_at * _MICROSECONDS:
            self.streaks[slot], self.streaks_since[slot] = 0, int(now * _MICROSECONDS)
        self.streaks[slot] += 1
        if is_tripped(self._board.streaks(slot), answered_at, policy):
            return self.eject(slot, policy, Cause.FAILURES, now)
        return None

    def eject(self, slot: Slot, policy: BreakerPolicy, cause: Cause, now: float) -> Ejection | None:
        """Leave the endpoint out from now on; None when it is already."""
        ejection = eject(self._board.ejection(slot), policy, cause, now)
        if ejection is not None:
            self.ejections[slot] = _packed(ejection)
            self._version[0] += 1
        return ejection

    def begin_trial(self, slot: Slot, now: float) -> None:
        """A request is sent that is to prove an endpoint which was left out."""
        self.trials[slot] = int(now * _MICROSECONDS)

    def prove(self, slot: Slot, tried_at: float) -> None:
        """The request of then was answered."""
        self.proved[slot] = int(tried_at * _MICROSECONDS)

    def end_trial(self, slot: Slot, tried_at: float) -> None:
        """The request of then has ended, whatever it proved. A newer one goes on."""
        if self.trials[slot] == int(tried_at * _MICROSECONDS):
            self.trials[slot] = 0

    def forget(self, slot: Slot) -> None:
        """Another pod has the slot now, of which nothing is known."""
        size = len(self.ejections)
        for column in range(len(_COLUMNS)):
            self._cells[column * size + slot] = 0
        self._version[0] += 1

    def clear(self) -> None:
        """Forget everything."""
        self._cells[:] = memoryview(bytes(self._cells.nbytes)).cast("q")
        self._version[0] += 1


class Health:
    """What one worker makes of the board: whom to leave out, and what its own requests tell."""

    def __init__(self, board: HealthBoard, row: HealthRow, policy: BreakerPolicy, clock: Callable[[], float]) -> None:
        """`policy` is in force where a server has none of its own; `clock` is the monotonic one."""
        self._board = board
        self._row = row
        self._policy = policy
        self._clock = clock
        self._pods: dict[Slot, str] = {}
        self._seen = b""
        self._suspects: dict[Slot, Ejection] = {}

    def install(self, endpoints: Iterable[Endpoint]) -> None:
        """The endpoints of a new table."""
        pods = {endpoint.slot: endpoint.uid for endpoint in endpoints}
        for slot, uid in pods.items():
            if self._pods.get(slot, uid) != uid:
                self._row.forget(slot)
        # Pods that are not there now stay on record: their slot may come back with another one.
        self._pods |= pods
        self._seen = b""

    def left_out(self, pods: Mapping[Slot, str], policy: TrafficPolicy) -> frozenset[str]:
        """Return the uids of those `pods` of one server that take no new request now."""
        versions = self._board.versions.tobytes()
        if versions != self._seen:
            self._look(versions)
        return self._judge(pods, self._policy.of(policy)) if self._suspects else _NOBODY

    def sent(self, endpoint: Endpoint) -> float:
        """A request goes there, right after `left_out` was asked. Returns when, if it is to prove the endpoint, else 0;
        whatever is told of the request later is told with it, and in the end `over`.
        """
        suspected = self._suspects.get(endpoint.slot)
        if suspected is None:
            return 0.0
        now = self._clock()
        if now < suspected.until:
            # It is out, and taken all the same because too many are.
            return 0.0
        self._row.begin_trial(endpoint.slot, now)
        return now

    def answers(self, endpoint: Endpoint, status: int, policy: TrafficPolicy, tried_at: float = 0.0) -> None:
        """The first piece of its answer came, or an answer that was kept back."""
        if status < _SERVER_ERRORS:
            self._row.answer(endpoint.slot, self._clock())
            if tried_at:
                self._row.prove(endpoint.slot, tried_at)
        elif status_is_transient(status):
            self.failed(endpoint, policy, tried_at)
        else:
            now = self._clock()
            ejection = self._row.error_answer(endpoint.slot, self._policy.of(policy), now, tried_at)
            if ejection is not None:
                log_ejection(endpoint, ejection, now)

    def first_token(self, endpoint: Endpoint, seconds: float) -> None:
        """The first token of a stream took so long."""
        self._row.first_token(endpoint.slot, natural_log(max(seconds, _SHORTEST_SECONDS)))

    def failed(self, endpoint: Endpoint, policy: TrafficPolicy, tried_at: float = 0.0) -> bool:
        """It gave no answer, or none but that it cannot. True when that was one failure too many."""
        ejection = self._row.failure(endpoint.slot, self._policy.of(policy), self._clock(), tried_at)
        if ejection is not None:
            log_ejection(endpoint, ejection, self._clock())
        return ejection is not None

    def broke_off(self, endpoint: Endpoint) -> None:
        """An answer that had begun did not end."""
        self._row.error(endpoint.slot)

    def over(self, endpoint: Endpoint, tried_at: float) -> None:
        """The request has ended. Where it proved nothing, the next one may."""
        if tried_at:
            self._row.end_trial(endpoint.slot, tried_at)

    def _look(self, versions: bytes) -> None:
        self._seen = versions
        board = self._board
        found = {slot: board.ejection(slot) for slot in board.ejected(self._pods)}
        self._suspects = {slot: ejection for slot, ejection in found.items() if ejection is not None}

    def _judge(self, pods: Mapping[Slot, str], policy: BreakerPolicy) -> frozenset[str]:
        now, board = self._clock(), self._board
        suspects = []
        for slot, ejection in tuple(self._suspects.items()):
            if slot not in pods:
                continue
            suspect = Suspect(pods[slot], ejection, board.proved_at(slot), board.tried_at(slot))
            if standing(suspect, now) is Standing.IN:
                # Proved: nothing to think about until it is ejected again.
                del self._suspects[slot]
            else:
                suspects.append(suspect)
        return left_out(suspects, len(pods), policy.most_percent, now) if suspects else _NOBODY


def log_ejection(endpoint: Endpoint, ejection: Ejection, now: float) -> None:
    """Tell the operator."""
    log.warning(
        "endpoint_left_out",
        pod=endpoint.pod,
        endpoint=f"{endpoint.address}:{endpoint.port}",
        cause=ejection.cause.name.lower(),
        seconds=round(ejection.until - now, 1),
        time_in_a_row=ejection.times,
    )


def _size_bytes(workers: int, capacity: int) -> int:
    return (workers + 1) * (1 + capacity * len(_COLUMNS)) * _CELL_BYTES


def _packed(ejection: Ejection) -> int:
    until = int(ejection.until * _MICROSECONDS)
    return until << _UNTIL_SHIFT | ejection.times << _TIMES_SHIFT | ejection.cause


def _unpacked(cell: int) -> Ejection:
    until = (cell >> _UNTIL_SHIFT) / _MICROSECONDS
    return Ejection(until, (cell >> _TIMES_SHIFT) & 0xFF, Cause(cell & 0xFF))
