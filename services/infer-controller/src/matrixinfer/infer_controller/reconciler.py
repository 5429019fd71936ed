"""Ties looking, planning and pacing together, and says in the status what the API server refused.

Owns nothing but that order; every decision is elsewhere. The trap: a refusal that passes by itself (a conflict, a
server that is away) must not be written, or the status would change with every hiccup.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from matrixinfer.infer_controller.fleet import Seen
from matrixinfer.infer_controller.observe import Observer
from matrixinfer.infer_controller.pace import StatusPace
from matrixinfer.infer_controller.plan import plan, write_status
from matrixinfer.infer_controller.status import refused_status
from matrixinfer.kube.apply import Failure
from matrixinfer.kube.errors import ApiError, Forbidden, Invalid, NotOwned
from matrixinfer.kube.plan import Note, Plan, WriteStatus
from matrixinfer.kube.resource import Key

__all__ = ["InferReconciler", "explain"]


class InferReconciler:
    """The two functions that a controller of `matrixinfer.kube` runs."""

    def __init__(self, observer: Observer, pace: StatusPace, decided: Callable[[Note], None]) -> None:
        self._observer = observer
        self._pace = pace
        self._decided = decided

    def observe(self, key: Key) -> Seen | None:
        """Return one consistent look; None when the ModelInfer is gone."""
        seen = self._observer.observe(key)
        if seen is None:
            self._pace.forget(key)
        return seen

    def plan(self, seen: Seen, now: datetime) -> Plan:
        """Return the next step, with writes of status that can wait put off."""
        made = plan(seen, now)
        for note in made.notes:
            self._decided(note)
        return self._pace.paced(seen.infer.key, made, now)


def explain(seen: Seen, made: Plan, failures: Sequence[Failure], now: datetime) -> Sequence[WriteStatus]:
    """Return the status with the first refusal that a person must do something about."""
    if not made.status:
        return ()
    desired = made.status[0].desired
    refusal = next((failure for failure in failures if _needs_somebody(failure)), None)
    if refusal is None:
        return made.status
    if isinstance(refusal.error, NotOwned):
        told = refused_status(seen, desired, "NotOwned", "NameTaken", str(refusal.error), now)
        return (write_status(seen.infer, told),)
    message = f"{refusal}; correct the template, or the quota or policy that refuses it"
    told = refused_status(seen, desired, "Progressing", "WriteRefused", message, now)
    return (write_status(seen.infer, told),)


def _needs_somebody(failure: Failure) -> bool:
    error = failure.error
    if isinstance(error, NotOwned | Forbidden | Invalid):
        return True
    return isinstance(error, ApiError) and error.status == 400
