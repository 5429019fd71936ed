"""One round of one target: signals in, replicas and the sentence that explains them out.

Owns: bounds, scaling to and from zero, and what is remembered between rounds (`History`, a value).
Traps: the *raw* recommendation is what is remembered. Remembering the corrected one would let the maximum over the
scale-down window feed on itself, and nothing would ever be taken away again. And memory can be lost: a history that
starts, or that has a gap, starts with the present size, so that neither a restart nor a first sample scales down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from matrixinfer.autoscaler.core.behavior import Rules, corrected
from matrixinfer.autoscaler.core.panic import panic_until
from matrixinfer.autoscaler.core.recommend import Recommendation, Vote, recommended
from matrixinfer.autoscaler.core.signals import Activity, Signal
from matrixinfer.autoscaler.core.windows import Series, appended

__all__ = ["Decision", "History", "Situation", "decide"]


@dataclass(frozen=True, slots=True)
class History:
    """What a target remembers: raw recommendations, results, the end of panic, the last sign of use."""

    asked: Series = ()
    decided: Series = ()
    panic_until: datetime | None = None
    busy_at: datetime | None = None

    def resumed(self, now: datetime, current: int, gap: timedelta) -> "History":
        """The history to decide with: fresh at the present size when there is none or the last round is too long ago.

        Replicas that somebody else has set since the last round count as asked for: a person who adds some is not
        overruled before the scale-down window has passed.
        """
        if not self.asked or now - self.asked[-1].at > gap:
            fresh = appended((), now, current)
            return History(fresh, fresh, None, now)
        if self.decided[-1].value == current:
            return self
        return replace(self, asked=appended(self.asked, now, current), decided=appended(self.decided, now, current))

    def unenacted(self, current: int) -> "History":
        """This history when the last decision was not carried out (dry run): what was in force stays in force."""
        return replace(self, decided=appended(self.decided[:-1], self.decided[-1].at, current))


@dataclass(frozen=True, slots=True)
class Situation:
    """A target as it is: bounds, present size, and what its pods say.

    `pods_per_replica` is how many measured pods one replica has. `idle_window` is how long nobody must have asked
    before a target with `least` 0 is stopped; `wake_up_at` is when somebody last asked for a stopped one.
    """

    least: int
    most: int
    current: int
    signals: Sequence[Signal]
    activity: Activity
    rules: Rules
    pods_per_replica: int = 1
    idle_window: timedelta = timedelta(minutes=10)
    wake_up_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why. `recommended` is the raw recommendation within bounds, `None` when nothing is known."""

    replicas: int
    recommended: int | None
    panic: bool
    sentence: str
    votes: tuple[Vote, ...]
    history: History


def decide(situation: Situation, history: History, now: datetime) -> Decision:
    """Decide one round. The result is within [least, most] whatever the metrics say."""
    if situation.current == 0:
        return _asleep(situation, history, now)
    if not situation.activity.is_idle:
        history = replace(history, busy_at=now)
    asked = recommended(
        situation.signals,
        current=situation.current,
        pods_per_replica=situation.pods_per_replica,
        tolerance=situation.rules.tolerance,
    )
    if situation.current < situation.least or situation.current > situation.most:
        return _out_of_bounds(situation, asked, history, now)
    if situation.least == 0 and _idle_long_enough(situation, history, now):
        seconds = situation.idle_window.total_seconds()
        return _settled(0, 0, asked, f"nobody has asked for {seconds:g} s: stopping all replicas", history, now)
    if asked.replicas is None:
        sentence = f"keeping {situation.current}: {_unknown(asked)}"
        # No opinion counts as asking for what there is, so that an outage of metrics is followed by a full window.
        return _settled(situation.current, None, asked, sentence, history, now, noted=situation.current)
    return _follow(situation, asked, _bounded(situation, asked.replicas), history, now)


def _follow(situation: Situation, asked: Recommendation, wanted: int, history: History, now: datetime) -> Decision:
    """Follow the metrics as far as the rules allow."""
    until = panic_until(
        situation.rules.panic, history.panic_until, recommended=wanted, current=situation.current, now=now
    )
    history = replace(history, panic_until=until)
    correction = corrected(
        situation.rules,
        recommended=wanted,
        current=situation.current,
        asked=history.asked,
        decided=history.decided,
        panic=until is not None,
        now=now,
    )
    replicas = min(max(correction.replicas, situation.least), situation.most)
    change = f"{situation.current} → {replicas}" if replicas != situation.current else f"keeping {replicas}"
    parts = [f"{change}: {_reasons(asked)}"]
    if wanted != replicas:
        parts.append(f"wanted {wanted}, but {correction.limit or 'the bounds hold'}")
    if asked.only_up:
        parts.append("a metric is unknown, so nothing is taken away")
    return _settled(replicas, wanted, asked, "; ".join(parts), history, now)


def _asleep(situation: Situation, history: History, now: datetime) -> Decision:
    """A target without replicas: there are no pods to ask."""
    nothing = Recommendation((), None, only_up=False)
    if situation.least > 0:
        sentence = f"0 → {situation.least}: below the minimum"
        return _settled(situation.least, None, nothing, sentence, history, now, noted=situation.least)
    woken = situation.wake_up_at is not None and now - situation.wake_up_at < situation.idle_window
    if woken and situation.wake_up_at is not None:
        awake = replace(history, busy_at=now)
        moment = situation.wake_up_at.strftime("%H:%M:%SZ")
        sentence = f"0 → 1: a request came at {moment} and found no replica"
        return _settled(1, 1, nothing, sentence, awake, now)
    return _settled(0, 0, nothing, "keeping 0: nobody asks", history, now)


def _out_of_bounds(situation: Situation, asked: Recommendation, history: History, now: datetime) -> Decision:
    """Bounds are an order, not a signal: they are kept at once, in both directions."""
    above = situation.current > situation.most
    bound = situation.most if above else situation.least
    side = f"above the maximum of {bound}" if above else f"below the minimum of {bound}"
    sentence = f"{situation.current} → {bound}: {situation.current} replicas are {side}"
    return _settled(bound, None, asked, sentence, history, now, noted=bound)


def _settled(
    replicas: int,
    wanted: int | None,
    asked: Recommendation,
    sentence: str,
    history: History,
    now: datetime,
    *,
    noted: int = 0,
) -> Decision:
    """The decision, and the history with it."""
    after = replace(
        history,
        asked=appended(history.asked, now, noted if wanted is None else wanted),
        decided=appended(history.decided, now, replicas),
    )
    return Decision(replicas, wanted, after.panic_until is not None, sentence, asked.votes, after)


def _idle_long_enough(situation: Situation, history: History, now: datetime) -> bool:
    return situation.activity.is_idle and history.busy_at is not None and now - history.busy_at >= situation.idle_window


def _bounded(situation: Situation, replicas: int) -> int:
    """Within bounds; the last replica of a target that may stop goes by the idle window alone."""
    return min(max(replicas, situation.least, 1), situation.most)


def _reasons(asked: Recommendation) -> str:
    """The votes in words, the deciding one first."""
    ranked = sorted(asked.votes, key=lambda cast: -1 if cast.replicas is None else cast.replicas, reverse=True)
    return ", ".join(map(_words, ranked))


def _words(cast: Vote) -> str:
    signal = cast.signal
    if cast.replicas is None:
        return f"{signal.name} is unknown"
    measure = f"{signal.mean:.4g} per pod" if signal.shared else f"{signal.mean:.4g} at p95"
    pods = f"{signal.pods} pod{'s' if signal.pods != 1 else ''}"
    silent = f", {signal.missing} silent" if signal.missing else ""
    return f"{signal.name} is {measure} ({pods}{silent}) with a target of {signal.target:g}"


def _unknown(asked: Recommendation) -> str:
    names = ", ".join(cast.signal.name for cast in asked.votes) or "the metrics"
    return f"no pod says {names}"
