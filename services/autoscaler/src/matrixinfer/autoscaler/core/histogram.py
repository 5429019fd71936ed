"""Quantiles of what was observed lately, from cumulative histograms.

Trap: the difference of two scrapes is only meaningful for one process. Counts that shrink mean a restart; the answer
is then `None`, never a guess.
"""

import math

from matrixinfer.engines.exposition import Histogram

__all__ = ["quantile", "since"]


def since(now: Histogram, base: Histogram) -> Histogram | None:
    """What was observed between two scrapes of one process; `None` when they do not belong together."""
    if now.bounds != base.bounds:
        return None
    grown = tuple(new - old for new, old in zip(now.cumulative, base.cumulative, strict=True))
    if any(high < low for low, high in zip((0.0, *grown), grown, strict=False)):
        return None
    return Histogram(now.bounds, grown, now.sum - base.sum)


def quantile(histogram: Histogram, share: float) -> float | None:
    """The value that `share` of the observations do not exceed, interpolated in its bucket; `None` without any.

    An observation beyond the last finite bound counts as twice that bound: it is far above, nobody knows how far.
    """
    if histogram.count <= 0:
        return None
    rank = math.ceil(share * histogram.count)
    low, below = 0.0, 0.0
    for bound, cumulative in zip(histogram.bounds, histogram.cumulative, strict=True):
        inside = cumulative - below
        high = bound if math.isfinite(bound) else 2 * low
        if cumulative >= rank and inside > 0:
            return high - (cumulative - rank) * (high - low) / inside
        low, below = high, cumulative
    return low
