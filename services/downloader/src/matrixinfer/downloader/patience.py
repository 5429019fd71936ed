"""Trying again, at the one layer that does: after trouble that may pass, with growing and random pauses, for so long
as bytes keep coming. The trap: a source that delivers one byte with every try is not one that works.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.progress import Progress
from matrixinfer.service.logging import get_logger

__all__ = ["Patience"]

log = get_logger("fetch")

T = TypeVar("T")

# However much arrives with every try, a source that breaks off this often is given up.
_TRIES_FACTOR = 10
_MOST_DOUBLINGS = 30


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
        reached = milestone = position()
        attempts = tries = slow_tries = 0
        while True:
            try:
                return work()
            except TransientError as exc:
                now = position()
                attempts += 1
                tries = 1 if now > reached else tries + 1
                reached = now
                if now >= milestone + stride:
                    milestone, slow_tries = now, 0
                slow_tries += 1
                if tries >= self.tries or slow_tries >= self.tries * _TRIES_FACTOR:
                    raise DownloadError(Cause.UNREACHABLE, f"{exc.message} (given up after {tries} tries)") from exc
                self.progress.retried()
                log.warning("retrying", reason=str(exc), tries=tries)
                # Ends early when the process shall stop; the next try then raises that.
                halt.wait(self._pause(attempts, exc.retry_after or 0.0))

    def _pause(self, attempts: int, asked_seconds: float) -> float:
        growing = min(self.first_wait_seconds * 2 ** min(attempts - 1, _MOST_DOUBLINGS), self.longest_wait_seconds)
        # Not for secrecy: many that fail together must not come back together.
        return max(random.uniform(0, growing), min(asked_seconds, self.longest_wait_seconds))  # noqa: S311
