"""Scorers: how good each candidate is, in [0, 1], on a scale that does not depend on the other candidates.

The trap: normalising by the best or worst candidate turns noise (1 against 2 requests) into a landslide.
"""

from collections.abc import Sequence

from matrixinfer.gateway.core.schedule.framework import View

__all__ = ["least_load"]


def least_load(view: View, candidates: Sequence[int]) -> list[float]:
    """1 for an idle endpoint, halved by the first request in flight, then ever slower towards 0."""
    requests = view.requests
    return [1.0 / (1 + requests[i]) for i in candidates]
