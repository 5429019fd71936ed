"""The running engine: steps the scheduler in real time and hands tokens to the requests that wait for them.

Owns: the loop, the mailboxes, the pace. Refuses: HTTP.
Trap: the loop keeps a virtual end of the last step and sleeps towards it, so timer granularity does not slow a fast
engine down; after an overload it catches up at most `_CATCH_UP_SECONDS`.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from matrixinfer.enginesim.answers import answer_tokens, natural_length, prompt_seed
from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.kvcache import BlockPool
from matrixinfer.enginesim.metrics import EngineMetrics
from matrixinfer.enginesim.scheduler import Job, Pace, Scheduler, Step

__all__ = ["Ask", "Emission", "EngineStopped", "Mailbox", "SimEngine"]

_CATCH_UP_SECONDS = 0.05


class EngineStopped(RuntimeError):
    """The engine takes no new work: it was told to stop."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence wanted: `limit` new tokens at most (0: embed only)."""

    prompt: Sequence[int]
    limit: int
    model: str
    adapter: str = ""
    seed: int = 0
    minimum: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Emission:
    """One token of one choice; `finish` is set on the last one."""

    index: int
    text: str
    finish: str | None


@dataclass(slots=True, eq=False)
class _Running:
    """A job with its request's mailbox and the time stamps its metrics need."""

    job: Job
    index: int
    mailbox: "Mailbox"
    text: Iterator[str]
    finish: str
    arrived: float
    last_token: float = 0.0


@dataclass(slots=True, eq=False)
class Mailbox:
    """Where one request finds its tokens. `cached` and `prompt` count prompt tokens over all its sequences."""

    open: int
    prompt: int
    queue: list[Emission] = field(default_factory=list)
    cached: int = 0
    broken: bool = False
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self) -> list[Emission]:
        """Everything that came since the last call, waiting for the first; empty when all choices have ended.

        Raises `EngineStopped` when the engine gave the request up.
        """
        if self.broken:
            raise EngineStopped("the engine stopped before the answer was complete")
        if not self.queue:
            if not self.open:
                return []
            self._ready.clear()
            await self._ready.wait()
            return await self.take()
        batch, self.queue = self.queue, []
        return batch

    def put(self, emission: Emission) -> None:
        """Deliver a token and wake the request."""
        if emission.finish is not None:
            self.open -= 1
        self.queue.append(emission)
        self._ready.set()

    def give_up(self) -> None:
        """Tell the request that no more will come."""
        self.broken = True
        self._ready.set()


class SimEngine:
    """One simulated engine; `run` must be running for anything to be answered."""

    def __init__(self, config: SimConfig, metrics: EngineMetrics) -> None:
        self.config = config
        self.pace = Pace(config.prefill_tokens_per_second, config.decode_tokens_per_second)
        self.scheduler = Scheduler(
            pool=BlockPool(config.num_blocks, reuse=config.prefix_caching),
            block_size=config.block_size,
            max_jobs=config.max_num_seqs,
            max_step_tokens=config.max_num_batched_tokens,
        )
        self.aborted = 0
        self.completed = 0
        self.stopping = False
        self._metrics = metrics
        self._jobs: dict[Job, _Running] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> bool:
        """True while any request is waiting or running."""
        return bool(self._jobs)

    def submit(self, asks: Sequence[Ask]) -> Mailbox:
        """Queue all sequences of one request. Raises `EngineStopped` once the engine is stopping."""
        if self.stopping:
            raise EngineStopped("cannot schedule new futures after shutdown")
        mailbox = Mailbox(open=len(asks), prompt=sum(len(ask.prompt) for ask in asks))
        now = time.monotonic()
        for index, ask in enumerate(asks):
            running = _running(ask, index, mailbox, now)
            self._jobs[running.job] = running
            self.scheduler.submit(running.job)
        self._idle.clear()
        self._work.set()
        return mailbox

    def abort(self, mailbox: Mailbox) -> None:
        """Stop computing for a request whose client has gone; nothing happens when it had ended."""
        for running in [running for running in self._jobs.values() if running.mailbox is mailbox]:
            self.scheduler.abort(running.job)
            del self._jobs[running.job]
            self.aborted += 1
            self._metrics.finished("abort")
        self._settle()

    def give_up(self) -> None:
        """Drop all work; every request that waits is told."""
        for mailbox in {running.mailbox for running in self._jobs.values()}:
            self.abort(mailbox)
            mailbox.give_up()

    async def drained(self) -> None:
        """Return when no request is left."""
        await self._idle.wait()

    async def run(self) -> None:
        """Compute for ever."""
        end = 0.0
        while True:
            step = self.scheduler.plan(self.pace)
            if step.is_idle:
                self._work.clear()
                await self._work.wait()
                end = time.monotonic()
                continue
            now = time.monotonic()
            self._admitted(step, now)
            end = max(end, now - _CATCH_UP_SECONDS) + step.seconds
            await asyncio.sleep(max(end - now, 0.0))
            self._deliver(self.scheduler.finish(step), step)

    def _admitted(self, step: Step, now: float) -> None:
        for job in step.admitted:
            running = self._jobs[job]
            running.mailbox.cached += job.cached
            if not job.preemptions:
                self._metrics.queued(now - running.arrived)

    def _deliver(self, served: Sequence[Job], step: Step) -> None:
        """Hand out one token per served job and record its times."""
        now = time.monotonic()
        self._metrics.computed(sum(tokens for _, tokens in step.prefills))
        for job in served:
            running = self._jobs[job]
            done = job.is_done
            if job.new_tokens:
                if running.last_token:
                    self._metrics.next_token(now - running.last_token)
                else:
                    self._metrics.first_token(now - running.arrived)
                running.last_token = now
            finish = running.finish if done else None
            running.mailbox.put(Emission(running.index, next(running.text) if job.new_tokens else "", finish))
            if done:
                del self._jobs[job]
                self.completed += 1
                self._metrics.finished(running.finish, now - running.arrived)
        self._settle()

    def _settle(self) -> None:
        if not self._jobs:
            self._idle.set()


def _running(ask: Ask, index: int, mailbox: Mailbox, now: float) -> _Running:
    """Decide, before anything runs, how long the answer is and why it ends."""
    seed = prompt_seed(ask.prompt, ask.adapter or ask.model, ask.seed + index)
    natural = max(natural_length(seed), ask.minimum)
    cut = ask.ignore_eos or natural > ask.limit
    job = Job(prompt=list(ask.prompt), new_tokens=ask.limit if cut else natural, salt=ask.adapter)
    return _Running(job, index, mailbox, answer_tokens(seed), "length" if cut and ask.limit else "stop", now)
