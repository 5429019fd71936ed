"""The one decision of a gateway: which endpoint takes this request.

A profile is data: filters remove candidates, scorers rate the rest in [0, 1], the weighted sum is handed to a picker.
`decide` is pure, so a recorded `View` and request id give the same endpoint again, always (`record.replay`). Positions
are indices into `View.endpoints`; parallel sequences instead of objects per candidate keep 500 endpoints cheap.

Of many endpoints only a sample is looked at: those that seem to have the prompt or the adapter, and a handful drawn
from the request id. The best of a dozen fresh draws is as good as the best of all, and the price of a decision no
longer grows with the fleet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from matrixinfer.gateway.core.schedule.view import View
from matrixinfer.gateway.core.schedule.work import work
from matrixinfer.gateway.core.types import Endpoint, PluginWeight

__all__ = [
    "SAMPLE_ABOVE",
    "SAMPLE_SIZE",
    "Contest",
    "Decision",
    "Draw",
    "Filter",
    "Part",
    "Picker",
    "Profile",
    "Refused",
    "Removal",
    "Scorer",
    "View",
    "decide",
]

Draw: TypeAlias = Callable[[str], float]
"""A replayable number in [0, 1) for a named purpose."""

SAMPLE_ABOVE: Final = 32
"""Up to so many endpoints every one is a candidate."""
SAMPLE_SIZE: Final = 14
"""Endpoints drawn where there are more."""

# Knuth's linear congruential generator of 64 bits (MMIX); its low bits are poor and are dropped.
_RANGE: Final = 1 << 64
_FACTOR: Final = 6364136223846793005
_ADDEND: Final = 1442695040888963407
_LOW_BITS: Final = 32


Filter: TypeAlias = Callable[[View, Sequence[int]], Sequence[int]]
"""Returns what it keeps; the very sequence it was given when it keeps all."""
Part: TypeAlias = Sequence[float] | dict[int, float]
"""A number for each candidate, or for a few of them, by their indices, where all others have none."""
Scorer: TypeAlias = Callable[["Contest"], Part]
"""Returns numbers in [0, 1], on a scale of its own that others' numbers do not move; none at all when it tells nobody
apart."""
Picker: TypeAlias = Callable[[View, Sequence[int], Sequence[float], Draw], int]
"""Returns one of the candidates."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How one server's endpoints are chosen. Names appear in logs and explanations."""

    filters: tuple[tuple[str, Filter], ...]
    scorers: tuple[tuple[str, float, Scorer], ...]
    picker: tuple[str, Picker]
    plugins: tuple[PluginWeight, ...] = ()
    """What it was made of; empty for a profile of the gateway's own."""
    name: str = ""


class Contest:
    """Who is still in the running, and what several scorers want to know of them."""

    __slots__ = ("candidates", "holders", "view", "work")

    def __init__(self, view: View, candidates: Sequence[int]) -> None:
        self.view = view
        self.candidates = candidates
        self.work = work(view, candidates)
        """Tokens that stand before the request at each candidate, its own not counted."""
        cached = view.cached_tokens
        self.holders = [(candidates.index(i), cached[i]) for i in cached if i in candidates] if cached else ()
        """Who has a part of the prompt: indices into `candidates`, with the tokens."""


class Removal(msgspec.Struct, frozen=True):
    """What one filter took out."""

    filter: str
    positions: tuple[int, ...]


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The chosen endpoint with everything that led to it."""

    endpoint: Endpoint
    position: int
    candidates: Sequence[int]
    scores: Sequence[float]
    removals: tuple[Removal, ...]
    picker: str


class Refused(msgspec.Struct, frozen=True):
    """No endpoint is left; `filter` is the one that removed the last, empty when there was none to begin with."""

    filter: str
    removals: tuple[Removal, ...]


def decide(profile: Profile, view: View, draw: Draw) -> Decision | Refused:
    """Choose one endpoint of `view`, or say which filter left none."""
    count = len(view.endpoints)
    if count > SAMPLE_ABOVE:
        decision = _decide(profile, view, draw, _sample(view, count, draw))
        # A sample that was filtered out says nothing of the others.
        if isinstance(decision, Decision):
            return decision
    return _decide(profile, view, draw, range(count))


def _decide(profile: Profile, view: View, draw: Draw, candidates: Sequence[int]) -> Decision | Refused:
    removals: tuple[Removal, ...] = ()
    for name, keep in profile.filters:
        kept = keep(view, candidates)
        if kept is not candidates and len(kept) != len(candidates):
            removals += (Removal(name, tuple(sorted(set(candidates).difference(kept)))),)
            if not kept:
                return Refused(name, removals)
        candidates = kept
    if not candidates:
        return Refused("", removals)
    scores = _total(profile, Contest(view, candidates)) if profile.scorers else [0.0] * len(candidates)
    name, pick = profile.picker
    position = pick(view, candidates, scores, draw)
    return Decision(view.endpoints[position], position, candidates, scores, removals, name)


def _total(profile: Profile, contest: Contest) -> Sequence[float]:
    total: list[float] = []
    for _, weight, score in profile.scorers:
        part = score(contest)
        if not part:
            continue
        if isinstance(part, dict):
            total = total or [0.0] * len(contest.candidates)
            for at, value in part.items():
                total[at] += weight * value
        elif total:
            total = [so_far + weight * value for so_far, value in zip(total, part, strict=True)]
        else:
            total = [weight * value for value in part]
    return total or [0.0] * len(contest.candidates)


def _sample(view: View, count: int, draw: Draw) -> Sequence[int]:
    """Positions worth a look: who may have the prompt or the adapter, and a handful of drawn ones."""
    drawn = dict.fromkeys(view.cached_tokens)
    if view.home is not None:
        drawn[view.home] = None
    if view.session_at:
        drawn.update(dict.fromkeys(view.session_at))
    if view.adapter_at:
        drawn.update(dict.fromkeys(sorted(view.adapter_at)[:SAMPLE_SIZE]))
    # One draw, and from it a sequence that costs no hash per item.
    number = int(draw("sample") * _RANGE)
    for _ in range(SAMPLE_SIZE):
        number = (number * _FACTOR + _ADDEND) % _RANGE
        drawn[(number >> _LOW_BITS) % count] = None
    return tuple(drawn)
