"""The gateway's metrics: names, help texts, and the merge of what the workers counted.

Workers report cumulative numbers once a second. When one dies, what it last reported stays counted, so counters never
go back; its gauges are forgotten. The page is made from the reports at the moment of the scrape.
"""

from collections import Counter as Sums
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import add
from typing import Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from matrixinfer.gateway.core.types import EndpointState
from matrixinfer.gateway.stats import DURATION_BUCKETS, OVERHEAD_BUCKETS, HistogramReport, StatsReport
from matrixinfer.service.metrics import zero

__all__ = [
    "ENDPOINTS",
    "ENDPOINT_STATES",
    "PUBLISH_SECONDS",
    "REVISION",
    "WORKERS_SERVING",
    "WORKER_RESTARTS",
    "Traffic",
]

WORKERS_SERVING: Final = Gauge("matrixinfer_gateway_workers_serving", "Worker processes that accept connections.")
WORKER_RESTARTS: Final = Counter(
    "matrixinfer_gateway_worker_restarts_total", "Worker processes that had to be replaced."
)
REVISION: Final = Gauge("matrixinfer_gateway_snapshot_revision", "Revision of the newest routing snapshot.")
ENDPOINTS: Final = Gauge("matrixinfer_gateway_endpoints", "Pods in the newest snapshot, by state.", ("state",))
ENDPOINT_STATES: Final = tuple(EndpointState)
zero(ENDPOINTS, ENDPOINT_STATES)
PUBLISH_SECONDS: Final = Histogram(
    "matrixinfer_gateway_snapshot_publish_seconds",
    "Time from the making of a snapshot until every worker routes by it.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)

_P: Final = "matrixinfer_gateway_"
_K = TypeVar("_K")
_Labels = TypeVar("_Labels", bound=tuple[str, ...])


class Traffic(Collector):
    """Merges the reports of all workers, living and dead."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register on `registry`."""
        self._living: dict[int, StatsReport] = {}
        self._ended = StatsReport()
        registry.register(self)

    def report(self, worker: int, stats: StatsReport) -> None:
        """Take a worker's newest report."""
        self._living[worker] = stats

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
        yield _counter("requests", "Requests answered.", ("model", "code"), total.requests)
        yield _counter(
            "upstream_retries", "Requests sent again, by why the first try failed.", ("model", "reason"), total.retries
        )
        gone = {(model,): count for model, count in total.client_gone.items()}
        yield _counter("client_disconnects", "Clients that left before the end of their answer.", ("model",), gone)
        opened = {(): total.upstream_opened}
        yield _counter("upstream_connections_opened", "Connections made to engines.", (), opened)
        dropped = {(): total.access_log_dropped}
        yield _counter("access_log_dropped_lines", "Access-log lines lost because nobody read stdout.", (), dropped)
        in_flight = {(model,): count for model, count in total.in_flight.items()}
        yield _gauge("in_flight_requests", "Requests being served.", ("model",), in_flight)
        yield _gauge("client_connections", "Open connections from clients.", (), {(): total.connections})
        yield _gauge("upstream_connections", "Open connections to engines.", (), {(): total.upstream_connections})
        yield _histogram("request_duration_seconds", "From request to end of answer.", total.duration, DURATION_BUCKETS)
        yield _histogram(
            "time_to_first_token_seconds",
            "From request to the first piece of the answer.",
            total.ttft,
            DURATION_BUCKETS,
        )
        yield _histogram(
            "overhead_seconds",
            "The gateway's own time before the engine had the request.",
            total.overhead,
            OVERHEAD_BUCKETS,
        )


def _counters(report: StatsReport) -> StatsReport:
    return StatsReport(
        requests=report.requests,
        retries=report.retries,
        client_gone=report.client_gone,
        duration=report.duration,
        ttft=report.ttft,
        overhead=report.overhead,
        upstream_opened=report.upstream_opened,
        access_log_dropped=report.access_log_dropped,
    )


def _merged(reports: Sequence[StatsReport]) -> StatsReport:
    return StatsReport(
        _added(report.requests for report in reports),
        _added(report.retries for report in reports),
        _added(report.client_gone for report in reports),
        _added(report.in_flight for report in reports),
        _joined(report.duration for report in reports),
        _joined(report.ttft for report in reports),
        _joined(report.overhead for report in reports),
        sum(report.connections for report in reports),
        sum(report.upstream_connections for report in reports),
        sum(report.upstream_opened for report in reports),
        sum(report.access_log_dropped for report in reports),
    )


def _added(parts: Iterable[Mapping[_K, int]]) -> dict[_K, int]:
    total: Sums[_K] = Sums()
    for part in parts:
        total.update(part)
    return dict(total)


def _joined(parts: Iterable[Mapping[str, HistogramReport]]) -> dict[str, HistogramReport]:
    total: dict[str, HistogramReport] = {}
    for part in parts:
        for label, report in part.items():
            before = total.get(label)
            total[label] = report if before is None else _sum(before, report)
    return total


def _sum(one: HistogramReport, other: HistogramReport) -> HistogramReport:
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


def _histogram(name: str, text: str, values: Mapping[str, HistogramReport], bounds: Sequence[float]) -> Metric:
    family = HistogramMetricFamily(_P + name, text, labels=("model",))
    limits = [*(str(float(bound)) for bound in bounds), "+Inf"]
    for label, report in values.items():
        family.add_metric((label,), list(zip(limits, accumulate(report.counts), strict=True)), report.sum)
    return family
