"""Which bytes a connection fetches next. Pure, but for the caller's lock.

Nothing is cheaper, for us and for the source, than one request for a whole file whose bytes are hashed from the buffer
they came in. So while there are at least as many files as connections, a connection takes all that is left of one.
When there are fewer, several share a file: each takes a few parts from the front, so that the hash, which needs order,
keeps up; and a connection that has a long way to go gives back what it has not come to. The trap: a file that is being
looked at may still turn out to need parts, so "nothing to do" is not "done".
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from matrixinfer.downloader.core.ranges import Part

__all__ = ["Begin", "Fetch", "Job", "Schedule"]

# What several connections take at once of a file that they share.
_MOST_SHARED = 4
# What the one that has a file for itself keeps when others come to help; the rest is worth a new request to them.
_KEPT = 1

File = TypeVar("File")


@dataclass(slots=True, eq=False)
class Job(Generic[File]):
    """One file: its parts that nobody took yet, the requests that bring others, and how many are not there."""

    file: File
    waiting: deque[Part] = field(default_factory=deque)
    taken: "list[Fetch[File]]" = field(default_factory=list)
    unfinished: int = 0


@dataclass(frozen=True, slots=True)
class Begin(Generic[File]):
    """Look at this file first; then `begun` must be told."""

    job: Job[File]


@dataclass(slots=True, eq=False)
class Fetch(Generic[File]):
    """Fetch these parts, one after the other, each taken by `Schedule.take`; others may take over the last ones."""

    job: Job[File]
    parts: deque[Part]

    @property
    def end(self) -> int | None:
        """Where the last of them ends; None when none is left."""
        return self.parts[-1].end if self.parts else None


class Schedule(Generic[File]):
    """What is left of one download; files come biggest first."""

    def __init__(self, files: Sequence[File]) -> None:
        self._new: deque[Job[File]] = deque(Job(file) for file in files)
        self._begun: list[Job[File]] = []
        self._unsettled = len(self._new)

    @property
    def done(self) -> bool:
        """True when every file was settled."""
        return not self._unsettled

    def next(self, current: Job[File] | None, width: int) -> Begin[File] | Fetch[File] | None:
        """Return what a connection does next; None when there is nothing for it now."""
        if current is not None and current.waiting:
            return self._fetch(current, width)
        if self._new:
            return Begin(self._new.popleft())
        helped = max(self._begun, key=lambda job: len(job.waiting), default=None)
        if helped is None:
            return None
        if not helped.waiting:
            self._give_back()
            helped = max(self._begun, key=lambda job: len(job.waiting))
        return self._fetch(helped, width) if helped.waiting else None

    def begun(self, job: Job[File], parts: Sequence[Part]) -> None:
        """Say which parts of a file are missing; also of one that must be fetched anew."""
        job.waiting.extend(parts)
        job.unfinished += len(parts)
        if job not in self._begun:
            self._begun.append(job)

    def take(self, fetch: Fetch[File]) -> Part | None:
        """Return the next part of a request; None when it has brought what it should."""
        return fetch.parts.popleft() if fetch.parts else None

    def finished(self, job: Job[File]) -> bool:
        """Say that one part is there; True when it was the last of its file."""
        job.unfinished -= 1
        return not job.unfinished

    def ended(self, fetch: Fetch[File]) -> None:
        """Say that a request is over."""
        fetch.job.taken.remove(fetch)

    def settled(self, job: Job[File]) -> None:
        """Say that a file is complete and verified."""
        self._unsettled -= 1
        if job in self._begun:
            self._begun.remove(job)

    def _fetch(self, job: Job[File], width: int) -> Fetch[File]:
        others = sum(1 for other in self._begun if other is not job and (other.waiting or other.taken))
        alone = not job.taken and len(self._new) + others + 1 >= width
        waiting = sum(len(other.waiting) for other in self._begun)
        most = len(job.waiting) if alone else max(1, min(_MOST_SHARED, waiting // (2 * width)))
        parts = deque([job.waiting.popleft()])
        while len(parts) < most and job.waiting and job.waiting[0].offset == parts[-1].end:
            parts.append(job.waiting.popleft())
        made = Fetch(job, parts)
        job.taken.append(made)
        return made

    def _give_back(self) -> None:
        """Take from the request that has most left what it has not come to."""
        requests = [fetch for job in self._begun for fetch in job.taken if len(fetch.parts) > _KEPT]
        longest = max(requests, key=lambda fetch: len(fetch.parts), default=None)
        if longest is None:
            return
        while len(longest.parts) > _KEPT:
            longest.job.waiting.appendleft(longest.parts.pop())
