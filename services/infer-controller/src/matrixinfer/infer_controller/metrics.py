"""Metrics of the infer-controller, beside those that every controller has (`workqueue_*`, `controller_runtime_*`).

Label sets are closed: no name of an object is ever a label.
"""

from typing import Final

from prometheus_client import Counter, Gauge

from matrixinfer.service.metrics import zero

__all__ = ["DECISIONS", "DRAINING", "LOST_NODES", "REASONS"]

REASONS: Final = ("CreatingGroups", "DrainCut", "Rebuilding", "ScalingDown", "Updating")
"""Every decision that is counted; the reasons of the events that tell of them."""

DECISIONS: Final = Counter(
    "matrixinfer_infer_controller_decisions_total",
    "Passes that made, removed, updated or rebuilt groups, or cut requests when a drain's time was over.",
    ("decision",),
)
DRAINING: Final = Gauge(
    "matrixinfer_infer_controller_draining_pods", "Pods that are being removed and may still have requests."
)
LOST_NODES: Final = Gauge(
    "matrixinfer_infer_controller_lost_nodes", "Nodes that do not answer and whose pods count as failed."
)

zero(DECISIONS, REASONS)
