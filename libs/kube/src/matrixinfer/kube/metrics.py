"""Metrics of the library, on the default Prometheus registry.

The `workqueue_*`, `controller_runtime_*`, `rest_client_*` and `leader_election_*` names and labels are those that
existing Kubernetes dashboards query. Label sets are closed: controllers, resources, verbs and status codes, never
object names.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "ACTIVE_WORKERS",
    "API_REQUESTS",
    "API_SECONDS",
    "CACHED_OBJECTS",
    "EVENTS_DROPPED",
    "EXPECTATION_TIMEOUTS",
    "LEADER",
    "MAX_WORKERS",
    "QUEUE_ADDS",
    "QUEUE_DEPTH",
    "QUEUE_LONGEST",
    "QUEUE_RETRIES",
    "QUEUE_UNFINISHED",
    "QUEUE_WAIT_SECONDS",
    "QUEUE_WORK_SECONDS",
    "RECONCILES",
    "RECONCILE_ERRORS",
    "RECONCILE_PANICS",
    "RECONCILE_SECONDS",
    "TERMINAL_ERRORS",
    "UNDECODABLE",
    "WATCH_EVENTS",
    "WATCH_RESTARTS",
]

_FAST: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)

API_REQUESTS: Final = Counter(
    "rest_client_requests_total",
    "Requests to the API server. `code` is the status, or the name of our own error when there was no answer.",
    ["verb", "resource", "code"],
)
API_SECONDS: Final = Histogram(
    "rest_client_request_duration_seconds", "Time of one request, watches excluded.", ["verb"], buckets=_FAST
)

WATCH_RESTARTS: Final = Counter(
    "matrixinfer_kube_watch_restarts_total",
    "Watches that ended and were opened again: expired, inactive, dropped, ended, error.",
    ["resource", "why"],
)
WATCH_EVENTS: Final = Counter("matrixinfer_kube_watch_events_total", "Watch events by type.", ["resource", "type"])
UNDECODABLE: Final = Counter(
    "matrixinfer_kube_undecodable_objects_total", "Objects that the projection did not understand.", ["resource"]
)
CACHED_OBJECTS: Final = Gauge("matrixinfer_kube_cached_objects", "Objects in memory.", ["resource"])
EXPECTATION_TIMEOUTS: Final = Counter(
    "matrixinfer_kube_expectation_timeouts_total",
    "Keys planned although the cache had not shown their own writes in time.",
    ["controller"],
)
EVENTS_DROPPED: Final = Counter("matrixinfer_kube_events_dropped_total", "Events not sent, by reason.", ["why"])

LEADER: Final = Gauge("leader_election_master_status", "1 while this process holds the lease.", ["name"])

QUEUE_DEPTH: Final = Gauge("workqueue_depth", "Keys waiting.", ["name"])
QUEUE_ADDS: Final = Counter("workqueue_adds_total", "Keys that became waiting.", ["name"])
QUEUE_RETRIES: Final = Counter("workqueue_retries_total", "Keys put back with a back-off.", ["name"])
QUEUE_WAIT_SECONDS: Final = Histogram(
    "workqueue_queue_duration_seconds", "Time a key waited for a worker.", ["name"], buckets=_FAST
)
QUEUE_WORK_SECONDS: Final = Histogram(
    "workqueue_work_duration_seconds", "Time a worker spent.", ["name"], buckets=_FAST
)
QUEUE_UNFINISHED: Final = Gauge("workqueue_unfinished_work_seconds", "Seconds of work under way, summed.", ["name"])
QUEUE_LONGEST: Final = Gauge(
    "workqueue_longest_running_processor_seconds", "Age of the longest piece of work under way.", ["name"]
)

RECONCILES: Final = Counter(
    "controller_runtime_reconcile_total",
    "Passes by result: success, requeue_after, error, terminal_error.",
    ["controller", "result"],
)
RECONCILE_ERRORS: Final = Counter("controller_runtime_reconcile_errors_total", "Failed passes.", ["controller"])
TERMINAL_ERRORS: Final = Counter(
    "controller_runtime_terminal_reconcile_errors_total", "Passes that no retry can mend.", ["controller"]
)
RECONCILE_PANICS: Final = Counter(
    "controller_runtime_reconcile_panics_total", "Passes that raised something unforeseen.", ["controller"]
)
RECONCILE_SECONDS: Final = Histogram(
    "controller_runtime_reconcile_time_seconds", "Time of one pass.", ["controller"], buckets=_FAST
)
MAX_WORKERS: Final = Gauge("controller_runtime_max_concurrent_reconciles", "Workers.", ["controller"])
ACTIVE_WORKERS: Final = Gauge("controller_runtime_active_workers", "Workers in a pass.", ["controller"])
