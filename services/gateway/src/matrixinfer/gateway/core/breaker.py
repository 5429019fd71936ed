"""Which endpoints are left out for a while because they fail, for how long, and how one comes back.

Closed, open and half-open, in the words used here: an endpoint is `IN`, it is `OUT` until a time, and then it is
`ON_TRIAL`: one request at a time may be sent there until one is answered. A failure or an error on trial takes it out
again, for twice as long. Pure; the facts are cells of shared memory (`health`), so what one worker learnt is true for
all at once.

Two traps. Leaving out everybody turns a guess into an outage: whoever is beyond the share that may be left out stays
in, those first who would be back first. And requests that were in flight when an endpoint was ejected end one after
the other, well or badly, perhaps long after: they say how it was, so only a request that was sent since its time was
over decides whether it is in again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NamedTuple

from matrixinfer.gateway.core.types import TrafficPolicy

__all__ = [
    "BreakerPolicy",
    "Cause",
    "Ejection",
    "Standing",
    "Suspect",
    "eject",
    "is_proved",
    "is_tripped",
    "left_out",
    "standing",
]

_REMEMBERED_SECONDS: Final = 60.0
"""Shortest time an endpoint has to be back before its next ejection counts as its first."""
_MOST_TIMES: Final = 63
"""Doublings beyond any limit."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When an endpoint is left out, and for how long."""

    failures: int = 5
    """In a row, over all workers; 0 never."""
    base_seconds: float = 10.0
    """The first time; it doubles each time after."""
    most_seconds: float = 300.0
    """But never longer."""
    most_percent: int = 50
    """Share of a server's endpoints that may be left out."""

    def of(self, server: TrafficPolicy) -> "BreakerPolicy":
        """Return the policy of a server, where it says something of its own."""
        if server.eject_failures is None and server.eject_seconds is None and server.eject_most_percent is None:
            return self
        return BreakerPolicy(
            self.failures if server.eject_failures is None else server.eject_failures,
            self.base_seconds if server.eject_seconds is None else server.eject_seconds,
            self.most_seconds,
            self.most_percent if server.eject_most_percent is None else server.eject_most_percent,
        )

    def seconds(self, times: int) -> float:
        """How long the ejection number `times` lasts."""
        return float(min(self.most_seconds, self.base_seconds * 2 ** (min(times, _MOST_TIMES) - 1)))


class Cause(IntEnum):
    """Why an endpoint was left out."""

    FAILURES = 1
    """Failures in a row."""
    ERRORS = 2
    """A share of errors that its peers do not have."""
    LATENCY = 3
    """First tokens far later than those of its peers."""


class Ejection(NamedTuple):
    """An endpoint is out until `until`, the `times`-th time in a row."""

    until: float
    times: int
    cause: Cause


class Standing(Enum):
    """What an endpoint may be given."""

    IN = "in"
    OUT = "out"
    ON_TRIAL = "on trial"


class Suspect(NamedTuple):
    """An endpoint that was ejected at some time, and what is known of it since."""

    uid: str
    ejection: Ejection
    proved_at: float
    """When the newest request was sent that it answered, of those that were to prove it; 0 when it never did."""
    tried_at: float
    """When the request was sent that is to prove it, as long as that has no outcome; else 0."""


def is_tripped(streaks: Iterable[tuple[int, float]], answered_at: float, policy: BreakerPolicy) -> bool:
    """Whether there were enough failures in a row. `streaks` are count and begin of each worker's own row of them.

    A streak counts when it began after anybody's last answer; of one that did not, nobody can say how much is newer.
    """
    if not policy.failures:
        return False
    return sum(count for count, since in streaks if since > answered_at) >= policy.failures


def eject(last: Ejection | None, policy: BreakerPolicy, cause: Cause, now: float) -> Ejection | None:
    """Return the ejection that begins now; None when the endpoint is out already."""
    if last is None:
        return Ejection(now + policy.seconds(1), 1, cause)
    if now < last.until:
        return None
    forgotten = now - last.until > max(_REMEMBERED_SECONDS, policy.seconds(last.times))
    times = 1 if forgotten else min(last.times + 1, _MOST_TIMES)
    return Ejection(now + policy.seconds(times), times, cause)


def is_proved(ejection: Ejection, proved_at: float) -> bool:
    """Whether a request that was sent at `proved_at` and answered ends what an ejection began."""
    return proved_at > ejection.until


def standing(suspect: Suspect, now: float) -> Standing:
    """Return what an endpoint that was ejected may be given now."""
    if now < suspect.ejection.until:
        return Standing.OUT
    return Standing.IN if is_proved(suspect.ejection, suspect.proved_at) else Standing.ON_TRIAL


def left_out(suspects: Iterable[Suspect], endpoints: int, most_percent: int, now: float) -> frozenset[str]:
    """Return the uids that take no new request now, of a server with so many `endpoints`."""
    out = [suspect for suspect in suspects if _takes_nothing(suspect, now)]
    most = endpoints * most_percent // 100
    if len(out) > most:
        out = sorted(out, key=_latest_first)[:most]
    return frozenset(suspect.uid for suspect in out)


def _takes_nothing(suspect: Suspect, now: float) -> bool:
    match standing(suspect, now):
        case Standing.OUT:
            return True
        case Standing.ON_TRIAL:
            return suspect.tried_at > suspect.ejection.until
        case Standing.IN:
            return False


def _latest_first(suspect: Suspect) -> tuple[float, str]:
    return -suspect.ejection.until, suspect.uid
