"""How fast replicas may follow a recommendation: stabilization windows and limits per period.

A step that a percentage allows is rounded up in both directions, so that small numbers are never stuck. Limits count
from what was in force within the period; replicas set by somebody else in between count as well, through `current`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from matrixinfer.autoscaler.core.panic import PanicRule
from matrixinfer.autoscaler.core.windows import Series, highest, highest_in_force, lowest, lowest_in_force

__all__ = ["Correction", "Limit", "Rules", "corrected"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A change of at most `instances` and/or `percent` in `period`; `strict` takes the smaller of the two."""

    instances: int
    percent: int
    period: timedelta
    window: timedelta
    strict: bool = False

    def step(self, replicas: int) -> int:
        """How many replicas may be added to, or taken from, so many."""
        share = -(-replicas * self.percent // 100)
        return min(self.instances, share) if self.strict else max(self.instances, share)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a policy wants replicas to follow load."""

    up: Limit
    down: Limit
    panic: PanicRule | None
    tolerance: float


@dataclass(frozen=True, slots=True)
class Correction:
    """What may be done now; `limit` says in words what kept it from the recommendation, "" when nothing did."""

    replicas: int
    limit: str = ""


def corrected(
    rules: Rules, *, recommended: int, current: int, asked: Series, decided: Series, panic: bool, now: datetime
) -> Correction:
    """Move from `current` towards `recommended` as far as the rules allow now.

    `asked` are earlier raw recommendations, `decided` earlier results.
    """
    if panic and rules.panic is not None:
        return _in_panic(rules.panic, recommended, current, decided, now)
    if recommended < current:
        return _down(rules.down, recommended, current, asked, decided, now)
    if recommended > current:
        return _up(rules.up, recommended, current, asked, decided, now)
    return Correction(current)


def _in_panic(rule: PanicRule, recommended: int, current: int, decided: Series, now: datetime) -> Correction:
    """Grow by the panic limit, never shrink."""
    if recommended < current:
        return Correction(current, "nothing is taken away in panic mode")
    start = min(current, _or(lowest_in_force(decided, now, rule.period), current))
    most = max(start - (-start * rule.percent // 100), current)
    if recommended <= most or start == 0:
        return Correction(recommended)
    return Correction(most, f"panic mode adds at most {rule.percent}% in {_span(rule.period)}")


def _down(limit: Limit, recommended: int, current: int, asked: Series, decided: Series, now: datetime) -> Correction:
    settled = max(recommended, _or(highest(asked, now, limit.window), recommended))
    if settled >= current:
        why = f"recommendations of the last {_span(limit.window)} went up to {settled}"
        return Correction(current, why)
    start = max(current, _or(highest_in_force(decided, now, limit.period), current))
    least = start - limit.step(start)
    replicas = min(max(settled, least), current)
    if replicas > settled:
        return Correction(replicas, f"at most {limit.step(start)} fewer in {_span(limit.period)}")
    if settled > recommended:
        return Correction(replicas, f"recommendations of the last {_span(limit.window)} went up to {settled}")
    return Correction(replicas)


def _up(limit: Limit, recommended: int, current: int, asked: Series, decided: Series, now: datetime) -> Correction:
    settled = min(recommended, _or(lowest(asked, now, limit.window), recommended))
    if settled <= current:
        return Correction(current, f"recommendations of the last {_span(limit.window)} went down to {settled}")
    start = min(current, _or(lowest_in_force(decided, now, limit.period), current))
    most = start + limit.step(start)
    replicas = max(min(settled, most), current)
    if replicas < settled:
        return Correction(replicas, f"at most {limit.step(start)} more in {_span(limit.period)}")
    if settled < recommended:
        return Correction(replicas, f"recommendations of the last {_span(limit.window)} went down to {settled}")
    return Correction(replicas)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"
