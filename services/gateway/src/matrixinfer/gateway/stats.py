"""What a worker counts: plain numbers, cumulative since it started, handed to the supervisor once a second.

Owns counting only; names, help texts and the page are in `metrics`. One `Series` counts for a model, the route that
took the request and the server that answered; whoever serves a request holds it and counts without a look-up. The
trap: a label that a client can choose is a leak, so all three are names of the routing table, everything else is
`UNKNOWN_MODEL`, and beyond a limit all share one series.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from matrixinfer.gateway.core.usage import Usage

__all__ = [
    "DURATION_BUCKETS",
    "FIRST_TOKEN_BUCKETS",
    "OVERHEAD_BUCKETS",
    "QUEUE_BUCKETS",
    "TOKEN_BUCKETS",
    "UNKNOWN_MODEL",
    "Histogram",
    "HistogramReport",
    "Series",
    "SeriesKey",
    "SeriesReport",
    "Stats",
    "StatsReport",
]

UNKNOWN_MODEL: Final = ""
"""Label of requests that no route took."""

SeriesKey: TypeAlias = tuple[str, str, str]
"""Model, route (namespace/name) and server; empty where there is none."""

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

FIRST_TOKEN_BUCKETS: Final = (
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    5.0,
    7.5,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
"""Seconds until the first token. Never more than a factor of two apart below half a minute: quantiles that decide
over a canary are read from these."""

TOKEN_BUCKETS: Final = (
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
    10.0,
)
"""Seconds per token, and between two pieces of a stream."""

QUEUE_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds that a request waited for room."""

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

_SERIES_LIMIT = 2000
_OTHER: Final[SeriesKey] = ("other", "other", "other")
_KINDS: Final = ("prompt", "completion", "cached")


class HistogramReport(msgspec.Struct, frozen=True, array_like=True):
    """Counts per bucket (the last is +Inf, not cumulative) and the sum of what was observed."""

    counts: tuple[int, ...]
    sum: float


class SeriesReport(msgspec.Struct, frozen=True, array_like=True):
    """What one series counted; histograms that saw nothing are None."""

    requests: dict[tuple[str, str], int] = {}
    """Requests that ended, by status code and outcome."""
    retries: dict[str, int] = {}
    client_gone: int = 0
    in_flight: int = 0
    tokens: dict[tuple[str, bool], int] = {}
    """Tokens by kind (prompt, completion, cached), and whether the count is an estimate."""
    duration: HistogramReport | None = None
    first_token: HistogramReport | None = None
    per_token: HistogramReport | None = None
    between_pieces: HistogramReport | None = None
    queue: HistogramReport | None = None
    overhead: HistogramReport | None = None
    decisions: dict[str, int] = {}
    """Choices of an endpoint, by what there was time for."""
    placed_tokens: dict[str, int] = {}
    """Prompt tokens by whether the chosen endpoint was expected to have them: cached, or to_read. Estimates."""


class StatsReport(msgspec.Struct, frozen=True):
    """The series that changed since the report before, cumulative since the start; gauges as they are now."""

    series: dict[SeriesKey, SeriesReport] = {}
    connections: int = 0
    upstream_connections: int = 0
    upstream_opened: int = 0
    access_log_dropped: int = 0
    spans_exported: int = 0
    spans_dropped: int = 0
    waiting: int = 0


class Histogram:
    """Counts observations into fixed buckets."""

    __slots__ = ("_bounds", "_counts", "_seen", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the upper limits, ascending; +Inf is added."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._seen = False

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        self._seen = True

    def report(self) -> HistogramReport | None:
        """Return the counts so far; None without any."""
        return HistogramReport(tuple(self._counts), self._sum) if self._seen else None


class Series:
    """The counters of one model, route and server."""

    __slots__ = (
        "_cached_tokens",
        "_client_gone",
        "_decisions",
        "_duration",
        "_in_flight",
        "_requests",
        "_retries",
        "_tokens",
        "_tokens_to_read",
        "between_pieces",
        "changed",
        "first_token",
        "overhead",
        "per_token",
        "queue",
    )

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS)
        """From the request to the first piece of its answer."""
        self.per_token = Histogram(TOKEN_BUCKETS)
        """Of one request, per token after the first."""
        self.between_pieces = Histogram(TOKEN_BUCKETS)
        """From one piece of a stream to the next; a sample of them."""
        self.queue = Histogram(QUEUE_BUCKETS)
        """What requests that waited for room waited."""
        self.overhead = Histogram(OVERHEAD_BUCKETS)
        """The gateway's own time before the engine had the request."""
        self.changed = True
        self._duration = Histogram(DURATION_BUCKETS)
        self._requests: Counter[tuple[int, str]] = Counter()
        self._retries: Counter[str] = Counter()
        # By whether they are an estimate: tokens of each kind, as `_KINDS` has them.
        self._tokens: defaultdict[bool, list[int]] = defaultdict(lambda: [0] * len(_KINDS))
        self._decisions: Counter[str] = Counter()
        self._cached_tokens = 0
        self._tokens_to_read = 0
        self._client_gone = 0
        self._in_flight = 0

    def begin(self) -> None:
        """A request is being served."""
        self._in_flight += 1
        self.changed = True

    def leave(self) -> None:
        """It is not any more; where it is counted is another matter."""
        self._in_flight -= 1
        self.changed = True

    def end(self, code: int, outcome: str, seconds: float, *, client_gone: bool) -> None:
        """A request ended with `code` after `seconds`."""
        self._requests[code, outcome] += 1
        self._client_gone += client_gone
        self._duration.observe(seconds)
        self.changed = True

    def refused(self, code: int, outcome: str) -> None:
        """What was no request was answered with `code`; it took no time that could be measured."""
        self._requests[code, outcome] += 1
        self.changed = True

    def expect(self, code: int, outcome: str) -> None:
        """Show an outcome with zero before it happens: what appears with its first error cannot be alerted on."""
        self._requests[code, outcome] += 0

    def used(self, usage: Usage) -> None:
        """Count the tokens of a request."""
        tokens = self._tokens[usage.is_estimate]
        tokens[0] += usage.prompt
        tokens[1] += usage.completion
        tokens[2] += usage.cached

    def placed(self, rung: str, cached: int, to_read: int) -> None:
        """An endpoint was chosen; of the prompt so many tokens are expected to be cached there."""
        self._decisions[rung] += 1
        self._cached_tokens += cached
        self._tokens_to_read += to_read

    def retry(self, reason: str) -> None:
        """Another endpoint, or another connection, is asked."""
        self._retries[reason] += 1
        self.changed = True

    def report(self) -> SeriesReport:
        """Return everything."""
        return SeriesReport(
            {(str(code), outcome): count for (code, outcome), count in self._requests.items()},
            dict(self._retries),
            self._client_gone,
            self._in_flight,
            {
                (kind, is_estimate): count
                for is_estimate, counts in self._tokens.items()
                for kind, count in zip(_KINDS, counts, strict=True)
            },
            self._duration.report(),
            self.first_token.report(),
            self.per_token.report(),
            self.between_pieces.report(),
            self.queue.report(),
            self.overhead.report(),
            dict(self._decisions),
            {"cached": self._cached_tokens, "to_read": self._tokens_to_read} if self._decisions else {},
        )


class Stats:
    """The counters of one worker."""

    def __init__(self) -> None:
        self._series: dict[SeriesKey, Series] = {}

    def series(self, model: str, route: str, server: str = "") -> Series:
        """Return the counters of a model, a route and a server."""
        found = self._series.get((model, route, server))
        return found if found is not None else self._new((model, route, server))

    def expect(self, keys: Iterable[SeriesKey]) -> None:
        """Show the series of the routing table with zeros."""
        for model, route, server in keys:
            series = self.series(model, route, server)
            for code, outcome in _EXPECTED_OF_SERVERS if server else _EXPECTED_REFUSALS:
                series.expect(code, outcome)

    def report(
        self,
        *,
        connections: int,
        upstream_connections: int,
        upstream_opened: int,
        access_log_dropped: int,
        spans_exported: int = 0,
        spans_dropped: int = 0,
        waiting: int = 0,
    ) -> StatsReport:
        """Return what changed since the last call, with the numbers that others count."""
        changed = {key: series for key, series in self._series.items() if series.changed}
        for series in changed.values():
            series.changed = False
        return StatsReport(
            {key: series.report() for key, series in changed.items()},
            connections,
            upstream_connections,
            upstream_opened,
            access_log_dropped,
            spans_exported,
            spans_dropped,
            waiting,
        )

    def _new(self, key: SeriesKey) -> Series:
        # Routes come and go for years; the series of the oldest names stay, those beyond the limit share one.
        if len(self._series) >= _SERIES_LIMIT:
            return self._series.setdefault(_OTHER, Series())
        made = self._series[key] = Series()
        return made


_EXPECTED_OF_SERVERS: Final = ((200, "ok"), (503, "connect"), (503, "reset"), (504, "first_byte_timeout"))
_EXPECTED_REFUSALS: Final = ((429, "overloaded"), (500, "internal_error"), (503, "no_endpoints"))
