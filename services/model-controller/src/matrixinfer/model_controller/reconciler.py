"""Ties looking and planning together, and says in the status what the API server refused.

The trap: a refusal that passes by itself (a conflict, a server that is away) must not be written, or the status would
change with every hiccup; the queue retries those.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from matrixinfer.kube.apply import Failure
from matrixinfer.kube.errors import ApiError, Forbidden, Invalid, NotOwned
from matrixinfer.kube.plan import Plan, WriteStatus
from matrixinfer.kube.resource import Key
from matrixinfer.model_controller.observe import Observer, Seen
from matrixinfer.model_controller.plan import plan, with_failure
from matrixinfer.model_controller.render.environment import RenderEnvironment

__all__ = ["ModelReconciler", "explain"]


class ModelReconciler:
    """The two functions that a controller of `matrixinfer.kube` runs."""

    def __init__(
        self, observer: Observer, environment: RenderEnvironment, decided: Callable[[Plan], None] = lambda _plan: None
    ) -> None:
        self._observer = observer
        self._environment = environment
        self._decided = decided

    def observe(self, key: Key) -> Seen | None:
        """Return one consistent look; None when the Model is gone."""
        return self._observer.observe(key)

    def plan(self, seen: Seen, now: datetime) -> Plan:
        """Return the next step."""
        made = plan(seen, self._environment, now)
        self._decided(made)
        return made


def explain(seen: Seen, made: Plan, failures: Sequence[Failure], now: datetime) -> Sequence[WriteStatus]:
    """Return the status with the first refusal that a person must do something about."""
    for failure in failures:
        match failure.error:
            case NotOwned():
                message = f"{failure.error}; rename the Model or its backend, or remove the other object"
                return with_failure(seen, made, "NotOwned", message, now)
            case Forbidden() if _is_leaving(failure.error):
                # The namespace goes, and with it everything that could be said.
                continue
            case Forbidden() | Invalid():
                return with_failure(seen, made, "WriteRefused", str(failure), now)
            case _:
                continue
    return made.status


def _is_leaving(error: ApiError) -> bool:
    causes: Any = (error.details or {}).get("causes") or ()
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
