"""How far the download is: one board that worker threads write and observers read.

Owns the numbers; logs, metrics, the status of the ModelVersion and the file for those who wait for the lock all
read the same `View`. What changes with every chunk or file is counted in plain ints, and a view made when somebody
looks. The trap: adding to an int is not atomic across threads, so every change takes the lock.
"""

import threading
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["Phase", "Progress", "View"]

_RATE_SAMPLES = 10


class Phase(StrEnum):
    """What the process does now."""

    STARTING = "Starting"
    WAITING = "Waiting"
    RESOLVING = "Resolving"
    DOWNLOADING = "Downloading"
    PUBLISHING = "Publishing"
    READY = "Ready"


@dataclass(frozen=True, slots=True)
class View:
    """The board at one moment; sizes in bytes."""

    phase: Phase = Phase.STARTING
    waits_for: str = ""
    revision: str = ""
    total_bytes: int = 0
    file_count: int = 0
    done_bytes: int = 0
    done_files: int = 0
    fetched_bytes: int = 0
    """Bytes that came over the wire in this process, those fetched twice included."""
    peer_bytes: int = 0
    """Those of them that came from other pods."""
    retries: int = 0
    verify_failures: int = 0
    bytes_per_second: int = 0
    connections: int = 0
    """Connections that work at the same time."""
    digest: str = ""

    @property
    def percent(self) -> int:
        """Whole percent of the bytes; 100 only when every byte is there."""
        return self.done_bytes * 100 // self.total_bytes if self.total_bytes else 0

    @property
    def seconds_left(self) -> int | None:
        """At the rate of late; None while nothing moves."""
        return (self.total_bytes - self.done_bytes) // self.bytes_per_second if self.bytes_per_second else None


class Progress:
    """The board itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view = View()
        self._done_bytes = 0
        self._done_files = 0
        self._fetched_bytes = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES)

    def enter(self, phase: Phase, *, waits_for: str = "") -> None:
        """Say what happens now."""
        with self._lock:
            self._view = replace(self._view, phase=phase, waits_for=waits_for)

    def resolved(self, revision: str, total_bytes: int, file_count: int) -> None:
        """Say what there is to fetch; counting begins anew."""
        with self._lock:
            self._samples.clear()
            self._done_bytes = self._done_files = 0
            self._view = replace(self._view, revision=revision, total_bytes=total_bytes, file_count=file_count)

    def present(self, count: int) -> None:
        """Count bytes that are there without having been fetched now; negative when they turned out wrong."""
        with self._lock:
            self._done_bytes += count

    def fetched(self, count: int) -> None:
        """Count bytes that came over the wire and were written."""
        with self._lock:
            self._done_bytes += count
            self._fetched_bytes += count

    def added(self, before: View, now: View) -> None:
        """Count what another process counted between two views of its own board; it tells of its files itself."""
        with self._lock:
            self._done_bytes += now.done_bytes - before.done_bytes
            self._fetched_bytes += now.fetched_bytes - before.fetched_bytes
            self._view = replace(
                self._view,
                retries=self._view.retries + now.retries - before.retries,
                verify_failures=self._view.verify_failures + now.verify_failures - before.verify_failures,
            )

    def from_peer(self, count: int) -> None:
        """Say of bytes that are counted as fetched that another pod gave them."""
        with self._lock:
            self._view = replace(self._view, peer_bytes=self._view.peer_bytes + count)

    def file_done(self) -> None:
        """Count one file as complete and verified."""
        with self._lock:
            self._done_files += 1

    def retried(self) -> None:
        """Count one more try of one range."""
        with self._lock:
            self._view = replace(self._view, retries=self._view.retries + 1)

    def paced(self, connections: int) -> None:
        """Say how many connections work now."""
        with self._lock:
            self._view = replace(self._view, connections=connections)

    def verify_failed(self) -> None:
        """Count one file whose content was not what the source promises."""
        with self._lock:
            self._view = replace(self._view, verify_failures=self._view.verify_failures + 1)

    def published(self, digest: str) -> None:
        """Say that all is there."""
        with self._lock:
            self._view = replace(self._view, phase=Phase.READY, digest=digest)

    def sample(self, now: float) -> View:
        """Return the board with the rate since the oldest sample; called at even intervals by one observer."""
        with self._lock:
            self._samples.append((now, self._fetched_bytes))
            then, before = self._samples[0]
            elapsed = now - then
            rate = int((self._fetched_bytes - before) / elapsed) if elapsed > 0 else 0
            self._view = replace(self._view, bytes_per_second=rate)
            return self._counted()

    def view(self) -> View:
        """Return the board as it is."""
        with self._lock:
            return self._counted()

    def _counted(self) -> View:
        return replace(
            self._view,
            done_bytes=self._done_bytes,
            done_files=self._done_files,
            fetched_bytes=self._fetched_bytes,
        )
