"""How good the choice of endpoints is: time to first token and throughput on simulated engines, in virtual time.

`python -m tests.bench.gateway.quality` plays workloads with several ways to choose; a table and one line.
SIMULATED: the engines are the scheduler and the KV memory of `libs/enginesim` (continuous batching, chunked prefill,
prefix reuse, eviction by age, preemption), stepped in virtual time without sockets; no GPU, no network. The gateway's
side is real: prompts are JSON bodies, read and hashed as in production, placed by the production `Placer` on the
production load board and prefix index, with engine reports that are up to a second old.

Ratios are what counts; seconds depend on the pace that is assumed below.

`ours, two` are two gateways that share nothing, each with a part of the requests. What we are compared with:

* `random`, `round-robin`, `least-request` (exact requests in flight, as a proxy with one process counts them);
* `original`: the plugins and default weights of the gateway that this one replaces, by the formulas of
  `core.schedule.baseline`: metrics of the last scrape, a second old; the best score wins; prompts of 8 KiB at most, in
  blocks of 64 bytes, noted when the answer has ended.

The trap: in a closed loop throughput and latency are one number, so a way to choose that is good at one end of a run
looks good at both; the means are over all requests and several seeds.
"""

import argparse
import heapq
import json
import os
import random
import statistics
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import nan
from typing import Final, Protocol

from xxhash import xxh3_64_intdigest

from matrixinfer.enginesim.kvcache import BlockPool
from matrixinfer.enginesim.scheduler import Job, Pace, Scheduler, Step
from matrixinfer.gateway.board import Claim, LoadBoard
from matrixinfer.gateway.core.load import Burden, EngineLoads, EngineReport, progress
from matrixinfer.gateway.core.prompt import Prompt, read_prompt
from matrixinfer.gateway.core.schedule.framework import Refused, View, decide
from matrixinfer.gateway.core.schedule.profiles import profile_of
from matrixinfer.gateway.core.table import Pool
from matrixinfer.gateway.core.types import Endpoint, PluginWeight, Server
from matrixinfer.gateway.placing import Placement, Placer
from matrixinfer.gateway.prefixes import PrefixIndex

PACE: Final = Pace(prefill_tokens_per_second=16_000.0, decode_tokens_per_second=50.0)
BLOCK_TOKENS: Final = 16
STEP_TOKENS: Final = 2048
SCRAPE_SECONDS: Final = 1.0
WORST_LIMIT: Final = 1.03
"""Nothing may be more than 3 % worse than least request."""
_TABLE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """What clients ask. Prompts are a prefix that a group shares and a question of its own, in tokens."""

    name: str
    replicas: int
    clients: int
    """Requests in flight, all from the start; each answer is followed by the next request."""
    groups: int
    per_group: int
    prefix: int
    question: tuple[int, ...]
    """Lengths, drawn evenly."""
    answer: tuple[int, int]
    """Shortest and longest; all between are as likely, or engines would run in lockstep."""
    kv_tokens: int = 100_000
    gains: bool = True
    """Whether prompts share anything."""
    turns: int = 1
    """Requests of one conversation, each beginning with the whole of the one before."""
    pause: float = 0.05
    """Seconds that a client takes from an answer to its next request on average, at most twice as many. Without them a
    request comes in the very instant in which the engine that just answered plans its next step: a lockstep that only
    simulations have, and that flatters whoever sends a request to where one has just ended."""


WORKLOADS: Final = (
    # The two of the published benchmark, an eighth as many requests, on as many replicas.
    Workload("long shared prefix", 3, 96, 64, 16, 4096, (256,), (96, 160), kv_tokens=200_000),
    Workload("short shared prefix", 3, 96, 64, 16, 256, (4096,), (96, 160), kv_tokens=200_000),
    Workload("one hot prefix", 8, 128, 1, 2048, 4096, (64, 256), (64, 128)),
    Workload("conversations", 8, 96, 96, 1, 512, (128, 512), (64, 128), turns=8, pause=1.0),
    Workload("no shared prefixes", 4, 96, 768, 1, 0, (1024, 2048), (96, 160), gains=False),
    Workload("mixed long and short", 4, 64, 768, 1, 0, (64,) * 9 + (12_000,), (32, 256), gains=False),
    Workload("tiny prompts", 4, 256, 4000, 1, 0, (24, 48), (8, 48), gains=False),
)


@dataclass(slots=True)
class Ask:
    """One request: what its engine reads, and what the gateway sees of it."""

    tokens: list[int]
    answer: int
    prompt: Prompt
    body: bytes
    number: int
    pause: float
    """Seconds from the end of its answer to the client's next request."""
    sent: float = 0.0
    first: float = 0.0
    then: "Ask | None" = None
    """The next turn of the conversation."""


def asks_of(load: Workload, seed: int) -> list[Ask]:
    """Make the requests, in the order in which clients take them."""
    chance = random.Random(seed)
    words = [f"{chance.randrange(16**4):04x}" for _ in range(8192)]
    made: list[Ask] = []
    for _ in range(load.groups):
        prefix = _draw(chance, load.prefix)
        for _ in range(load.per_group):
            tokens, before = list(prefix), None
            for _ in range(load.turns):
                tokens = tokens + _draw(chance, chance.choice(load.question))
                answer = chance.randint(*load.answer)
                ask = _ask(tokens, len(prefix), answer, words, len(made), chance.uniform(0.0, 2 * load.pause))
                if before is None:
                    made.append(ask)
                else:
                    before.then = ask
                before, tokens = ask, tokens + _draw(chance, answer)
    chance.shuffle(made)
    return made


def _draw(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(8192) for _ in range(count)]


def _ask(tokens: list[int], system: int, answer: int, words: Sequence[str], number: int, pause: float) -> Ask:
    texts = [" ".join(words[token] for token in part) for part in (tokens[:system], tokens[system:])]
    turns = [{"role": role, "content": text} for role, text in zip(("system", "user"), texts, strict=True) if text]
    body = json.dumps({"model": "m", "messages": turns, "max_tokens": answer}).encode()
    return Ask(tokens, answer, read_prompt(body), body, number, pause)


class Policy(Protocol):
    """A way to choose. Told of everything that a gateway sees."""

    def choose(self, ask: Ask, now: float) -> int:
        """Return the position of the engine that takes a request."""

    def first_token(self, ask: Ask, engine: int) -> None:
        """The answer begins."""

    def written(self, ask: Ask, tokens: int) -> None:
        """So many tokens of the answer have come."""

    def ended(self, ask: Ask, engine: int) -> None:
        """The answer has ended."""

    def scraped(self, reports: Sequence["Report"], now: float) -> None:
        """Engines were read."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one engine says at a scrape."""

    running: int
    waiting: int
    kv_usage: float
    kv_tokens: int
    ttft: float
    tpot: float


@dataclass(slots=True)
class Quiet:
    """What policies share that look at less."""

    count: int
    chance: random.Random
    requests: list[int] = field(init=False)
    turn: int = 0

    def __post_init__(self) -> None:
        self.requests = [0] * self.count

    def choose(self, ask: Ask, now: float) -> int:
        raise NotImplementedError

    def first_token(self, ask: Ask, engine: int) -> None:
        pass

    def written(self, ask: Ask, tokens: int) -> None:
        pass

    def ended(self, ask: Ask, engine: int) -> None:
        self.requests[engine] -= 1

    def scraped(self, reports: Sequence[Report], now: float) -> None:
        pass


class Random(Quiet):
    """Anyone."""

    def choose(self, ask: Ask, now: float) -> int:
        return self.chance.randrange(self.count)


class RoundRobin(Quiet):
    """By turns."""

    def choose(self, ask: Ask, now: float) -> int:
        self.turn += 1
        return self.turn % self.count


class LeastRequest(Quiet):
    """Fewest requests in flight; among equals a drawn one."""

    def choose(self, ask: Ask, now: float) -> int:
        fewest = min(self.requests)
        engine = self.chance.choice([i for i, count in enumerate(self.requests) if count == fewest])
        self.requests[engine] += 1
        return engine


ORIGINAL: Final = profile_of(
    [PluginWeight(name) for name in ("least-request", "kv-cache", "least-latency", "prefix-cache", "best")], "original"
)


class Original(Quiet):
    """The default of the gateway that this one replaces; its prefix cache included, which knows 8 KiB of a prompt."""

    BLOCK_BYTES = 64
    BLOCKS = 128
    CAPACITY = 50_000
    TOP = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.endpoints = tuple(Endpoint(i, f"p{i}", f"u{i}", "10.0.0.1", 8000 + i) for i in range(self.count))
        self.owners: defaultdict[int, set[int]] = defaultdict(set)
        self.recent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(self.count)]
        self.reports: Sequence[Report] = [Report(0, 0, 0.0, 0, nan, nan)] * self.count
        self.latencies = [(nan, nan)] * self.count

    def choose(self, ask: Ask, now: float) -> int:
        told = self.reports
        nothing = [nan] * self.count
        engines = EngineLoads(
            [0.0] * self.count,
            [0.0] * self.count,
            [report.running for report in told],
            [report.waiting for report in told],
            [report.kv_usage for report in told],
            nothing,
            nothing,
            [ttft for ttft, _ in self.latencies],
            [tpot for _, tpot in self.latencies],
        )
        zeros = [0] * self.count
        view = View(
            self.endpoints,
            zeros,
            zeros,
            zeros,
            engines,
            self._matched(ask),
            prompt_tokens=100,
        )
        decision = decide(ORIGINAL, view, lambda _salt: self.chance.random())
        # When all engines have ten requests waiting it answers 400; here the client gets a pod, so that it can go on.
        return self.chance.randrange(self.count) if isinstance(decision, Refused) else decision.position

    def ended(self, ask: Ask, engine: int) -> None:
        recent = self.recent[engine]
        for block in self._blocks(ask):
            recent[block] = None
            recent.move_to_end(block)
            self.owners[block].add(engine)
        while len(recent) > self.CAPACITY:
            self.owners[recent.popitem(last=False)[0]].discard(engine)

    def scraped(self, reports: Sequence[Report], now: float) -> None:
        self.reports = reports
        # Without new samples the old value stays.
        self.latencies = [
            (report.ttft if report.ttft == report.ttft else ttft, report.tpot if report.tpot == report.tpot else tpot)
            for report, (ttft, tpot) in zip(reports, self.latencies, strict=True)
        ]

    def _blocks(self, ask: Ask) -> list[int]:
        text, block = ask.prompt.text[: self.BLOCK_BYTES * self.BLOCKS], 0
        blocks = []
        for at in range(0, len(text), self.BLOCK_BYTES):
            block = xxh3_64_intdigest(text[at : at + self.BLOCK_BYTES], block)
            blocks.append(block)
        return blocks

    def _matched(self, ask: Ask) -> dict[int, int]:
        """Per pod the matched share in percent, of the five with the longest match."""
        blocks = self._blocks(ask)
        found: dict[int, int] = {}
        for at in range(len(blocks), 0, -1):
            for engine in self.owners.get(blocks[at - 1], ()):
                if len(found) < self.TOP:
                    found.setdefault(engine, at * 100 // len(blocks))
        return found


class Ours:
    """The production `Placer` with a list of plugins; an empty one is the default profile."""

    def __init__(self, count: int, seed: int, plugins: Sequence[PluginWeight] = ()) -> None:
        endpoints = tuple(Endpoint(i, f"p{i}", f"u{i}", "10.0.0.1", 8000 + i, mark=i) for i in range(count))
        server = Server("ns", "s", None, "vLLM", endpoints, plugins=tuple(plugins))
        self._fds = LoadBoard.create(1, count), PrefixIndex.create(workers=1, capacity=count, table_bytes=_TABLE_BYTES)
        board = LoadBoard(self._fds[0], 1, count)
        prefixes = PrefixIndex(self._fds[1], worker=0, workers=1, capacity=count, table_bytes=_TABLE_BYTES)
        self._row, self._engines = board.row(0), board.engine_cells()
        self._placer = Placer(Pool.of(server), board, prefixes, lambda: self._now)
        self._now, self._seed = 0.0, seed
        self._claims: dict[int, tuple[Claim, Burden]] = {}

    def choose(self, ask: Ask, now: float) -> int:
        self._now = now
        placed = self._placer.place(f"{self._seed}-{id(ask)}-{ask.number}", ask.prompt, len(ask.body), model="m")
        assert isinstance(placed, Placement)
        self._claims[id(ask)] = self._row.enter(placed.endpoint.slot, placed.burden), placed.burden
        return placed.decision.position

    def first_token(self, ask: Ask, engine: int) -> None:
        self._claims[id(ask)][0].prefilled()

    def written(self, ask: Ask, tokens: int) -> None:
        claim, laid = self._claims[id(ask)]
        claim.expect(progress(laid, streams=True, pieces=tokens, seconds=0.0).decode_tokens)

    def ended(self, ask: Ask, engine: int) -> None:
        self._claims.pop(id(ask))[0].end()

    def scraped(self, reports: Sequence[Report], now: float) -> None:
        for slot, report in enumerate(reports):
            told = EngineReport(report.running, report.waiting, report.kv_usage, nan, report.kv_tokens)
            self._engines.report(slot, told, now)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


class TwoReplicas:
    """Two of our gateways, which know nothing of each other but what engines say; each request takes one of them."""

    def __init__(self, count: int, seed: int) -> None:
        self._replicas = Ours(count, seed), Ours(count, seed + 1000)
        self._chance = random.Random(seed)
        self._taken: dict[int, Ours] = {}

    def choose(self, ask: Ask, now: float) -> int:
        replica = self._taken[id(ask)] = self._chance.choice(self._replicas)
        return replica.choose(ask, now)

    def first_token(self, ask: Ask, engine: int) -> None:
        self._taken[id(ask)].first_token(ask, engine)

    def written(self, ask: Ask, tokens: int) -> None:
        self._taken[id(ask)].written(ask, tokens)

    def ended(self, ask: Ask, engine: int) -> None:
        self._taken.pop(id(ask)).ended(ask, engine)

    def scraped(self, reports: Sequence[Report], now: float) -> None:
        for replica in self._replicas:
            replica.scraped(reports, now)

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()


@dataclass(slots=True)
class Engine:
    """One simulated engine and the step that it computes."""

    scheduler: Scheduler
    step: Step | None = None
    asks: dict[Job, Ask] = field(default_factory=dict)
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)

    @staticmethod
    def of(load: Workload) -> "Engine":
        """Make an idle one with an empty memory."""
        pool = BlockPool(load.kv_tokens // BLOCK_TOKENS)
        return Engine(Scheduler(pool=pool, block_size=BLOCK_TOKENS, max_jobs=256, max_step_tokens=STEP_TOKENS))

    def report(self) -> Report:
        """Say what `/metrics` would, and start new averages."""
        scheduler = self.scheduler
        ttft = statistics.fmean(self.ttft) if self.ttft else nan
        tpot = statistics.fmean(self.tpot) if self.tpot else nan
        self.ttft.clear()
        self.tpot.clear()
        return Report(
            len(scheduler.running),
            len(scheduler.waiting),
            scheduler.pool.usage,
            scheduler.pool.capacity * BLOCK_TOKENS,
            ttft,
            tpot,
        )


@dataclass(slots=True)
class Outcome:
    """What one run came to."""

    seconds: float
    ttft: list[float]
    hit_share: float

    @property
    def throughput(self) -> float:
        return len(self.ttft) / self.seconds

    @property
    def mean_ttft(self) -> float:
        return statistics.fmean(self.ttft)

    @property
    def p99_ttft(self) -> float:
        return sorted(self.ttft)[int(len(self.ttft) * 0.99)]


class Play:
    """One workload with one policy, in virtual time."""

    def __init__(self, load: Workload, asks: Sequence[Ask], policy: Policy) -> None:
        self._engines = [Engine.of(load) for _ in range(load.replicas)]
        self._queue = iter(asks)
        self._policy = policy
        # Time, a number that keeps the order of equals, and the engine whose step ends, or the request that is sent, or
        # neither: then engines are read.
        self._events: list[tuple[float, int, int | Ask | None]] = []
        self._order = 0
        self._now = 0.0
        self._ended_at = 0.0
        self._ttft: list[float] = []
        self._later(0.0, None)
        # Not all in one instant: 1000 a second.
        for number, ask in enumerate(islice(self._queue, load.clients)):
            self._later(number / 1000.0, ask)

    def run(self) -> Outcome:
        """Run to the end."""
        while self._events:
            self._now, _, what = heapq.heappop(self._events)
            if isinstance(what, Ask):
                self._send(what)
            elif what is not None:
                self._finish(what)
            elif self._events or not self._now:
                self._policy.scraped([engine.report() for engine in self._engines], self._now)
                self._later(SCRAPE_SECONDS, None)
        hits = sum(engine.scheduler.prefix_hits for engine in self._engines)
        queries = sum(engine.scheduler.prefix_queries for engine in self._engines)
        return Outcome(self._ended_at, self._ttft, hits / queries)

    def _later(self, seconds: float, what: int | Ask | None) -> None:
        self._order += 1
        heapq.heappush(self._events, (self._now + seconds, self._order, what))

    def _send(self, ask: Ask) -> None:
        ask.sent = self._now
        at = self._policy.choose(ask, self._now)
        job = Job(prompt=ask.tokens, new_tokens=ask.answer)
        self._engines[at].asks[job] = ask
        self._engines[at].scheduler.submit(job)
        if self._engines[at].step is None:
            self._plan(at)

    def _plan(self, at: int) -> None:
        step = self._engines[at].scheduler.plan(PACE)
        self._engines[at].step = None if step.is_idle else step
        if not step.is_idle:
            self._later(step.seconds, at)

    def _finish(self, at: int) -> None:
        """Deliver the step that has ended, and plan the next one."""
        engine, self._ended_at = self._engines[at], self._now
        assert engine.step is not None
        for job in engine.scheduler.finish(engine.step):
            self._deliver(engine, at, job)
        self._plan(at)

    def _deliver(self, engine: Engine, at: int, job: Job) -> None:
        ask = engine.asks[job]
        if job.generated == 1:
            ask.first, seconds = self._now, self._now - ask.sent
            self._ttft.append(seconds)
            engine.ttft.append(seconds)
            self._policy.first_token(ask, at)
        if job.generated % 8 == 0:
            self._policy.written(ask, job.generated)
        if job.is_done:
            del engine.asks[job]
            engine.tpot.append((self._now - ask.first) / max(ask.answer - 1, 1))
            self._policy.ended(ask, at)
            if (following := ask.then or next(self._queue, None)) is not None:
                self._later(ask.pause, following)


_QUIET: Final[dict[str, type[Quiet]]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "least-request": LeastRequest,
    "original": Original,
}


@dataclass(slots=True)
class Summary:
    """The means of several seeds."""

    throughput: float
    ttft: float
    p99: float
    hit_share: float


def measure(load: Workload, seeds: Sequence[int], plugins: Sequence[PluginWeight] = ()) -> dict[str, Summary]:
    """Play a workload with every policy."""
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for seed in seeds:
        asks = asks_of(load, seed)
        for name, kind in _QUIET.items():
            outcomes[name].append(Play(load, asks, kind(load.replicas, random.Random(seed))).run())
        for name, ours in (
            ("ours", Ours(load.replicas, seed, plugins)),
            ("ours, two", TwoReplicas(load.replicas, seed)),
        ):
            outcomes[name].append(Play(load, asks, ours).run())
            ours.close()
    return {name: _summary(made) for name, made in outcomes.items()}


def _summary(made: Sequence[Outcome]) -> Summary:
    def mean(value: Callable[[Outcome], float]) -> float:
        return statistics.fmean(map(value, made))

    return Summary(
        mean(lambda o: o.throughput),
        mean(lambda o: o.mean_ttft),
        mean(lambda o: o.p99_ttft),
        mean(lambda o: o.hit_share),
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table; 1 when ours is worse than least request by more than it may be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a workload's name")
    arguments = parser.parse_args()
    _say("SIMULATED engines, virtual time; the gateway's own code chooses. Higher req/s and lower TTFT are better.")
    _say(f"{'workload':22}{'policy':15}{'req/s':>8}{'TTFT s':>9}{'p99 s':>9}{'cached':>8}{'req/s x':>9}{'TTFT x':>8}")
    worst, gains = 0.0, []
    for load in WORKLOADS:
        if arguments.only not in load.name:
            continue
        found = measure(load, range(arguments.seeds))
        base, ours = found["least-request"], found["ours"]
        for name, one in found.items():
            ratios = f"{one.throughput / base.throughput:>9.2f}{one.ttft / base.ttft:>8.2f}"
            _say(
                f"{load.name:22}{name:15}{one.throughput:>8.2f}{one.ttft:>9.3f}{one.p99:>9.3f}{one.hit_share:>8.0%}{ratios}"
            )
        worst = max(worst, base.throughput / ours.throughput, ours.ttft / base.ttft)
        if load.gains:
            gains.append(f"{load.name} x{ours.throughput / found['original'].throughput:.2f}")
    _say(
        f"quality (simulated): throughput against the original's defaults: {', '.join(gains)}; "
        f"at worst {worst:.3f} x least request over all workloads (limit {WORST_LIMIT})"
    )
    return int(worst > WORST_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
