"""From scrapes of pods to one signal per metric of a policy.

Owns: what each kind of metric means as load. A gauge is its value; a counter is its rate; a histogram is the 95th
percentile of what all pods together observed lately. Rates and percentiles need two scrapes of the same process, so a
pod that was scraped once is missing for them, not zero.
Trap: a latency without observations says nothing while requests are in flight (everything may be stuck), and says
"idle" only when nothing is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from matrixinfer.autoscaler.core.histogram import quantile, since
from matrixinfer.engines.exposition import Histogram
from matrixinfer.engines.metric_names import METRICS, Metric, MetricKind, resolve

__all__ = ["Activity", "PodEvidence", "Sample", "Signal", "Wanted", "activity_of", "signal_of"]

WINDOW: Final = timedelta(seconds=60)
"""What rates and percentiles look back on."""

QUANTILE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Wanted:
    """One metric of a policy: `name` as the policy writes it, `target` for one instance."""

    name: str
    target: float

    @property
    def metric(self) -> Metric | str:
        """The canonical metric, or the user's own name."""
        return resolve(self.name) or self.name


@dataclass(frozen=True, slots=True)
class Sample:
    """What one scrape of one pod said; absent members are unknown."""

    at: datetime
    numbers: Mapping[Metric | str, float] = field(default_factory=dict)
    histograms: Mapping[Metric | str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodEvidence:
    """All scrapes of one process of one pod, oldest first; empty when the last scrape of it failed."""

    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Signal:
    """One metric over all pods of a target.

    `value` is a total for `shared` metrics (more replicas share it) and a level for the others (a latency). `None`
    is unknown. `missing` pods should have a value and have none.
    """

    name: str
    target: float
    value: float | None
    pods: int
    missing: int
    shared: bool = True

    @property
    def mean(self) -> float:
        """What one pod carries; for a latency the level itself. 0 when unknown."""
        if self.value is None or not self.pods:
            return 0.0
        return self.value / self.pods if self.shared else self.value


@dataclass(frozen=True, slots=True)
class Activity:
    """Whether anybody uses the target: requests in flight, and whether any were served since the scrape before."""

    in_flight: float | None
    served: bool = False

    @property
    def is_idle(self) -> bool:
        """True only when it is certain that nobody asks."""
        return self.in_flight == 0 and not self.served


def activity_of(pods: Sequence[PodEvidence], unseen: int) -> Activity:
    """Requests in flight over all pods; unknown as soon as one pod's are."""
    running = [pod.samples[-1].numbers.get(Metric.RUNNING) for pod in pods if pod.samples]
    waiting = [pod.samples[-1].numbers.get(Metric.WAITING, 0.0) for pod in pods if pod.samples]
    known = [value for value in running if value is not None]
    complete = not unseen and len(known) == len(pods) and bool(pods)
    in_flight = math.fsum(known) + math.fsum(waiting) if complete or any(known) or any(waiting) else None
    return Activity(in_flight, any(_served(pod) for pod in pods))


def _served(pod: PodEvidence) -> bool:
    """Tokens came out between the last two scrapes: short requests that no gauge has seen."""
    if len(pod.samples) < 2:
        return False
    before, after = (sample.numbers.get(Metric.GENERATION_TOKENS, 0.0) for sample in pod.samples[-2:])
    return after > before


def signal_of(wanted: Wanted, pods: Sequence[PodEvidence], unseen: int, activity: Activity) -> Signal:
    """The signal of one metric; `unseen` pods exist and were not scraped (starting, unreachable)."""
    if _kind(wanted.metric, pods) is MetricKind.HISTOGRAM:
        return _level(wanted, pods, unseen, activity)
    values = [_load(wanted.metric, pod) for pod in pods]
    known = [value for value in values if value is not None]
    missing = unseen + len(values) - len(known)
    return Signal(wanted.name, wanted.target, math.fsum(known) if known else None, len(known), missing)


def _kind(metric: Metric | str, pods: Sequence[PodEvidence]) -> MetricKind:
    """A user's own metric is what it looks like: buckets make a histogram, `_total` a counter."""
    if isinstance(metric, Metric):
        return METRICS[metric].kind
    if any(metric in pod.samples[-1].histograms for pod in pods if pod.samples):
        return MetricKind.HISTOGRAM
    return MetricKind.COUNTER if metric.endswith("_total") else MetricKind.GAUGE


def _load(metric: Metric | str, pod: PodEvidence) -> float | None:
    """A gauge's value or a counter's rate for one pod."""
    if not pod.samples:
        return None
    newest = pod.samples[-1]
    value = newest.numbers.get(metric)
    if value is None or _kind(metric, (pod,)) is MetricKind.GAUGE:
        return value
    base = _baseline(pod)
    before = None if base is None else base.numbers.get(metric)
    if base is None or before is None or value < before:
        return None
    return (value - before) / (newest.at - base.at).total_seconds()


def _level(wanted: Wanted, pods: Sequence[PodEvidence], unseen: int, activity: Activity) -> Signal:
    """The fleet's percentile: buckets of all pods are merged first, percentiles are never averaged."""
    parts = [_recent(wanted.metric, pod) for pod in pods]
    known = [part for part in parts if part is not None]
    merged = Histogram.merged(known)
    value = None if merged is None else quantile(merged, QUANTILE)
    if merged is not None and value is None and activity.in_flight == 0:
        value = 0.0
    missing = unseen + len(parts) - len(known)
    return Signal(wanted.name, wanted.target, value, len(known), missing, shared=False)


def _recent(metric: Metric | str, pod: PodEvidence) -> Histogram | None:
    base = _baseline(pod)
    if base is None or metric not in base.histograms or metric not in pod.samples[-1].histograms:
        return None
    return since(pod.samples[-1].histograms[metric], base.histograms[metric])


def _baseline(pod: PodEvidence) -> Sample | None:
    """The newest scrape that is a window old, else the oldest; `None` when the newest is the only one."""
    *earlier, newest = pod.samples or (None,)
    if newest is None or not earlier:
        return None
    old = [sample for sample in earlier if sample is not None and sample.at <= newest.at - WINDOW]
    return old[-1] if old else earlier[0]
