"""Which endpoints of a server are much worse than their peers: in errors, or in the time to the first token.

What all endpoints have in common is the server's, the model's or the load's fault, and leaving endpoints out would
make it worse; so nobody is judged alone. Times are compared by their geometric mean, which one long prompt does not
move, and only those of streams, because the time to the first byte of any other answer is its length. Pure: the
supervisor looks once a second and says what it saw.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from statistics import median
from typing import Final, NamedTuple

from matrixinfer.gateway.core.breaker import Cause

__all__ = ["OutlierPolicy", "Outliers", "Tally", "judge"]

WINDOW_LOOKS: Final = 30
"""Looks, one a second, over which endpoints are compared."""
_LEAST_ERRORS: Final = 5
_LEAST_TIMED: Final = 10
_LEAST_PEERS: Final = 2
_QUICK_SECONDS: Final = 0.5
"""A first token within this time is fast enough, however much faster the others are."""


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """What is too much worse."""

    error_percent: int = 50
    """Share of an endpoint's answers that are errors, and twice the share of its peers; 0 never."""
    ttft_factor: float = 5.0
    """Times the median of its peers; 0 never."""


class Tally(NamedTuple):
    """What was counted of one endpoint. Sums that only grow, or the difference of two of them."""

    answers: int = 0
    """Requests with an outcome."""
    errors: int = 0
    """Those that failed, or were answered with a 5xx."""
    timed: int = 0
    """Streams whose first token came."""
    log_ttft: float = 0.0
    """Sum of the natural logarithms of their times to it, in seconds."""

    def since(self, earlier: "Tally") -> "Tally":
        """Return what was counted since then."""
        return Tally(
            self.answers - earlier.answers,
            self.errors - earlier.errors,
            self.timed - earlier.timed,
            self.log_ttft - earlier.log_ttft,
        )


class Outliers:
    """Remembers the last looks at one server's endpoints."""

    def __init__(self) -> None:
        self._looks: dict[str, deque[Tally]] = {}

    def look(self, tallies: Mapping[str, Tally], policy: OutlierPolicy) -> Mapping[str, Cause]:
        """Take the sums of the endpoints that take requests, by uid; return who is an outlier, and of what kind.

        Whoever is not among them, or is found to be an outlier, starts afresh when it is seen again.
        """
        for uid in self._looks.keys() - tallies.keys():
            del self._looks[uid]
        recent = {uid: self._since(uid, tally) for uid, tally in tallies.items()}
        found = judge(recent, policy)
        for uid in found:
            del self._looks[uid]
        return found

    def _since(self, uid: str, tally: Tally) -> Tally:
        looks = self._looks.setdefault(uid, deque(maxlen=WINDOW_LOOKS))
        if looks and tally.answers < looks[-1].answers:
            # A worker that died took its sums along.
            looks.clear()
        looks.append(tally)
        return tally.since(looks[0])


def judge(recent: Mapping[str, Tally], policy: OutlierPolicy) -> Mapping[str, Cause]:
    """Return who is too much worse than the others, by what was counted of all within the same span."""
    slow = _slow(recent, policy.ttft_factor) if policy.ttft_factor else ()
    failing = _failing(recent, policy.error_percent / 100) if policy.error_percent else ()
    return {**dict.fromkeys(slow, Cause.LATENCY), **dict.fromkeys(failing, Cause.ERRORS)}


def _failing(recent: Mapping[str, Tally], share: float) -> list[str]:
    answers, errors = sum(t.answers for t in recent.values()), sum(t.errors for t in recent.values())

    def is_outlier(own: Tally) -> bool:
        if own.errors < max(_LEAST_ERRORS, share * own.answers):
            return False
        others = answers - own.answers
        # A stream that breaks off now may have been answered before the span began: then it has errors and no answer.
        return others > 0 and own.errors / max(own.answers, own.errors) >= 2 * (errors - own.errors) / others

    return [uid for uid, own in recent.items() if is_outlier(own)]


def _slow(recent: Mapping[str, Tally], factor: float) -> list[str]:
    typical = {uid: exp(t.log_ttft / t.timed) for uid, t in recent.items() if t.timed >= _LEAST_TIMED}
    if len(typical) <= _LEAST_PEERS:
        return []
    limit = max(_QUICK_SECONDS, factor * median(typical.values()))
    return [uid for uid, seconds in typical.items() if seconds > limit]
