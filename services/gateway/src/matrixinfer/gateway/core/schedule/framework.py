"""The one decision of a gateway: which endpoint takes this request.

A profile is data: filters remove candidates, scorers rate the rest in [0, 1], the weighted sum is handed to a picker.
`decide` is pure, so a recorded `View` and request id give the same endpoint again, always. Positions are indices into
`View.endpoints`; parallel sequences instead of objects per candidate keep 500 endpoints cheap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matrixinfer.gateway.core.types import Endpoint

__all__ = ["Decision", "Draw", "Filter", "Picker", "Profile", "Refused", "Removal", "Scorer", "View", "decide"]

Draw: TypeAlias = Callable[[str], float]
"""A replayable number in [0, 1) for a named purpose."""


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision may look at. The sequences run parallel: one item per candidate."""

    endpoints: Sequence[Endpoint]
    requests: Sequence[int]
    """In flight, from all workers."""
    request_bytes: Sequence[int]
    """Bytes of the bodies in flight: how much prompt the endpoint still has to read."""
    tried: frozenset[str] = frozenset()
    """Uids of the pods that this request already failed on."""
    limit: int | None = None
    """Most requests that one endpoint may have in flight."""


Filter: TypeAlias = Callable[[View, Sequence[int]], list[int]]
Scorer: TypeAlias = Callable[[View, Sequence[int]], list[float]]
Picker: TypeAlias = Callable[[View, Sequence[int], Sequence[float], Draw], int]


@dataclass(frozen=True, slots=True)
class Profile:
    """How one server's endpoints are chosen. Names appear in logs and explanations."""

    filters: tuple[tuple[str, Filter], ...]
    scorers: tuple[tuple[str, float, Scorer], ...]
    picker: tuple[str, Picker]


@dataclass(frozen=True, slots=True)
class Removal:
    """What one filter took out."""

    filter: str
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen endpoint with everything that led to it."""

    endpoint: Endpoint
    candidates: tuple[int, ...]
    scores: tuple[float, ...]
    removals: tuple[Removal, ...]
    picker: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No endpoint is left; `filter` is the one that removed the last, empty when there was none to begin with."""

    filter: str
    removals: tuple[Removal, ...]


def decide(profile: Profile, view: View, draw: Draw) -> Decision | Refused:
    """Choose one endpoint of `view`, or say which filter left none."""
    candidates: Sequence[int] = range(len(view.endpoints))
    removals: list[Removal] = []
    for name, keep in profile.filters:
        kept = keep(view, candidates)
        if len(kept) != len(candidates):
            removals.append(Removal(name, tuple(sorted(set(candidates).difference(kept)))))
        if not kept:
            return Refused(name if candidates else "", tuple(removals))
        candidates = kept
    if not candidates:
        return Refused("", tuple(removals))
    scores = _total(profile, view, candidates)
    name, pick = profile.picker
    chosen = pick(view, candidates, scores, draw)
    return Decision(view.endpoints[chosen], tuple(candidates), tuple(scores), tuple(removals), name)


def _total(profile: Profile, view: View, candidates: Sequence[int]) -> Sequence[float]:
    weighted = [(weight, score(view, candidates)) for _, weight, score in profile.scorers]
    if len(weighted) == 1:
        return weighted[0][1]
    return [sum(weight * scores[i] for weight, scores in weighted) for i in range(len(candidates))]
