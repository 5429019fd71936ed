"""What a decision costs: `python -m tests.bench.gateway.decision` prints microseconds per request.

From the bytes of a body to an endpoint with everything noted: the prompt is read and hashed, the prefix index asked,
the view gathered from the board, the default profile applied, the prompt noted. On the production objects, with engine
reports on the board and other requests in flight. The median of the best round counts, on the clock: who else
is on the machine can only add to it, and asking for CPU time costs more than a decision.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from matrixinfer.gateway.board import Claim, LoadBoard, LoadRow
from matrixinfer.gateway.core.load import EngineReport
from matrixinfer.gateway.core.prompt import chain, read_prompt
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.table import Pool
from matrixinfer.gateway.core.types import Endpoint, Server
from matrixinfer.gateway.placing import Placement, Placer
from matrixinfer.gateway.prefixes import PrefixIndex

BUDGET_MICROSECONDS: Final = {8: 25.0, 500: 100.0}
"""For a body of 1.8 kB, by endpoints."""
_TABLE_BYTES: Final = 1 << 22


def body_of(size: int, number: int) -> bytes:
    """A chat body of about `size` bytes: a system prompt that all share, and a question of its own."""
    system = "You are a helpful assistant. " * (size // 58)
    question = f"{number} what is it? " * (size // 40)
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return json.dumps({"model": "m", "messages": turns, "max_tokens": 128, "stream": True}).encode()


@dataclass(slots=True)
class World:
    """A pool with fresh engine reports, and requests of this worker in flight: 4 for each endpoint, the oldest ends."""

    placer: Placer
    row: LoadRow
    in_flight: deque[Claim]

    @staticmethod
    def of(endpoints: int, workers: int) -> "World":
        """Make one."""
        pods = tuple(Endpoint(i, f"p{i}", f"u{i}", "10.0.0.1", 8000, mark=i) for i in range(endpoints))
        board = LoadBoard(LoadBoard.create(workers, 1024), workers, 1024)
        fd = PrefixIndex.create(workers=workers, capacity=1024, table_bytes=_TABLE_BYTES)
        prefixes = PrefixIndex(fd, worker=0, workers=workers, capacity=1024, table_bytes=_TABLE_BYTES)
        engines = board.engine_cells()
        for slot in range(endpoints):
            engines.report(slot, EngineReport(running=4.0, waiting=0.0, kv_usage=0.3, kv_tokens=4e5), time.monotonic())
        placer = Placer(Pool.of(Server("ns", "s", None, "vLLM", pods)), board, prefixes, time.monotonic)
        return World(placer, board.row(0), deque(maxlen=4 * endpoints))

    def send(self, number: int, body: bytes, rung: Rung) -> int:
        """Place one request and return the nanoseconds that it took, the prompt included."""
        began = time.perf_counter_ns()
        placed = self.placer.place(f"request-{number}", read_prompt(body), len(body), model="m", rung=rung)
        took = time.perf_counter_ns() - began
        assert isinstance(placed, Placement)
        if len(self.in_flight) == self.in_flight.maxlen:
            self.in_flight.popleft().end()
        self.in_flight.append(self.row.enter(placed.endpoint.slot, placed.burden))
        return took


def measure(endpoints: int, size: int, workers: int, *, rung: Rung = Rung.FULL, rounds: int) -> float:
    """Microseconds of a median decision, the prompt included."""
    world, each = World.of(endpoints, workers), 400 if size < 10_000 else 100
    found = []
    for turn in range(rounds):
        # Half of the prompts were seen in the round before, half are new; all begin alike.
        bodies = [body_of(size, i if i % 2 else turn * each + i) for i in range(each)]
        found.append(statistics.median(world.send(turn * each + i, body, rung) for i, body in enumerate(bodies)) / 1000)
    return min(found)


def microseconds(work: Callable[[], object], rounds: int, each: int) -> float:
    """The best of some rounds."""
    found = []
    for _ in range(rounds):
        before = time.perf_counter_ns()
        for _ in range(each):
            work()
        found.append((time.perf_counter_ns() - before) / each / 1000)
    return min(found)


def main() -> int:
    """Print the table; 1 when a budget does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    _say(f"{'body':>10}{'endpoints':>11}{'workers':>9}{'rung':>14}{'us/decision':>13}")
    found: dict[tuple[int, int, int, Rung], float] = {}
    for size, endpoints, workers, rung in (
        (1_800, 8, 1, Rung.FULL),
        (1_800, 8, 4, Rung.FULL),
        (1_800, 8, 1, Rung.NO_PREFIX),
        (1_800, 8, 1, Rung.TWO_RANDOM),
        (1_800, 500, 1, Rung.FULL),
        (1_800, 500, 4, Rung.FULL),
        (100_000, 8, 1, Rung.FULL),
        (100_000, 8, 1, Rung.SHORT_PREFIX),
    ):
        one = found[size, endpoints, workers, rung] = measure(endpoints, size, workers, rung=rung, rounds=rounds)
        _say(f"{size:>10,}{endpoints:>11}{workers:>9}{rung.label:>14}{one:>13.1f}")
    body = body_of(100_000, 1)
    prompt = read_prompt(body)
    reading = microseconds(lambda: read_prompt(body), rounds, 100)
    hashing = microseconds(lambda: chain(prompt.text, 1), rounds, 100)
    _say(f"reading a prompt of 100 kB: {reading:.0f} us, hashing it: {hashing:.0f} us")
    kept = all(found[1_800, endpoints, 1, Rung.FULL] <= budget for endpoints, budget in BUDGET_MICROSECONDS.items())
    small, large = found[1_800, 8, 1, Rung.FULL], found[1_800, 500, 1, Rung.FULL]
    _say(
        f"decision: {small:.1f} us with 8 endpoints (budget {BUDGET_MICROSECONDS[8]:.0f}), {large:.1f} us with 500 "
        f"(budget {BUDGET_MICROSECONDS[500]:.0f}), prompt of 1.8 kB included; on {os.cpu_count()} CPUs"
    )
    return int(not kept)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
