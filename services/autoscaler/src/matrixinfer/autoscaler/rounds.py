"""The rounds: every period each binding is measured and decided, all at once and each on its own.

Owns: the period, deadlines, and what is remembered between rounds. A binding whose pods hang, or that makes the
arithmetic fail, loses its own round and nobody else's.
Refuses: writing. A verdict is left where the controller finds it, and its key is woken.
Trap: pods are scraped between two looks at the stores, so everything is looked at again after the scrape.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from matrixinfer.api.conditions import parse_time
from matrixinfer.autoscaler import metrics
from matrixinfer.autoscaler.collect.evidence import Book
from matrixinfer.autoscaler.collect.scrape import ScrapeFailed
from matrixinfer.autoscaler.core.decide import Decision, History, Situation, decide
from matrixinfer.autoscaler.core.signals import Sample, Signal, activity_of, signal_of
from matrixinfer.autoscaler.endpoints import Endpoint
from matrixinfer.autoscaler.observe import Measured, Stores
from matrixinfer.autoscaler.plan import blocked
from matrixinfer.autoscaler.rules import idle_window_of, rules_of, unread_metrics, wanted_of
from matrixinfer.autoscaler.seen import BindingSeen, Verdict
from matrixinfer.engines.exposition import Histogram, MetricReader, Reading
from matrixinfer.engines.metric_names import Metric
from matrixinfer.kube.resource import Key
from matrixinfer.service.clock import Monotonic, Now
from matrixinfer.service.logging import get_logger

__all__ = ["Memory", "Rounds", "Scrapes"]

log = get_logger(__name__)

_LEAST_PAUSE_SECONDS = 1.0
_ALWAYS_READ = (Metric.RUNNING, Metric.WAITING, Metric.GENERATION_TOKENS)


class Scrapes(Protocol):
    """How one pod is read."""

    async def scrape(self, endpoints: Sequence[Endpoint], reader: MetricReader) -> Reading:
        """Read one pod; raises `ScrapeFailed`."""
        ...


@dataclass(slots=True)
class _Entry:
    """What is remembered of one binding."""

    uid: str
    infer_uid: str
    book: Book = field(default_factory=Book)
    history: History = field(default_factory=History)
    verdict: Verdict | None = None
    names: tuple[Metric | str, ...] = ()
    reader: MetricReader = field(default_factory=lambda: MetricReader(()))


class Memory:
    """What is remembered between rounds: lost with the process, and safe to lose."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}

    def latest(self, key: Key, uid: str) -> Verdict | None:
        """The latest verdict of this very binding."""
        entry = self._entries.get(key)
        return entry.verdict if entry is not None and entry.uid == uid else None

    def entry(self, seen: BindingSeen, infer_uid: str) -> _Entry:
        """The memory of a binding; a namesake, or another target, starts anew."""
        entry = self._entries.get(seen.key)
        if entry is None or (entry.uid, entry.infer_uid) != (seen.binding.metadata.uid, infer_uid):
            entry = self._entries[seen.key] = _Entry(seen.binding.metadata.uid, infer_uid)
        return entry

    def keep(self, keys: Sequence[Key]) -> None:
        """Forget the bindings that are not among these."""
        kept = set(keys)
        self._entries = {key: entry for key, entry in self._entries.items() if key in kept}

    def sentences(self) -> Mapping[str, str]:
        """The last sentence of each binding, for people."""
        return {
            str(key): entry.verdict.decision.sentence
            for key, entry in self._entries.items()
            if entry.verdict is not None
        }


class Rounds:
    """Runs as a task of the leader."""

    def __init__(
        self,
        stores: Stores,
        scraper: Scrapes,
        memory: Memory,
        wake: Callable[[Key], None],
        *,
        period_seconds: float,
        now: Now,
        monotonic: Monotonic,
        bindings_at_once: int = 32,
    ) -> None:
        self._stores = stores
        self._scraper = scraper
        self._memory = memory
        self._wake = wake
        self._period_seconds = period_seconds
        self._now = now
        self._monotonic = monotonic
        self._slots = asyncio.Semaphore(bindings_at_once)
        self._called = asyncio.Event()

    def call(self) -> None:
        """Do not wait for the end of the period: somebody waits for a decision."""
        self._called.set()

    async def run(self) -> None:
        """Round after round, for ever; a round that took longer than the period is followed at once by the next."""
        while True:
            began = self._monotonic()
            self._called.clear()
            await self.round()
            pause = max(self._period_seconds - (self._monotonic() - began), 0.0)
            # However many call, rounds keep a distance.
            await asyncio.sleep(min(_LEAST_PAUSE_SECONDS, pause))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(pause - _LEAST_PAUSE_SECONDS, 0.0)):
                    await self._called.wait()

    async def round(self) -> None:
        """Measure and decide every binding once."""
        began = self._monotonic()
        keys = self._stores.bindings.keys()
        self._memory.keep(keys)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._isolated(key), name=f"round-{key}") for key in keys]
        states = [task.result() for task in tasks]
        for state in ("decided", "blocked", "failed"):
            metrics.BINDINGS.labels(state).set(states.count(state))
        metrics.ROUNDS.inc()
        metrics.ROUND_SECONDS.observe(self._monotonic() - began)

    async def _isolated(self, key: Key) -> str:
        """One binding's round, with a deadline, and whatever goes wrong kept to itself; returns how it ended."""
        try:
            # The deadline begins when the binding's turn comes: those that wait are not cut off for others' slowness.
            async with self._slots, asyncio.timeout(self._period_seconds):
                decided = await self._measure_and_decide(key)
        except TimeoutError:
            log.warning("round_cut_off", binding=str(key), after_seconds=self._period_seconds)
            return "failed"
        # A defect in one binding's arithmetic must not stop the others.
        except Exception:
            log.exception("round_failed", binding=str(key))
            return "failed"
        return "decided" if decided else "blocked"

    async def _measure_and_decide(self, key: Key) -> bool:
        seen = self._stores.seen(key)
        if seen is None or not _decidable(seen):
            return False
        await self._measure(seen)
        seen = self._stores.seen(key)
        if seen is None or not _decidable(seen):
            return False
        self._decide(seen)
        self._wake(key)
        return True

    async def _measure(self, seen: BindingSeen) -> None:
        """Scrape every ready pod of the target and note what it said."""
        infer, target, policy = seen.infer, seen.target, seen.policy
        if infer is None or target is None or policy is None:
            return
        entry = self._memory.entry(seen, infer.metadata.uid)
        names = (*_ALWAYS_READ, *(wanted.metric for wanted in wanted_of(policy.spec)))
        if entry.names != names:
            entry.names, entry.reader = names, MetricReader(names)
        pods, _ = self._stores.measured(target, infer)
        async with asyncio.TaskGroup() as group:
            for pod in pods:
                group.create_task(self._note(entry, pod), name=f"scrape-{pod.uid}")
        entry.book.keep([pod.uid for pod in pods])

    async def _note(self, entry: _Entry, pod: Measured) -> None:
        began = self._monotonic()
        try:
            reading = await self._scraper.scrape(pod.endpoints, entry.reader)
        except ScrapeFailed as exc:
            metrics.SCRAPES.labels(exc.failure).inc()
            log.debug("scrape_failed", pod=pod.uid, why=str(exc))
            entry.book.note(pod.uid, pod.restarts, None)
        else:
            metrics.SCRAPES.labels("ok").inc()
            entry.book.note(pod.uid, pod.restarts, _sample(reading, entry.names, self._now()))
        metrics.SCRAPE_SECONDS.observe(self._monotonic() - began)

    def _decide(self, seen: BindingSeen) -> None:
        """Decide from what has been noted; no await from here to the verdict."""
        infer, target, policy = seen.infer, seen.target, seen.policy
        scaling = seen.scaling
        if infer is None or target is None or policy is None or scaling is None:
            return
        now = self._now()
        entry = self._memory.entry(seen, infer.metadata.uid)
        pods, absent = self._stores.measured(target, infer)
        evidence = [entry.book.of(pod.uid) for pod in pods]
        activity = activity_of(evidence, absent)
        signals = [signal_of(wanted, evidence, absent, activity) for wanted in wanted_of(policy.spec)]
        signals += [Signal(wanted.name, wanted.target, None, 0, len(pods)) for wanted in unread_metrics(policy.spec)]
        situation = Situation(
            least=min(scaling.min_replicas, scaling.max_replicas),
            most=scaling.max_replicas,
            current=infer.replicas,
            signals=signals,
            activity=activity,
            rules=rules_of(policy.spec),
            pods_per_replica=max(infer.entry_pods(target.role), 1),
            idle_window=idle_window_of(policy.spec),
            wake_up_at=_moment(infer.wake_up),
        )
        gap = timedelta(seconds=max(60.0, 4 * self._period_seconds))
        decision = decide(situation, entry.history.resumed(now, infer.replicas, gap), now)
        entry.history = decision.history.unenacted(infer.replicas) if policy.spec.dry_run else decision.history
        entry.verdict = Verdict(now, infer.metadata.uid, infer.replicas, decision)
        metrics.DECISIONS.labels(_direction(decision, infer.replicas)).inc()


def _decidable(seen: BindingSeen) -> bool:
    return seen.binding.metadata.deletion_timestamp is None and blocked(seen) is None


def _sample(reading: Reading, names: Sequence[Metric | str], at: datetime) -> Sample:
    """The wanted numbers of one scrape; what is absent stays absent."""
    numbers: dict[Metric | str, float] = {}
    histograms: dict[Metric | str, Histogram] = {}
    for name in names:
        if (number := reading.number(name)) is not None:
            numbers[name] = number
        if (histogram := reading.histogram(name)) is not None:
            histograms[name] = histogram
    return Sample(at, numbers, histograms)


def _moment(text: str) -> datetime | None:
    """The moment of an annotation that somebody wrote; nonsense is no moment."""
    try:
        moment = parse_time(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _direction(decision: Decision, current: int) -> str:
    if decision.replicas == current:
        return "keep"
    return "up" if decision.replicas > current else "down"
