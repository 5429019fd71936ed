"""Trying again, at the one layer that does: after trouble that may pass, with growing and random pauses, for so long
as bytes keep coming. The trap: a source that delivers one byte with every try is not one that works.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.progress import Progress
from matrixinfer.service.logging import get_logger

__all__ = ["Patience"]

log = get_logger("fetch")

T = TypeVar("T")

# However much arrives with every try, a source that breaks off this often is given up.
_TRIES_FACTOR = 10


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and how long between two tries."""

    tries: int
    first_wait_seconds: float
    longest_wait_seconds: float
    progress: Progress

    def work(
        self, work: Callable[[], T], halt: threading.Event, *, position: Callable[[], int] = lambda: 0, stride: int = 1
    ) -> T:
        """Do `work` on this thread, again after a TransientError.

        A try that moved `position` on does not count, but there is a limit to the tries for each `stride` of it.
        """
        start = position()
        try:
            # What works at once, as nearly everything does, costs nothing: for small files the rest is felt.
            return work()
        except TransientError as exc:
            failure = exc
        return self._again(_after(failure, work), halt, position, start, stride)

    def _again(
        self, work: Callable[[], T], halt: threading.Event, position: Callable[[], int], start: int, stride: int
    ) -> T:
        reached, tries = start, 0
        milestone, slow_tries = start, 0

        def used_up(_state: tenacity.RetryCallState) -> bool:
            nonlocal reached, tries, milestone, slow_tries
            now = position()
            tries = 1 if now > reached else tries + 1
            reached = now
            if now >= milestone + stride:
                milestone, slow_tries = now, 0
            slow_tries += 1
            return tries >= self.tries or slow_tries >= self.tries * _TRIES_FACTOR

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, TransientError) and error.retry_after else 0.0
            return max(growing(state), min(asked, self.longest_wait_seconds))

        def sleep(seconds: float) -> None:
            # Ends early when the process shall stop; the next try then raises that.
            halt.wait(seconds)

        def before_sleep(state: tenacity.RetryCallState) -> None:
            self.progress.retried()
            log.warning("retrying", reason=str(state.outcome.exception()) if state.outcome else "", tries=tries)

        growing = tenacity.wait_random_exponential(self.first_wait_seconds, self.longest_wait_seconds)
        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(TransientError),
                stop=used_up,
                wait=wait,
                sleep=sleep,
                before_sleep=before_sleep,
                reraise=True,
            )(work)
        except TransientError as exc:
            raise DownloadError(Cause.UNREACHABLE, f"{exc.message} (given up after {tries} tries)") from exc


def _after(failure: TransientError, work: Callable[[], T]) -> Callable[[], T]:
    """Return what fails as the first try did, and is `work` from then on."""
    failures = [failure]

    def try_once() -> T:
        if failures:
            raise failures.pop()
        return work()

    return try_once
