"""What a worker counts: plain numbers, cumulative since it started, handed to the supervisor once a second.

Owns counting only; names, help texts and the page are in `metrics`. The trap: a label that a client can choose is a
leak, so models are those of the routing table and everything else is `UNKNOWN`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

__all__ = [
    "DURATION_BUCKETS",
    "OVERHEAD_BUCKETS",
    "UNKNOWN_MODEL",
    "Histogram",
    "HistogramReport",
    "Stats",
    "StatsReport",
]

UNKNOWN_MODEL: Final = ""
"""Label of requests that no route took."""

DURATION_BUCKETS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
"""Seconds: from a cached embedding to a long generation."""

OVERHEAD_BUCKETS: Final = (
    25e-6,
    50e-6,
    100e-6,
    200e-6,
    400e-6,
    800e-6,
    1.6e-3,
    3.2e-3,
    6.4e-3,
    12.8e-3,
    51.2e-3,
    0.2,
    1.0,
)
"""Seconds: the gateway's own work is microseconds, and milliseconds are a problem."""

_MODEL_LIMIT = 2000


class HistogramReport(msgspec.Struct, frozen=True, array_like=True):
    """Counts per bucket (the last is +Inf, not cumulative) and the sum of what was observed."""

    counts: tuple[int, ...]
    sum: float


class StatsReport(msgspec.Struct, frozen=True):
    """Everything a worker counted since it started; gauges as they are now."""

    requests: dict[tuple[str, str], int] = {}
    retries: dict[tuple[str, str], int] = {}
    client_gone: dict[str, int] = {}
    in_flight: dict[str, int] = {}
    duration: dict[str, HistogramReport] = {}
    ttft: dict[str, HistogramReport] = {}
    overhead: dict[str, HistogramReport] = {}
    connections: int = 0
    upstream_connections: int = 0
    upstream_opened: int = 0
    access_log_dropped: int = 0


class Histogram:
    """Counts observations into fixed buckets."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the upper limits, ascending; +Inf is added."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def report(self) -> HistogramReport:
        """Return the counts so far."""
        return HistogramReport(tuple(self._counts), self._sum)


class Stats:
    """The counters of one worker."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()
        self._retries: Counter[tuple[str, str]] = Counter()
        self._client_gone: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._duration: dict[str, Histogram] = {}
        self._ttft: dict[str, Histogram] = {}
        self._overhead: dict[str, Histogram] = {}

    def begin(self, model: str) -> None:
        """A request for `model` is being served."""
        self._in_flight[self._label(model)] += 1

    def end(self, model: str, code: int, seconds: float, *, client_gone: bool) -> None:
        """It ended with `code` after `seconds`."""
        label = self._label(model)
        self._in_flight[label] -= 1
        self._requests[label, str(code)] += 1
        if client_gone:
            self._client_gone[label] += 1
        _observe(self._duration, label, DURATION_BUCKETS, seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """The first piece of an answer came after `seconds`."""
        _observe(self._ttft, self._label(model), DURATION_BUCKETS, seconds)

    def overhead(self, model: str, seconds: float) -> None:
        """The gateway itself took `seconds` before the engine had the request."""
        _observe(self._overhead, self._label(model), OVERHEAD_BUCKETS, seconds)

    def retry(self, model: str, reason: str) -> None:
        """Another endpoint, or another connection, is asked."""
        self._retries[self._label(model), reason] += 1

    def report(
        self, *, connections: int, upstream_connections: int, upstream_opened: int, access_log_dropped: int
    ) -> StatsReport:
        """Return everything, with the numbers that others count."""
        return StatsReport(
            dict(self._requests),
            dict(self._retries),
            dict(self._client_gone),
            dict(self._in_flight),
            {model: h.report() for model, h in self._duration.items()},
            {model: h.report() for model, h in self._ttft.items()},
            {model: h.report() for model, h in self._overhead.items()},
            connections,
            upstream_connections,
            upstream_opened,
            access_log_dropped,
        )

    def _label(self, model: str) -> str:
        # Routes come and go for years; the series of the oldest names stay, those beyond the limit share one.
        if model in self._in_flight or len(self._in_flight) < _MODEL_LIMIT:
            return model
        return "other"


def _observe(histograms: dict[str, Histogram], label: str, bounds: Sequence[float], value: float) -> None:
    histogram = histograms.get(label)
    if histogram is None:
        histogram = histograms[label] = Histogram(bounds)
    histogram.observe(value)
