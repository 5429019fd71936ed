"""A decision as a value that can be kept, sent, replayed and explained.

A record holds what the decision was made from, not what came of it: the view, the plugins and the request id. Replayed
through the same pure scheduler it gives the same endpoint, always. Making one costs a reference to the view, so every
decision can be recorded; encoding and explaining cost more and are for those that somebody asks about.

The trap: numbers in a view may be NaN or infinite, which JSON cannot say. Records travel as msgpack.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from matrixinfer.gateway.core.schedule.framework import (
    Contest,
    Decision,
    Draw,
    Profile,
    Refused,
    Removal,
    View,
    decide,
)
from matrixinfer.gateway.core.schedule.profiles import TWO_RANDOM, profile_of
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.split import draw
from matrixinfer.gateway.core.types import PluginWeight

__all__ = ["CandidateVerdict", "Explanation", "Recorded", "decode", "encode", "explain", "replay"]


class Recorded(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Everything that one decision was made from; `revision` is that of the snapshot it was made under."""

    request_id: str
    revision: int
    profile: str
    plugins: tuple[PluginWeight, ...]
    view: View
    rung: Rung = Rung.FULL
    """What the gateway had time for; the view shows what it looked at."""

    @staticmethod
    def of(request_id: str, revision: int, profile: Profile, view: View, rung: Rung = Rung.FULL) -> "Recorded":
        """Record a decision of `profile`."""
        return Recorded(request_id, revision, profile.name, profile.plugins, view, rung)


class CandidateVerdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one endpoint: removed by a filter, scored, or not among those that were drawn."""

    pod: str
    endpoint: str
    requests: int
    prefill_tokens: int
    decode_tokens: int
    cached_tokens: int = 0
    removed_by: str = ""
    scores: dict[str, float] = {}
    """Of the scorers that told candidates apart."""
    total: float | None = None
    chosen: bool = False
    home: bool = False
    """Whether a prompt of this beginning belongs here, nobody having it."""


class Explanation(msgspec.Struct, frozen=True):
    """A decision in full, for people. `pod` is empty when none was left; then `refused_by` names the filter."""

    request_id: str
    revision: int
    profile: str
    weights: dict[str, float]
    picker: str
    draws: dict[str, float]
    prompt_tokens: int
    endpoints: int
    candidates: tuple[CandidateVerdict, ...]
    pod: str = ""
    refused_by: str = ""
    rung: str = Rung.FULL.label


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Recorded)


def encode(recorded: Recorded) -> bytes:
    """Return the record as msgpack."""
    return _encoder.encode(recorded)


def decode(data: bytes) -> Recorded:
    """Return the record that `encode` made. Raises msgspec.DecodeError."""
    return _decoder.decode(data)


def replay(recorded: Recorded) -> Decision | Refused:
    """Decide again; the answer is the one that the request got."""
    return decide(_profile(recorded), recorded.view, partial(draw, recorded.request_id))


def explain(recorded: Recorded) -> Explanation:
    """Tell every candidate's story: which filter removed it, what each scorer said, and which draws broke ties."""
    profile, view = _profile(recorded), recorded.view
    draws: dict[str, float] = {}
    decision = decide(profile, view, _noting(recorded.request_id, draws))
    scored = decision if isinstance(decision, Decision) else None
    scores = _scores(profile, view, scored)
    removed = _removed(decision.removals)
    seen = sorted({*removed, *(scored.candidates if scored else ())})
    chosen = scored.position if scored else -1
    totals = dict(zip(scored.candidates, scored.scores, strict=True)) if scored else {}
    return Explanation(
        recorded.request_id,
        recorded.revision,
        recorded.profile,
        {name: weight for name, weight, _ in profile.scorers},
        profile.picker[0],
        draws,
        view.prompt_tokens,
        len(view.endpoints),
        tuple(_verdict(view, i, removed.get(i, ""), scores.get(i, {}), totals.get(i), chosen == i) for i in seen),
        scored.endpoint.pod if scored else "",
        decision.filter if isinstance(decision, Refused) else "",
        recorded.rung.label,
    )


def _profile(recorded: Recorded) -> Profile:
    return TWO_RANDOM if recorded.profile == TWO_RANDOM.name else profile_of(recorded.plugins)


def _noting(request_id: str, draws: dict[str, float]) -> Draw:
    def noted(salt: str) -> float:
        draws[salt] = number = draw(request_id, salt)
        return number

    return noted


def _removed(removals: tuple[Removal, ...]) -> dict[int, str]:
    return {position: removal.filter for removal in removals for position in removal.positions}


def _scores(profile: Profile, view: View, decision: Decision | None) -> Mapping[int, dict[str, float]]:
    if decision is None:
        return {}
    contest = Contest(view, decision.candidates)
    parts = {name: part for name, _, score in profile.scorers if (part := score(contest))}
    scores = {name: part if isinstance(part, Sequence) else _spread(part, decision) for name, part in parts.items()}
    return {i: {name: values[at] for name, values in scores.items()} for at, i in enumerate(decision.candidates)}


def _spread(part: Mapping[int, float], decision: Decision) -> Sequence[float]:
    return [part.get(at, 0.0) for at in range(len(decision.candidates))]


def _verdict(
    view: View, i: int, removed_by: str, scores: dict[str, float], total: float | None, chosen: bool
) -> CandidateVerdict:
    endpoint = view.endpoints[i]
    return CandidateVerdict(
        endpoint.pod,
        f"{endpoint.address}:{endpoint.port}",
        view.requests[i],
        view.prefill_tokens[i],
        view.decode_tokens[i],
        view.cached_tokens.get(i, view.common_tokens),
        removed_by,
        scores,
        total,
        chosen,
        view.home == i,
    )
