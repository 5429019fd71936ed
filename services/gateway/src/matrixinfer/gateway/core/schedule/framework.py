"""The one decision of a gateway: which endpoint takes this request.

A profile is data: filters remove candidates, scorers rate the rest in [0, 1], the weighted sum is handed to a picker.
`decide` is pure, so a recorded `View` and request id give the same endpoint again, always (`record.replay`). Positions
are indices into `View.endpoints`; parallel sequences instead of objects per candidate keep 500 endpoints cheap.

Of many endpoints only a sample is looked at: those that seem to have the prompt or the adapter, and a handful drawn
from the request id. The best of a dozen fresh draws is as good as the best of all, and the price of a decision no
longer grows with the fleet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from matrixinfer.gateway.core.load import EngineLoads
from matrixinfer.gateway.core.types import Endpoint, PluginWeight

__all__ = [
    "SAMPLE_ABOVE",
    "SAMPLE_SIZE",
    "Decision",
    "Draw",
    "Filter",
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


class View(msgspec.Struct, frozen=True, array_like=True):
    """All that a decision may look at. The sequences run parallel: one item per endpoint; mappings are sparse.

    The seam to everybody who knows something: load and engine reports come from the board, what is ejected from the
    breakers, what is cached from the prefix index. What nobody knows keeps its default.
    """

    endpoints: Sequence[Endpoint]
    requests: Sequence[int]
    """Our own in flight, over all workers."""
    prefill_tokens: Sequence[int]
    """Tokens of those that wait for their first byte and are not expected in the endpoint's cache."""
    decode_tokens: Sequence[int]
    """Tokens that the answers in flight are still expected to have."""
    engines: EngineLoads | None = None
    """What engines last said of themselves; None when nobody asks them."""
    cached_tokens: Mapping[int, int] = {}
    """By position: prompt tokens of this request that the endpoint probably has in its cache."""
    adapter_at: frozenset[int] | None = None
    """Positions where the request's adapter is probably loaded; None when it asks for none."""
    prompt_tokens: int = 0
    """Estimate for this request."""
    tried: frozenset[str] = frozenset()
    """Uids of the pods that this request already failed on."""
    ejected: frozenset[str] = frozenset()
    """Uids of the pods that circuit breakers leave out for now."""
    common_tokens: int = 0
    """Likewise of all the other endpoints: the beginning of the prompt is so common that anyone may have it."""
    limit: int | None = None
    """Most requests that one endpoint may have in flight."""
    ttft_seconds: Sequence[float] = ()
    """Recent time to first token per endpoint, NaN where unknown; empty when nobody measures it."""
    tpot_seconds: Sequence[float] = ()
    """Recent time per output token, likewise."""


Filter: TypeAlias = Callable[[View, Sequence[int]], Sequence[int]]
"""Returns what it keeps; the very sequence it was given when it keeps all."""
Scorer: TypeAlias = Callable[[View, Sequence[int]], Sequence[float]]
"""Returns one number in [0, 1] per candidate, on a scale of its own that others' numbers do not move."""
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


class Removal(msgspec.Struct, frozen=True):
    """What one filter took out."""

    filter: str
    positions: tuple[int, ...]


class Decision(msgspec.Struct, frozen=True):
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
    scores = _total(profile, view, candidates)
    name, pick = profile.picker
    position = pick(view, candidates, scores, draw)
    return Decision(view.endpoints[position], position, candidates, scores, removals, name)


def _total(profile: Profile, view: View, candidates: Sequence[int]) -> Sequence[float]:
    total: Sequence[float] | None = None
    for _, weight, score in profile.scorers:
        part = score(view, candidates)
        if total is None:
            total = part if weight == 1.0 else [weight * value for value in part]
        else:
            total = [so_far + weight * value for so_far, value in zip(total, part, strict=True)]
    return [0.0] * len(candidates) if total is None else total


def _sample(view: View, count: int, draw: Draw) -> Sequence[int]:
    """Positions worth a look: who may have the prompt or the adapter, and a handful of drawn ones."""
    drawn = dict.fromkeys(view.cached_tokens)
    if view.adapter_at:
        drawn.update(dict.fromkeys(sorted(view.adapter_at)[:SAMPLE_SIZE]))
    # One draw, and from it a sequence that costs no hash per item.
    number = int(draw("sample") * _RANGE)
    for _ in range(SAMPLE_SIZE):
        number = (number * _FACTOR + _ADDEND) % _RANGE
        drawn[(number >> _LOW_BITS) % count] = None
    return tuple(drawn)
