"""Filters: which candidates may take the request at all. One that would leave nobody where somebody might still answer
keeps all instead: a guess about health must not become an outage."""

from collections.abc import Sequence

from matrixinfer.gateway.core.schedule.framework import View

__all__ = ["below_limit", "healthy", "untried"]


def healthy(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep the endpoints that no breaker leaves out; all when that would leave none."""
    if not view.ejected:
        return candidates
    return [i for i in candidates if view.endpoints[i].uid not in view.ejected] or candidates


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
