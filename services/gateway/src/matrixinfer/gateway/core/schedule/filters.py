"""Filters: which candidates may take the request at all."""

from collections.abc import Sequence

from matrixinfer.gateway.core.schedule.framework import View

__all__ = ["below_limit", "untried"]


def untried(view: View, candidates: Sequence[int]) -> list[int]:
    """Keep the endpoints that this request did not fail on; all when it failed on each, so that one may recover."""
    if not view.tried:
        return list(candidates)
    fresh = [i for i in candidates if view.endpoints[i].uid not in view.tried]
    return fresh or list(candidates)


def below_limit(view: View, candidates: Sequence[int]) -> list[int]:
    """Keep the endpoints with room under the server's limit of requests in flight."""
    limit = view.limit
    if limit is None:
        return list(candidates)
    return [i for i in candidates if view.requests[i] < limit]
