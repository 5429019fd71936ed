"""Pickers: from scores to one endpoint. Ties are broken by a draw on purpose: the first of equals must not get all."""

from collections.abc import Sequence
from typing import Final

from matrixinfer.gateway.core.schedule.framework import Draw, View

__all__ = ["best", "power_of_two", "random"]

_NEAR: Final = 0.01
"""Scores that differ by less than this are as good as equal."""


def power_of_two(view: View, candidates: Sequence[int], scores: Sequence[float], draw: Draw) -> int:
    """Of those that are nearly as good as the best, draw two and take the one with fewer requests in flight.

    Several gateways see the same numbers of the engines at the same moment. If each took the very best they would all
    take the same one; two draws each spread them, and cost next to nothing of the best.
    """
    floor = max(scores) - _NEAR
    near = [candidate for candidate, score in zip(candidates, scores, strict=True) if score >= floor]
    if len(near) == 1:
        return near[0]
    first = int(draw("tie-first") * len(near))
    second = int(draw("tie-second") * (len(near) - 1))
    # The second draw runs over the others only, so that two different endpoints are compared.
    second += second >= first
    one, two = near[first], near[second]
    return two if view.requests[two] < view.requests[one] else one


def best(_view: View, candidates: Sequence[int], scores: Sequence[float], draw: Draw) -> int:
    """Take the best; among equals a drawn one."""
    top = max(scores)
    tied = [candidate for candidate, score in zip(candidates, scores, strict=True) if score == top]
    return tied[int(draw("tie-first") * len(tied))]


def random(_view: View, candidates: Sequence[int], _scores: Sequence[float], draw: Draw) -> int:
    """Take a drawn one, whatever it scores."""
    return candidates[int(draw("random") * len(candidates))]
