"""What the autoscaler says about itself. Label sets are closed and zeroed at start."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from matrixinfer.autoscaler.collect.scrape import Failure
from matrixinfer.service.metrics import LATENCY_BUCKETS, zero

__all__ = ["BINDINGS", "DECISIONS", "ROUNDS", "ROUND_SECONDS", "SCRAPES", "SCRAPE_SECONDS", "start_at_zero"]

ROUNDS: Final = Counter("matrixinfer_autoscaler_rounds_total", "Rounds over all bindings.")
ROUND_SECONDS: Final = Histogram(
    "matrixinfer_autoscaler_round_seconds", "Time of one round over all bindings.", buckets=LATENCY_BUCKETS
)
BINDINGS: Final = Gauge("matrixinfer_autoscaler_bindings", "Bindings in the last round.", ("state",))
DECISIONS: Final = Counter("matrixinfer_autoscaler_decisions_total", "Decisions by what they ask for.", ("direction",))
SCRAPES: Final = Counter("matrixinfer_autoscaler_scrapes_total", "Scrapes of engine pods by outcome.", ("outcome",))
SCRAPE_SECONDS: Final = Histogram(
    "matrixinfer_autoscaler_scrape_seconds", "Time of one scrape of one pod.", buckets=LATENCY_BUCKETS
)


def start_at_zero() -> None:
    """Make every series exist."""
    zero(BINDINGS, ("decided", "blocked", "failed"))
    zero(DECISIONS, ("up", "down", "keep"))
    zero(SCRAPES, ("ok", *Failure))
