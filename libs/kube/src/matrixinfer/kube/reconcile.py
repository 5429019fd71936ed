"""What one pass came to, as a value.

Pure: from a plan and the report of carrying it out to one of four outcomes. Only `Retry` backs off.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from matrixinfer.kube.apply import Failure, Report
from matrixinfer.kube.errors import ApiError, Forbidden, Invalid, KubeError, NotOwned
from matrixinfer.kube.plan import EventType, Note, Plan

__all__ = ["Again", "Done", "Outcome", "Retry", "Terminal", "notes_after", "outcome"]


@dataclass(frozen=True, slots=True)
class Done:
    """The world is as wanted until something changes."""


@dataclass(frozen=True, slots=True)
class Again:
    """Look again after this time even if nothing changes."""

    after: timedelta


@dataclass(frozen=True, slots=True)
class Retry:
    """Something failed that may work later; `after` is the least time that the server asked for."""

    error: str
    after: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Terminal:
    """Something is wrong that only a change of the object can mend."""

    error: str


Outcome: TypeAlias = Done | Again | Retry | Terminal


def outcome(plan: Plan, report: Report) -> Outcome:
    """Return what happens to the key: a failure outweighs `plan.error`, which outweighs `plan.again_after`."""
    if report.failures:
        seconds = max(_asked_seconds(failure.error) for failure in report.failures)
        more = len(report.failures) - 1
        suffix = f" (and {more} more)" if more else ""
        return Retry(f"{report.failures[0]}{suffix}", timedelta(seconds=seconds))
    if plan.error is not None:
        return Terminal(plan.error)
    if plan.again_after is not None:
        return Again(plan.again_after)
    return Done()


def notes_after(plan: Plan, report: Report) -> tuple[Note, ...]:
    """Return the events to send: the plan's own when all succeeded, else a warning for each refusal."""
    if report.complete:
        return tuple(plan.notes)
    refusals = (failure for failure in report.failures if isinstance(failure.error, NotOwned | Invalid | Forbidden))
    return tuple(_warning(failure) for failure in refusals)


def _warning(failure: Failure) -> Note:
    reason = failure.error.reason if isinstance(failure.error, NotOwned | ApiError) else ""
    return Note(reason or "WriteRefused", str(failure), EventType.WARNING)


def _asked_seconds(error: KubeError) -> float:
    return (error.retry_after or 0.0) if isinstance(error, ApiError) else 0.0
