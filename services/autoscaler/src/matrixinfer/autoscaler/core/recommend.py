"""How many replicas the metrics ask for, before any limit on how fast that may happen.

Owns: one vote per metric and their combination; the metric that asks for most decides. The rule is the one of
Kubernetes' HorizontalPodAutoscaler with the true number of pods: pods without a value count as fully loaded when that
could take replicas away, and as idle when it could add some, and never turn the direction round.
Trap: replicas that are still starting are pods without a value, so a slow start does not look like ever more load.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matrixinfer.autoscaler.core.signals import Signal

__all__ = ["Recommendation", "Vote", "recommended", "vote"]

_MOST = 10**9


@dataclass(frozen=True, slots=True)
class Vote:
    """What one metric asks for; `replicas` is `None` when nothing is known of it."""

    signal: Signal
    replicas: int | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What all metrics together ask for, not yet within bounds.

    `replicas` is `None` when no metric is known. `only_up` is set when one of them is unknown: what it would have
    asked for might be more, so nothing may be taken away.
    """

    votes: tuple[Vote, ...]
    replicas: int | None
    only_up: bool


def vote(signal: Signal, *, current: int, pods_per_replica: int, tolerance: float) -> Vote:
    """Ask one metric. `current` is at least 1; `pods_per_replica` pods of a replica are measured."""
    if signal.value is None or not signal.pods:
        return Vote(signal, None)
    replicas = _shared(signal, current, pods_per_replica, tolerance) if signal.shared else None
    if replicas is None:
        replicas = _level(signal, current, pods_per_replica, tolerance)
    return Vote(signal, min(replicas, _MOST))


def recommended(signals: Sequence[Signal], *, current: int, pods_per_replica: int, tolerance: float) -> Recommendation:
    """Ask all metrics and take the most."""
    votes = tuple(
        vote(signal, current=current, pods_per_replica=pods_per_replica, tolerance=tolerance) for signal in signals
    )
    known = [cast.replicas for cast in votes if cast.replicas is not None]
    only_up = len(known) < len(votes)
    if not known:
        return Recommendation(votes, None, only_up)
    return Recommendation(votes, max(known, default=current) if not only_up else max(current, *known), only_up)


def _shared(signal: Signal, current: int, pods_per_replica: int, tolerance: float) -> int:
    """A total that the replicas share."""
    total, per_replica = signal.value or 0.0, signal.target * pods_per_replica
    if total / per_replica >= current:
        return _settled(total / per_replica, current, tolerance)
    cautious = (total + signal.missing * signal.target) / per_replica
    return min(_settled(cautious, current, tolerance), current)


def _level(signal: Signal, current: int, pods_per_replica: int, tolerance: float) -> int:
    """A level such as a latency: it scales with the replicas that showed it, not with those still starting."""
    ratio = (signal.value or 0.0) / signal.target
    if abs(ratio - 1) <= tolerance:
        return current
    if ratio > 1:
        return max(math.ceil(_rounded(ratio * signal.pods / pods_per_replica)), current)
    seen = signal.pods + signal.missing
    cautious = (ratio * signal.pods + signal.missing) / seen
    if abs(cautious - 1) <= tolerance:
        return current
    return min(math.ceil(_rounded(cautious * seen / pods_per_replica)), current)


def _settled(demand: float, current: int, tolerance: float) -> int:
    """The whole number that covers a demand, or the present one when they are near enough."""
    return current if abs(demand / current - 1) <= tolerance else math.ceil(_rounded(demand))


def _rounded(demand: float) -> float:
    """Take the last bits off, so that 0.1 * 30 is 3 and not a little more, which would round up to 4."""
    return round(min(demand, float(_MOST)), 9)
