"""How much work stands before a request at an endpoint, in tokens: our own exactly, others' as far as engines tell.

The trap: what is not known must not look good. Our own counts come first; what engines say counts less the older it
is; an engine that does not answer its scrapes looks busier, never idler. The other trap: a report is up to a second
old, and what was ours in it comes and goes; taking the difference for somebody else's makes every gateway flee the
same engine for a second.
"""

from collections.abc import Sequence
from typing import Final

from matrixinfer.gateway.core.load import FRESH_SECONDS
from matrixinfer.gateway.core.schedule.view import View

__all__ = ["DECODE_WEIGHT", "work"]

DECODE_WEIGHT: Final = 0.125
"""A token to be written beside others costs this part of one to be read: a batch writes one for each in one step."""
_OWN_FACTOR: Final = 1.25
_OWN_SLACK: Final = 4.0
"""So much more than our own requests is still ours."""
_FOREIGN_WAITING_TOKENS: Final = 512.0
_FOREIGN_RUNNING_TOKENS: Final = 32.0
"""What a request of somebody else is taken for, while it waits and while it runs."""
_SILENCE_TOKENS: Final = 2048.0
_SILENCE_LIMIT: Final = 8.0
"""Each failed scrape in a row counts as so much work, up to so many."""


def work(view: View, candidates: Sequence[int]) -> list[float]:
    """Return the tokens that stand before a request at each candidate, this request's own not counted."""
    prefill, decode, engines = view.prefill_tokens, view.decode_tokens, view.engines
    found = [prefill[i] + DECODE_WEIGHT * decode[i] for i in candidates]
    if engines is None or not engines.adds_work:
        return found
    requests, at_work, waiting = view.requests, engines.at_work, engines.waiting
    ages, failures = engines.ages, engines.failures
    for at, i in enumerate(candidates):
        foreign = at_work[i] - _OWN_FACTOR * requests[i] - _OWN_SLACK
        if foreign > 0.0:
            found[at] += _foreign_work(foreign, waiting[i]) * (1.0 - ages[i] / FRESH_SECONDS)
        if failures[i]:
            found[at] += min(failures[i], _SILENCE_LIMIT) * _SILENCE_TOKENS
    return found


def _foreign_work(requests: float, waiting: float) -> float:
    queued = min(requests, waiting)
    return queued * _FOREIGN_WAITING_TOKENS + (requests - queued) * _FOREIGN_RUNNING_TOKENS
