"""Scorers: how good each candidate is, in [0, 1], on a scale that does not depend on the other candidates.

The trap: normalising by the best or worst candidate turns noise (1 against 2 requests, 10 against 11 milliseconds) into
a landslide. Here a number means the same whoever it is compared with. A scorer that tells nobody apart says nothing, so
that what a request does not need costs it nothing.
"""

from collections.abc import Sequence
from typing import Final

from matrixinfer.gateway.core.load import FRESH_SECONDS, KV_COMFORT
from matrixinfer.gateway.core.schedule.framework import Contest, Part

__all__ = ["adapter_affinity", "kv_usage", "least_load", "prefix_affinity", "token_load"]

_SCALE_TOKENS: Final = 8192.0
"""So much work in front of a request halves the score."""
_GUARD_FACTOR: Final = 1.25
_GUARD_SLACK_TOKENS: Final = 768.0
"""Differences below this are no reason to give up an affinity."""
_HOME_SCORE: Final = 0.25
"""For where a prompt belongs that nobody has: less than for having a part of it worth the name."""


def token_load(contest: Contest) -> Sequence[float]:
    """1 for an idle endpoint that has the whole prompt, halved when `_SCALE_TOKENS` have to be worked off first.

    Counts tokens, not requests: what is in front of the request, and of the request itself what is not cached.
    """
    view, before = contest.view, contest.work
    prompt = view.prompt_tokens
    unread = prompt - view.common_tokens
    base = _SCALE_TOKENS + unread if unread > 0 else _SCALE_TOKENS
    scores = [_SCALE_TOKENS / (base + tokens) for tokens in before]
    for at, cached in contest.holders:
        # What is said to be cached beyond the prompt saves nothing.
        scores[at] = _SCALE_TOKENS / (_SCALE_TOKENS + max(prompt - cached, 0) + before[at])
    return scores


def prefix_affinity(contest: Contest) -> Part:
    """The share of the prompt that is cached here and not everywhere, where the load allows it.

    Nobody far above the mean gains by what he has. Beyond what `token_load` makes of saved work this keeps a prefix on
    few endpoints, so that the memory of the others is free for other prefixes. A prompt that nobody has goes home,
    where the other gateways send it too, unless home is busier than the mean.
    """
    view, candidates, before, holders = contest.view, contest.candidates, contest.work, contest.holders
    home = view.home
    if not holders and home is None:
        return {}
    common, total, prefill = view.common_tokens, view.prompt_tokens or 1, view.prefill_tokens
    all_work, held = sum(before), []
    for at, cached in holders:
        tokens = min(max(cached - common, 0), total)
        # Of what the endpoint has still to read this prompt's beginning may be a part, to be read wherever it goes.
        same = min(tokens, prefill[candidates[at]])
        all_work -= same
        held.append((at, tokens / total, before[at] - same))
    mean = all_work / len(before)
    scores: dict[int, float] = {}
    if home is not None and home in candidates:
        at = candidates.index(home)
        others = next((work for holder, _, work in held if holder == at), before[at]) if held else before[at]
        scores[at] = _HOME_SCORE if others <= mean + _GUARD_SLACK_TOKENS else 0.0
    most = _GUARD_FACTOR * mean + _GUARD_SLACK_TOKENS
    for at, share, others in held:
        if others <= most:
            scores[at] = max(scores.get(at, 0.0), share)
    return scores


def adapter_affinity(contest: Contest) -> Sequence[float]:
    """1 where the adapter is loaded, under the same guard; elsewhere the engine loads it, which takes a moment."""
    loaded = contest.view.adapter_at
    if not loaded:
        return ()
    most = _guard(contest.work)
    return [
        1.0 if before <= most and i in loaded else 0.0
        for i, before in zip(contest.candidates, contest.work, strict=True)
    ]


def _guard(loads: Sequence[float]) -> float:
    """The load up to which a candidate may gain by an affinity: 1.25 of the mean."""
    return _GUARD_FACTOR * sum(loads) / len(loads) + _GUARD_SLACK_TOKENS


def kv_usage(contest: Contest) -> Sequence[float]:
    """1 while the KV memory has room, falling to 0 as it fills; what is old or unknown is taken for the mean."""
    engines = contest.view.engines
    if engines is None or not engines.lacks_memory or not engines.tells_memory:
        return ()
    ages, usages, candidates = engines.ages, engines.kv_usage, contest.candidates
    if all(usages[i] <= KV_COMFORT and ages[i] < FRESH_SECONDS for i in candidates):
        return ()
    # A NaN goes through `min` when it comes first, and is not >= 0, like what is old.
    scores = [min((1.0 - usages[i]) / (1.0 - KV_COMFORT), 1.0) if ages[i] < FRESH_SECONDS else -1.0 for i in candidates]
    known = [score for score in scores if score >= 0.0]
    if not known:
        return ()
    mean = sum(known) / len(known)
    return [score if score >= 0.0 else mean for score in scores]


def least_load(contest: Contest) -> Sequence[float]:
    """1 for an idle endpoint, halved by the first request in flight, then ever slower towards 0."""
    requests = contest.view.requests
    return [1.0 / (1 + requests[i]) for i in contest.candidates]
