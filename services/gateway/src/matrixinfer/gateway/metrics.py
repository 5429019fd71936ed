"""The gateway's metrics: names, help texts, and the merge of what the workers counted.

Workers report cumulative numbers once a second. When one dies, what it last reported stays counted, so counters never
go back; its gauges are forgotten. The page is made from the reports at the moment of the scrape.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import isfinite
from operator import add, attrgetter
from typing import Final, TypeVar

import msgspec
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from matrixinfer.gateway.core.breaker import Cause
from matrixinfer.gateway.core.types import EndpointState
from matrixinfer.gateway.stats import (
    DURATION_BUCKETS,
    FIRST_TOKEN_BUCKETS,
    OVERHEAD_BUCKETS,
    QUEUE_BUCKETS,
    TOKEN_BUCKETS,
    HistogramReport,
    SeriesKey,
    SeriesReport,
    StatsReport,
)
from matrixinfer.service.metrics import zero

__all__ = [
    "CERTIFICATE_EXPIRY",
    "EJECTIONS",
    "ENDPOINTS",
    "ENDPOINT_STATES",
    "LEFT_OUT",
    "PUBLISH_SECONDS",
    "REVISION",
    "SCRAPE_FAILURES",
    "SCRAPE_SECONDS",
    "WAKE_UPS",
    "WORKERS_SERVING",
    "WORKER_RESTARTS",
    "EngineReports",
    "Traffic",
]

WORKERS_SERVING: Final = Gauge("matrixinfer_gateway_workers_serving", "Worker processes that accept connections.")
WORKER_RESTARTS: Final = Counter(
    "matrixinfer_gateway_worker_restarts_total", "Worker processes that had to be replaced."
)
CERTIFICATE_EXPIRY: Final = Gauge(
    "matrixinfer_gateway_certificate_expiry_timestamp_seconds",
    "When the certificate for clients expires (Unix time); 0 without TLS.",
)
REVISION: Final = Gauge("matrixinfer_gateway_snapshot_revision", "Revision of the newest routing snapshot.")
ENDPOINTS: Final = Gauge("matrixinfer_gateway_endpoints", "Pods in the newest snapshot, by state.", ("state",))
ENDPOINT_STATES: Final = tuple(EndpointState)
zero(ENDPOINTS, ENDPOINT_STATES)
CAUSES: Final = tuple(cause.name.lower() for cause in Cause)
LEFT_OUT: Final = Gauge(
    "matrixinfer_gateway_endpoints_left_out", "Pods that are given no requests for now, by cause.", ("cause",)
)
zero(LEFT_OUT, CAUSES)
EJECTIONS: Final = Counter(
    "matrixinfer_gateway_ejections_total", "Times a pod was left out for failing or for being far worse.", ("cause",)
)
zero(EJECTIONS, CAUSES)
PUBLISH_SECONDS: Final = Histogram(
    "matrixinfer_gateway_snapshot_publish_seconds",
    "Time from the making of a snapshot until every worker routes by it.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)

SCRAPE_SECONDS: Final = Histogram(
    "matrixinfer_gateway_engine_scrape_seconds",
    "Time to read an engine's metrics, where that succeeded.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
SCRAPE_FAILURES: Final = Counter(
    "matrixinfer_gateway_engine_scrape_failures_total",
    "Times that an engine's metrics could not be read, or said nothing of its load (silent).",
    ("reason",),
)
zero(SCRAPE_FAILURES, ("refused", "deadline", "status", "size", "broken", "silent"))

WAKE_UPS: Final = Counter(
    "matrixinfer_gateway_wake_ups_total",
    "Times that a server without pods was asked for: written, failed, or unknown when no ModelInfer is behind it.",
    ("result",),
)
zero(WAKE_UPS, ("written", "failed", "unknown"))

_FRESH_SECONDS: Final = 5.0
_P: Final = "matrixinfer_gateway_"
_K = TypeVar("_K")
_Labels = TypeVar("_Labels", bound=tuple[str, ...])


class EngineReports(Collector):
    """How old the engines' reports are, at the moment of the scrape."""

    def __init__(self, ages: Callable[[], Iterable[float]], registry: CollectorRegistry = REGISTRY) -> None:
        """`ages` gives the seconds since each engine was read, infinite where it never was."""
        self._ages = ages
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Make the metric families."""
        ages = list(self._ages())
        known = [age for age in ages if isfinite(age)]
        fresh = sum(age < _FRESH_SECONDS for age in known)
        shares = {("fresh",): fresh, ("old",): len(known) - fresh, ("none",): len(ages) - len(known)}
        yield _gauge("engine_reports", "Engines by what is known of their load.", ("report",), shares)
        oldest = GaugeMetricFamily(_P + "engine_report_oldest_seconds", "Age of the oldest report of an engine.")
        oldest.add_metric((), max(known, default=0.0))
        yield oldest


class Traffic(Collector):
    """Merges the reports of all workers, living and dead."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register on `registry`."""
        self._living: dict[int, StatsReport] = {}
        self._ended = StatsReport()
        registry.register(self)

    def report(self, worker: int, stats: StatsReport) -> None:
        """Take a worker's newest report; series that it does not mention are as they were."""
        before = self._living.get(worker, _NOTHING)
        self._living[worker] = msgspec.structs.replace(stats, series={**before.series, **stats.series})

    def forget(self, worker: int) -> None:
        """Keep the counters of a worker that ended, drop its gauges."""
        last = self._living.pop(worker, None)
        if last is not None:
            self._ended = _counters(_merged([self._ended, last]))

    @property
    def total(self) -> StatsReport:
        """Everything counted so far."""
        return _merged([self._ended, *self._living.values()])

    def collect(self) -> Iterable[Metric]:
        """Make the metric families."""
        total = self.total
        series = total.series
        # Counters tell servers apart; histograms, which cost a page twenty lines each, only models and routes.
        routes = _by_route(series)
        requests = {
            (model, route, server, code, outcome): count
            for (model, route, server), report in series.items()
            for (code, outcome), count in report.requests.items()
        }
        yield _counter("requests", "Requests answered.", ("model", "route", "server", "code", "outcome"), requests)
        retries = {(*key, reason): count for key, report in routes.items() for reason, count in report.retries.items()}
        yield _counter(
            "upstream_retries",
            "Requests sent again, by why the first try failed.",
            (*_ROUTE_LABELS, "reason"),
            retries,
        )
        tokens = {
            (*key, kind, "estimate" if is_estimate else "engine"): count
            for key, report in series.items()
            for (kind, is_estimate), count in report.tokens.items()
        }
        yield _counter(
            "tokens",
            "Tokens by kind (prompt, completion, and cached, which are those of the prompt that were in an engine's "
            "cache), and by who counted them.",
            ("model", "route", "server", "kind", "counted_by"),
            tokens,
        )
        decisions = {(*key, rung): count for key, report in routes.items() for rung, count in report.decisions.items()}
        yield _counter(
            "decisions",
            "Choices of an endpoint, by what there was time to look at: full, or what was left out for lack of it.",
            (*_ROUTE_LABELS, "rung"),
            decisions,
        )
        placed = {
            (*key, state): count for key, report in routes.items() for state, count in report.placed_tokens.items()
        }
        yield _counter(
            "placed_prompt_tokens",
            "Prompt tokens by what the choice expected of the endpoint: cached there, or to be read. Estimates.",
            (*_ROUTE_LABELS, "state"),
            placed,
        )
        gone = {key: report.client_gone for key, report in routes.items()}
        yield _counter("client_disconnects", "Clients that left before the end of their answer.", _ROUTE_LABELS, gone)
        opened = {(): total.upstream_opened}
        yield _counter("upstream_connections_opened", "Connections made to engines.", (), opened)
        dropped = {(): total.access_log_dropped}
        yield _gauge("waiting_requests", "Requests that wait for room.", (), {(): total.waiting})
        yield _counter("access_log_dropped_lines", "Access-log lines lost because nobody read stdout.", (), dropped)
        yield _counter("spans_exported", "Spans that a collector took.", (), {(): total.spans_exported})
        yield _counter("spans_dropped", "Spans that no collector got.", (), {(): total.spans_dropped})
        in_flight = {key: report.in_flight for key, report in routes.items()}
        yield _gauge("in_flight_requests", "Requests being served.", _ROUTE_LABELS, in_flight)
        yield _gauge("client_connections", "Open connections from clients.", (), {(): total.connections})
        yield _gauge("upstream_connections", "Open connections to engines.", (), {(): total.upstream_connections})
        for name, text, member, bounds in _HISTOGRAMS:
            yield _histogram(name, text, {key: member(report) for key, report in routes.items()}, bounds)


_NOTHING: Final = StatsReport()
_ROUTE_LABELS: Final = ("model", "route")

_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[SeriesReport], HistogramReport | None], Sequence[float]], ...]] = (
    ("request_duration_seconds", "From request to end of answer.", attrgetter("duration"), DURATION_BUCKETS),
    (
        "time_to_first_token_seconds",
        "From request to the first piece of the answer.",
        attrgetter("first_token"),
        FIRST_TOKEN_BUCKETS,
    ),
    (
        "time_per_output_token_seconds",
        "Per request, from the first piece of a stream to its end, divided by the tokens after the first.",
        attrgetter("per_token"),
        TOKEN_BUCKETS,
    ),
    (
        "inter_token_seconds",
        "From one piece of a stream to the next. One gap in sixteen is looked at, so the count is a sample's.",
        attrgetter("between_pieces"),
        TOKEN_BUCKETS,
    ),
    ("queue_seconds", "What requests that waited for room waited.", attrgetter("queue"), QUEUE_BUCKETS),
    (
        "overhead_seconds",
        "The gateway's own time before the engine had the request.",
        attrgetter("overhead"),
        OVERHEAD_BUCKETS,
    ),
)


def _counters(report: StatsReport) -> StatsReport:
    return StatsReport(
        {key: msgspec.structs.replace(series, in_flight=0) for key, series in report.series.items()},
        upstream_opened=report.upstream_opened,
        access_log_dropped=report.access_log_dropped,
        spans_exported=report.spans_exported,
        spans_dropped=report.spans_dropped,
    )


def _merged(reports: Sequence[StatsReport]) -> StatsReport:
    series: dict[SeriesKey, SeriesReport] = {}
    for report in reports:
        for key, one in report.series.items():
            before = series.get(key)
            series[key] = one if before is None else _sum_of_series(before, one)
    return StatsReport(
        series,
        sum(report.connections for report in reports),
        sum(report.upstream_connections for report in reports),
        sum(report.upstream_opened for report in reports),
        sum(report.access_log_dropped for report in reports),
        sum(report.spans_exported for report in reports),
        sum(report.spans_dropped for report in reports),
        sum(report.waiting for report in reports),
    )


def _by_route(series: Mapping[SeriesKey, SeriesReport]) -> dict[tuple[str, str], SeriesReport]:
    routes: dict[tuple[str, str], SeriesReport] = {}
    for (model, route, _), report in series.items():
        before = routes.get((model, route))
        routes[model, route] = report if before is None else _sum_of_series(before, report)
    return routes


def _sum_of_series(one: SeriesReport, other: SeriesReport) -> SeriesReport:
    return SeriesReport(
        _added(one.requests, other.requests),
        _added(one.retries, other.retries),
        one.client_gone + other.client_gone,
        one.in_flight + other.in_flight,
        _added(one.tokens, other.tokens),
        _sum(one.duration, other.duration),
        _sum(one.first_token, other.first_token),
        _sum(one.per_token, other.per_token),
        _sum(one.between_pieces, other.between_pieces),
        _sum(one.queue, other.queue),
        _sum(one.overhead, other.overhead),
        _added(one.decisions, other.decisions),
        _added(one.placed_tokens, other.placed_tokens),
    )


def _added(one: Mapping[_K, int], other: Mapping[_K, int]) -> dict[_K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in (*one, *(key for key in other if key not in one))}


def _sum(one: HistogramReport | None, other: HistogramReport | None) -> HistogramReport | None:
    if one is None or other is None:
        return one or other
    return HistogramReport(tuple(map(add, one.counts, other.counts)), one.sum + other.sum)


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[_Labels, int]) -> Metric:
    family = CounterMetricFamily(_P + name, text, labels=labels)
    for label_values, count in values.items():
        family.add_metric(label_values, count)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[_Labels, int]) -> Metric:
    family = GaugeMetricFamily(_P + name, text, labels=labels)
    for label_values, count in values.items():
        family.add_metric(label_values, count)
    return family


def _histogram(
    name: str, text: str, values: Mapping[_Labels, HistogramReport | None], bounds: Sequence[float]
) -> Metric:
    family = HistogramMetricFamily(_P + name, text, labels=_ROUTE_LABELS)
    limits = [*(str(float(bound)) for bound in bounds), "+Inf"]
    for label_values, report in values.items():
        if report is not None:
            buckets = list(zip(limits, accumulate(report.counts), strict=True))
            family.add_metric(label_values, buckets, report.sum)
    return family
