"""Pickers: from scores to one endpoint. Ties are broken by a draw on purpose: the first of equals must not get all."""

from collections.abc import Sequence

from matrixinfer.gateway.core.schedule.framework import Draw, View

__all__ = ["best_of_two_among_ties"]


def best_of_two_among_ties(view: View, candidates: Sequence[int], scores: Sequence[float], draw: Draw) -> int:
    """Return the best candidate; among equals draw two and take the one with fewer prompt bytes in flight."""
    top = max(scores)
    tied = [candidate for candidate, score in zip(candidates, scores, strict=True) if score == top]
    if len(tied) == 1:
        return tied[0]
    first = int(draw("tie-first") * len(tied))
    second = int(draw("tie-second") * (len(tied) - 1))
    # The second draw runs over the others only, so that two different endpoints are compared.
    second += second >= first
    one, two = tied[first], tied[second]
    return two if view.request_bytes[two] < view.request_bytes[one] else one
