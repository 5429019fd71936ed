"""Continuous batching: who computes in the next step, how long the step takes, what it yields.

Owns: the waiting queue, the running batch and their blocks. A step gives each decoding sequence one token and spends
the rest of the token budget on prompts (chunked prefill), oldest first.
Refuses: clocks and text. `plan` says how long a step takes; the caller waits and then calls `finish`.
Trap: a sequence may be aborted between the two; `finish` skips whatever is no longer running.
"""

from collections import deque
from dataclasses import dataclass, field

from matrixinfer.enginesim.kvcache import BlockPool, block_hashes

__all__ = ["Job", "Pace", "Scheduler", "Step"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the simulated hardware is; 0 means that the work takes no time."""

    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    slowdown: float = 1.0

    def seconds(self, prefill_tokens: int, *, decoding: bool) -> float:
        """Duration of one step."""
        prefill = prefill_tokens / self.prefill_tokens_per_second if self.prefill_tokens_per_second else 0.0
        decode = 1 / self.decode_tokens_per_second if decoding and self.decode_tokens_per_second else 0.0
        return (prefill + decode) * self.slowdown


@dataclass(slots=True, eq=False)
class Job:
    """One sequence to compute: a prompt and a number of new tokens (0 for an embedding)."""

    prompt: list[int]
    new_tokens: int
    salt: str = ""
    generated: int = 0
    computed: int = 0
    cached: int = 0
    preemptions: int = 0
    hashes: list[int] = field(default_factory=list)
    shared: int = 0
    private: int = 0

    @property
    def decoding(self) -> bool:
        """True when the whole prompt has been computed."""
        return self.computed >= len(self.prompt)

    @property
    def is_done(self) -> bool:
        """True when nothing is left to compute."""
        return self.decoding and self.generated >= self.new_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computes: prompt tokens per job, the jobs that decode, and how long it takes."""

    prefills: tuple[tuple[Job, int], ...]
    decodes: tuple[Job, ...]
    admitted: tuple[Job, ...]
    seconds: float

    @property
    def is_idle(self) -> bool:
        """True when there is nothing to compute."""
        return not self.prefills and not self.decodes


class Scheduler:
    """The queues of one engine."""

    def __init__(self, *, pool: BlockPool, block_size: int, max_jobs: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._block_size = block_size
        self._max_jobs = max_jobs
        self._max_step_tokens = max_step_tokens

    def submit(self, job: Job) -> None:
        """Queue a job; `fits` says beforehand whether it can ever run."""
        job.hashes = block_hashes(job.prompt, self._block_size, job.salt)
        self.waiting.append(job)

    def fits(self, tokens: int) -> bool:
        """True when a sequence of so many tokens fits into memory at all."""
        return self._blocks(tokens) <= self.pool.capacity

    def abort(self, job: Job) -> None:
        """Drop a job wherever it is; nothing happens when it is already gone."""
        if job in self.running:
            self.running.remove(job)
            self._release(job)
        elif job in self.waiting:
            self.waiting.remove(job)

    def plan(self, pace: Pace) -> Step:
        """Admit what fits and say what the next step computes."""
        decodes = tuple(job for job in list(self.running) if job.decoding and self._grow(job))
        budget = max(self._max_step_tokens - len(decodes), 1)
        prefills: list[tuple[Job, int]] = []
        for job in self.running:
            if not job.decoding and budget:
                budget -= self._share(job, budget, prefills)
        admitted: list[Job] = []
        while self.waiting and budget and len(self.running) < self._max_jobs and self._admit(self.waiting[0]):
            job = self.waiting.popleft()
            self.running.append(job)
            admitted.append(job)
            budget -= self._share(job, budget, prefills)
        seconds = pace.seconds(sum(tokens for _, tokens in prefills), decoding=bool(decodes))
        return Step(tuple(prefills), decodes, tuple(admitted), seconds)

    def finish(self, step: Step) -> list[Job]:
        """Account for a step that has been computed; return the jobs that got a token (or their embedding)."""
        alive = set(self.running)
        served: list[Job] = []
        for job, tokens in step.prefills:
            if job not in alive:
                continue
            job.computed += tokens
            if job.decoding:
                self._publish(job)
                served.append(job)
        served += [job for job in step.decodes if job in alive]
        for job in served:
            job.generated += bool(job.new_tokens)
            if job.is_done:
                self.running.remove(job)
                self._release(job)
        return served

    def _share(self, job: Job, budget: int, prefills: list[tuple[Job, int]]) -> int:
        """Give a prompt its part of the step's budget."""
        tokens = min(len(job.prompt) - job.computed, budget)
        prefills.append((job, tokens))
        return tokens

    def _admit(self, job: Job) -> bool:
        """Reserve memory for the prompt and its first token; the last prompt token is always computed."""
        matched = self.pool.matched(job.hashes[: max(len(job.prompt) - 1, 0) // self._block_size])
        private = self._blocks(len(job.prompt) + job.generated + 1) - matched
        if not self.pool.acquire(job.hashes[:matched], private):
            return False
        job.shared, job.private = matched, private
        job.computed = job.cached = matched * self._block_size
        self.prefix_queries += len(job.prompt)
        self.prefix_hits += job.cached
        return True

    def _publish(self, job: Job) -> None:
        """The full blocks of a computed prompt can be reused from now on."""
        published = self.pool.publish(job.hashes[job.shared :])
        job.shared += published
        job.private -= published

    def _grow(self, job: Job) -> bool:
        """Memory for one more token; without it the youngest job gives its place up, as vLLM does.

        Jobs are asked oldest first, so a victim has never been granted its token in the same step.
        """
        if job not in self.running:
            return False
        while self._blocks(len(job.prompt) + job.generated + 1) > job.shared + job.private:
            if self.pool.acquire((), 1):
                job.private += 1
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        """Back to the front of the queue; its tokens so far are computed again with the prompt."""
        self.running.remove(job)
        self._release(job)
        self.preemptions += 1
        job.preemptions += 1
        job.computed = 0
        self.waiting.appendleft(job)

    def _release(self, job: Job) -> None:
        self.pool.release(job.hashes[: job.shared], job.private)
        job.shared = job.private = 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
