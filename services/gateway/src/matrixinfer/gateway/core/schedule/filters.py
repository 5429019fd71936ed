"""Filters: which candidates may take the request at all. One that would leave nobody where somebody might still answer
keeps all instead: a guess about health must not become an outage."""

from collections.abc import Sequence
from typing import Final

from matrixinfer.gateway.core.schedule.framework import View

__all__ = ["below_limit", "healthy", "session", "untried"]

_SESSION_FACTOR: Final = 1.5
"""Times the mean load that a conversation follows its endpoint."""
_SESSION_LEAST: Final = 4
"""So many requests are no load."""


def healthy(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep the endpoints that no breaker leaves out; all when that would leave none."""
    if not view.ejected:
        return candidates
    return [i for i in candidates if view.endpoints[i].uid not in view.ejected] or candidates


def session(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep the endpoint that the conversation belongs to; the next one where that is far busier than the others."""
    if not view.session_at:
        return candidates
    requests = view.requests
    bound = max(_SESSION_LEAST, _SESSION_FACTOR * sum(requests) / len(requests))
    for position in view.session_at:
        if requests[position] <= bound and position in candidates:
            return (position,)
    return candidates


def untried(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep the endpoints that this request did not fail on; all when it failed on each, so that one may recover."""
    if not view.tried:
        return candidates
    return [i for i in candidates if view.endpoints[i].uid not in view.tried] or candidates


def below_limit(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep the endpoints with room under the server's limit of requests in flight."""
    limit = view.limit
    if limit is None:
        return candidates
    return [i for i in candidates if view.requests[i] < limit]
