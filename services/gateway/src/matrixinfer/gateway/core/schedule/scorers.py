"""Scorers: how good each candidate is, in [0, 1], on a scale that does not depend on the other candidates.

The trap: normalising by the best or worst candidate turns noise (1 against 2 requests, 10 against 11 milliseconds) into
a landslide. Here a number means the same whoever it is compared with. The other trap: what is not known must not look
good. Our own counts are exact and come first; what engines say counts less the older it is; an engine that does not
answer its scrapes looks busier, never idler.
"""

from collections.abc import Sequence
from typing import Final

from matrixinfer.gateway.core.load import EngineLoads
from matrixinfer.gateway.core.schedule.framework import View

__all__ = ["adapter_affinity", "kv_usage", "least_load", "prefix_affinity", "token_load", "work"]

_SCALE_TOKENS: Final = 8192.0
"""So much work in front of a request halves the score."""
_DECODE_WEIGHT: Final = 0.25
"""A token to be written beside others costs this part of one to be read: a batch writes one for each in one step."""
_FRESH_SECONDS: Final = 5.0
"""Over this time the word of an engine fades from full to nothing."""
_FOREIGN_WAITING_TOKENS: Final = 512.0
_FOREIGN_RUNNING_TOKENS: Final = 32.0
"""What a request of somebody else is taken for, while it waits and while it runs."""
_OWN_FACTOR: Final = 1.25
_OWN_SLACK: Final = 4.0
"""A report is up to a second old and our own requests come and go: so much more than ours is still ours."""
_SILENCE_TOKENS: Final = 2048.0
_SILENCE_LIMIT: Final = 8.0
"""Each failed scrape in a row counts as so much work, up to so many."""
_GUARD_FACTOR: Final = 1.25
_GUARD_SLACK_TOKENS: Final = 1024.0
"""Differences below this are no reason to give up an affinity."""
_KV_COMFORT: Final = 0.8
"""Below this use of the KV memory nothing has to wait for it."""


def work(view: View, candidates: Sequence[int]) -> list[float]:
    """Return the tokens that stand before a request at each candidate, this request's own not counted."""
    prefill, decode = view.prefill_tokens, view.decode_tokens
    own = [prefill[i] + _DECODE_WEIGHT * decode[i] for i in candidates]
    engines = view.engines
    if engines is None:
        return own
    requests = view.requests
    return [tokens + _beyond(engines, i, requests[i]) for tokens, i in zip(own, candidates, strict=True)]


def _beyond(engines: EngineLoads, i: int, requests: int) -> float:
    """Work that our own counts do not know of: other clients of the engine, and silence taken for trouble."""
    tokens = 0.0
    age = engines.ages[i]
    if age < _FRESH_SECONDS:
        waiting = engines.waiting[i]
        foreign = engines.running[i] + waiting - _OWN_FACTOR * requests - _OWN_SLACK
        # NaN compares false: what the engine does not say adds nothing.
        if foreign > 0.0:
            queued = min(foreign, waiting)
            tokens = queued * _FOREIGN_WAITING_TOKENS + (foreign - queued) * _FOREIGN_RUNNING_TOKENS
            tokens *= 1.0 - age / _FRESH_SECONDS
    failures = engines.failures[i]
    return tokens + min(failures, _SILENCE_LIMIT) * _SILENCE_TOKENS if failures else tokens


def token_load(view: View, candidates: Sequence[int]) -> list[float]:
    """1 for an idle endpoint that has the whole prompt, halved when `_SCALE_TOKENS` have to be worked off first.

    Counts tokens, not requests: what is in front of the request, and of the request itself what is not cached.
    """
    cached, common, prompt = view.cached_tokens, view.common_tokens, view.prompt_tokens
    tokens = work(view, candidates)
    if not cached:
        own = _SCALE_TOKENS + prompt
        return [_SCALE_TOKENS / (own + before) for before in tokens]
    known = cached.get
    return [
        _SCALE_TOKENS / (_SCALE_TOKENS + before + max(prompt - known(i, common), 0))
        for before, i in zip(tokens, candidates, strict=True)
    ]


def prefix_affinity(view: View, candidates: Sequence[int]) -> list[float]:
    """The cached share of the prompt, where the load allows it: nobody far above the mean gains by what he has.

    Beyond what `token_load` makes of saved work this keeps a prefix on few endpoints, so that the memory of the others
    is free for other prefixes.
    """
    cached = view.cached_tokens
    if not cached:
        return [0.0] * len(candidates)
    total, common = max(view.prompt_tokens, 1), view.common_tokens
    shares = [min(cached.get(i, common) / total, 1.0) for i in candidates]
    return [share if allowed else 0.0 for share, allowed in zip(shares, _guarded(view, candidates), strict=True)]


def adapter_affinity(view: View, candidates: Sequence[int]) -> list[float]:
    """1 where the adapter is loaded, under the same guard; elsewhere the engine loads it, which takes a moment."""
    loaded = view.adapter_at
    if not loaded:
        return [0.0] * len(candidates)
    return [
        1.0 if allowed and i in loaded else 0.0
        for allowed, i in zip(_guarded(view, candidates), candidates, strict=True)
    ]


def _guarded(view: View, candidates: Sequence[int]) -> list[bool]:
    """Whether each candidate may gain by affinity: the work in front of it is within 1.25 of the mean."""
    tokens = work(view, candidates)
    most = _GUARD_FACTOR * sum(tokens) / len(tokens) + _GUARD_SLACK_TOKENS
    return [mine <= most for mine in tokens]


def kv_usage(view: View, candidates: Sequence[int]) -> list[float]:
    """1 while the KV memory has room, falling to 0 as it fills; what is old or unknown is taken for the mean."""
    engines = view.engines
    if engines is None:
        return [0.5] * len(candidates)
    ages, usages = engines.ages, engines.kv_usage
    scores = [
        min((1.0 - usages[i]) / (1.0 - _KV_COMFORT), 1.0) if ages[i] < _FRESH_SECONDS else -1.0 for i in candidates
    ]
    # A NaN goes through `min` when it comes first, and is not >= 0, like what is old.
    known = [score for score in scores if score >= 0.0]
    if len(known) == len(scores):
        return scores
    mean = sum(known) / len(known) if known else 0.5
    return [score if score >= 0.0 else mean for score in scores]


def least_load(view: View, candidates: Sequence[int]) -> list[float]:
    """1 for an idle endpoint, halved by the first request in flight, then ever slower towards 0."""
    requests = view.requests
    return [1.0 / (1 + requests[i]) for i in candidates]
