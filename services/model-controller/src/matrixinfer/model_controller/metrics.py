"""Metrics of the model-controller, beside those of the reconciliation library."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from prometheus_client import Counter, Gauge

from matrixinfer.kube.plan import Plan
from matrixinfer.kube.resource import Manifest

__all__ = ["DECISIONS", "MODELS", "count_decisions", "count_models"]

_REASONS: Final = ("VersionRecorded", "ChildCreated", "ChildUpdated", "ChildDeleted", "Scaled", "Refused")
_STATES: Final = ("Active", "Progressing", "Failed")

DECISIONS: Final = Counter(
    "matrixinfer_model_controller_decisions_total", "Steps that were planned, by reason.", ["reason"]
)
MODELS: Final = Gauge("matrixinfer_model_controller_models", "Models of which a condition is true.", ["condition"])

for _reason in _REASONS:
    DECISIONS.labels(_reason)
for _state in _STATES:
    MODELS.labels(_state)


def count_decisions(made: Plan) -> None:
    """Count what a plan wants."""
    for note in made.notes:
        if note.reason in _REASONS:
            DECISIONS.labels(note.reason).inc()
    if made.error is not None:
        DECISIONS.labels("Refused").inc()


def count_models(models: Callable[[], Iterable[Manifest]]) -> None:
    """Let the gauge read the conditions of all Models whenever it is asked."""
    for state in _STATES:
        MODELS.labels(state).set_function(partial(_count, models, state))


def _count(models: Callable[[], Iterable[Manifest]], condition: str) -> float:
    return sum(_holds(model, condition) for model in models())


def _holds(model: Manifest, condition: str) -> bool:
    status: Any = model.get("status") or {}
    return any(c.get("type") == condition and c.get("status") == "True" for c in status.get("conditions") or ())
