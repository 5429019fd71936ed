"""All files of one selection: several connections, each on a thread of its own, as many as help.

The threads spend their time in system calls and hashes, outside the interpreter's lock, with a buffer each; what they
do next comes from `core.schedule`, how many of them work from `core.pace`. Blocking. The traps: a thread may hang in a
source that is silent, so the end aborts the source before it waits, and waits for a bounded time; and the first error
is the one to tell, the others follow from it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from matrixinfer.downloader.core.manifest import SourceFile, VerifiedFile
from matrixinfer.downloader.core.pace import Pace, first_pace, next_pace
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.schedule import Begin, Fetch, Job, Schedule
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.progress import Progress
from matrixinfer.downloader.shelf import Shelf
from matrixinfer.downloader.sources.source import Cloning, Sharing, Source
from matrixinfer.downloader.staging import PartWriter, StagedFile
from matrixinfer.service.logging import get_logger

__all__ = ["Transfer"]

log = get_logger("transfer")

_TICK_SECONDS = 0.5
# From this share of all cores on, the processor is taken for the limit: the system's part of the work is not ours.
_BUSY_SHARE = 0.4
# What a small file is worth beside its bytes when the pace is measured: each costs a round trip.
_FILE_WORTH = 1 << 16
_NOTICE_SECONDS = 5.0

_File: TypeAlias = Job[StagedFile]


class Transfer:
    """One run over files that are missing."""

    def __init__(
        self,
        source: Source,
        shelf: Shelf,
        limits: Limits,
        progress: Progress,
        *,
        check: Callable[[], None],
        monotonic: Callable[[], float],
        tell: Callable[[], None],
        allowed: Callable[[], int] | None = None,
    ) -> None:
        """`check` raises when the process shall stop; `tell` is called now and then, for those who wait.

        `allowed` is asked now and then for the connections that may work at the same time; `limits` says the most.
        """
        self._source = source
        self._clone = source.clone if isinstance(source, Cloning) else None
        self._sharing = source if isinstance(source, Sharing) else None
        self._shelf = shelf
        self._limits = limits
        self._patience = limits.patience(progress)
        self._progress = progress
        self._check_stop = check
        self._monotonic = monotonic
        self._tell = tell
        self._halt = threading.Event()
        self._changed = threading.Condition()
        self._schedule: Schedule[StagedFile] = Schedule(())
        self._allowed = allowed or (lambda: limits.connections)
        self._pace = Pace(1)
        self._pushed_back = False
        self._verified: list[VerifiedFile] = []
        self._errors: list[BaseException] = []
        self._settled_files = 0

    def verified_after(self, count: int) -> Sequence[VerifiedFile]:
        """Return the files that are done, in the order in which they were, without the first ones."""
        with self._changed:
            return self._verified[count:]

    def run(self, files: Sequence[StagedFile]) -> Sequence[VerifiedFile]:
        """Return the verified files; raises the first error of any of them."""
        biggest_first = sorted(files, key=lambda staged: (-staged.file.size, staged.file.path))
        self._schedule = Schedule(biggest_first)
        parts = sum(max(1, -(-staged.file.size // self._limits.part_bytes)) for staged in files)
        count = min(self._limits.connections, parts)
        self._pace = first_pace(self._limits.cores, min(self._allowed(), count))
        threads = [
            threading.Thread(target=partial(self._connection, index), name=f"fetch-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            self._govern(threads)
        finally:
            self._end(threads, files)
        if self._errors:
            raise _telling(self._errors)
        return tuple(self._verified)

    def _govern(self, threads: Sequence[threading.Thread]) -> None:
        """Set the pace until all is done or somebody failed."""
        before, seen, used = self._monotonic(), self._work_done(), time.process_time()
        with self._changed:
            while not self._schedule.done and not self._halt.is_set():
                self._changed.wait(_TICK_SECONDS)
                self._check_stop()
                self._tell()
                now = self._monotonic()
                if now - before < _TICK_SECONDS:
                    continue
                done = self._work_done()
                rate, busy = (done - seen) / (now - before), (time.process_time() - used) / (now - before)
                before, seen, used = now, done, time.process_time()
                self._pace = next_pace(
                    self._pace,
                    rate,
                    pushed_back=self._pushed_back,
                    busy=busy > _BUSY_SHARE * self._limits.cores,
                    most=min(len(threads), self._allowed()),
                )
                self._pushed_back = False
                self._progress.paced(self._pace.width)
                self._changed.notify_all()

    def _work_done(self) -> int:
        return self._progress.view().fetched_bytes + self._settled_files * _FILE_WORTH

    def _end(self, threads: Sequence[threading.Thread], files: Sequence[StagedFile]) -> None:
        with self._changed:
            complete = self._schedule.done
            self._halt.set()
            self._changed.notify_all()
        if not complete:
            self._source.abort()
        deadline = self._monotonic() + _NOTICE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - self._monotonic()))
        if not any(thread.is_alive() for thread in threads):
            for file in files:
                file.close()

    def _connection(self, index: int) -> None:
        """The life of one thread."""
        buffer = memoryview(b"")
        current: _File | None = None
        try:
            while (task := self._next(index, current)) is not None:
                current = task.job
                # Most threads never work; a buffer is made when there is something to put into it.
                # What waits in a buffer is lost by a kill, as an unfinished part is.
                buffer = buffer or memoryview(bytearray(min(self._limits.buffer_bytes, self._limits.part_bytes)))
                if isinstance(task, Begin):
                    self._begin(task.job)
                else:
                    self._fetch(task, buffer)
        # Whatever it was, it is raised again where the transfer is waited for.
        except BaseException as exc:  # noqa: BLE001
            with self._changed:
                self._errors.append(exc)
                self._halt.set()
                self._changed.notify_all()

    def _next(self, index: int, current: _File | None) -> Begin[StagedFile] | Fetch[StagedFile] | None:
        with self._changed:
            while not self._schedule.done and not self._halt.is_set():
                if index < self._pace.width and (task := self._schedule.next(current, self._pace.width)) is not None:
                    return task
                self._changed.wait()
        return None

    def _begin(self, job: _File) -> None:
        staged = job.file
        staged.open(self._halt.is_set)
        if self._clone is not None:
            staged.clone(partial(self._clone, staged.file))
        self._progress.present(staged.present_bytes)
        missing = staged.missing
        if not missing:
            self._finish(job)
            return
        if not staged.in_one_part and staged.file.expected is None:
            found = self._patience.work(lambda: self._source.promise(staged.file), self._halt)
            if found is not None:
                staged.promise(found)
        if self._sharing is not None:
            missing = tuple(self._sharing.order(staged.file, missing))
        with self._changed:
            self._schedule.begun(job, missing)
            if len(missing) > 1:
                self._changed.notify_all()

    def _fetch(self, task: Fetch[StagedFile], buffer: memoryview) -> None:
        arriving = _Arriving(task.job.file, partial(self._take, task), task.parts[0].offset)
        try:
            self._patience.work(
                lambda: self._read_rest(arriving, task, buffer),
                self._halt,
                position=lambda: arriving.position,
                stride=self._limits.part_bytes,
            )
        finally:
            arriving.close()
            with self._changed:
                self._schedule.ended(task)
        if arriving.was_last:
            self._finish(task.job)

    def _take(self, task: Fetch[StagedFile], *, finished: bool) -> tuple[Part | None, bool]:
        """Count a part as finished, and return the next one; the second tells whether the file is complete."""
        with self._changed:
            was_last = finished and self._schedule.finished(task.job)
            return self._schedule.take(task), was_last

    def _read_rest(self, arriving: "_Arriving", task: Fetch[StagedFile], buffer: memoryview) -> None:
        self._check()
        file = arriving.file.file
        with self._changed:
            asked = arriving.rest(task.end)
        if not asked.length and file.size:
            return
        try:
            with self._source.read(file, asked) as body:
                if body.promise is not None:
                    arriving.file.promise(body.promise)
                while count := self._read_some(body.readinto, buffer, file):
                    if not arriving.write(buffer[:count]):
                        # Others took over what comes next, or it is the end: then nothing more may come.
                        if arriving.position == file.size and body.readinto(buffer):
                            raise _too_long(file)
                        return
        except TransientError:
            self._pushed_back = True
            # A source that was aborted says so as trouble on the way.
            self._check()
            raise
        if not arriving.complete:
            self._pushed_back = True
            raise TransientError(f"{file.path}: the connection ended before the end of the range")

    def _read_some(self, readinto: Callable[[memoryview], int], buffer: memoryview, file: SourceFile) -> int:
        """Read one buffer; a stream that only drips counts as one that broke off."""
        began = self._monotonic()
        count = readinto(buffer)
        self._check()
        self._progress.fetched(count)
        seconds = self._monotonic() - began
        if seconds > self._limits.read_seconds / 2 and count < seconds * self._limits.slowest_bytes_per_second:
            raise TransientError(f"{file.path}: only {count} bytes came in {seconds:.0f} s")
        return count

    def _finish(self, job: _File) -> None:
        staged = job.file
        try:
            verified = staged.finish()
        except DownloadError as exc:
            if exc.cause is not Cause.INTEGRITY:
                raise
            self._progress.verify_failed()
            doubtful = self._sharing.doubt(staged.file) if self._sharing is not None else ()
            if not staged.resumed and not doubtful:
                staged.discard()
                raise
            # Bytes of an earlier process may have been damaged since, or a peer gave them: the source gets one chance.
            log.warning("file_differs", file=staged.file.path, reason=exc.message, action="fetching it anew")
            before = staged.present_bytes
            if doubtful and not staged.resumed:
                staged.forget(doubtful)
            else:
                staged.restart()
            self._progress.present(staged.present_bytes - before)
            with self._changed:
                self._schedule.begun(job, staged.missing)
                self._changed.notify_all()
            return
        # Making the bytes last may have taken long enough for another process to take over.
        self._check_stop()
        self._shelf.keep(staged, verified)
        self._progress.file_done()
        with self._changed:
            self._verified.append(verified)
            self._settled_files += 1
            self._schedule.settled(job)
            if self._schedule.done:
                self._changed.notify_all()

    def _check(self) -> None:
        self._check_stop()
        if self._halt.is_set():
            raise DownloadError(Cause.CANCELLED, "another file failed")


class _Take(Protocol):
    """Tells that a part is finished, and gives the next one; the second value tells whether the file is complete."""

    def __call__(self, *, finished: bool) -> tuple[Part | None, bool]: ...


class _Arriving:
    """Parts that one request brings in a row; each is noted as soon as its last byte is written."""

    def __init__(self, file: StagedFile, take: _Take, position: int) -> None:
        self.file = file
        self.position = position
        self.complete = False
        """True when all that was taken is there."""
        self.was_last = False
        """True when the file is complete with it."""
        self._take = take
        self._writer: PartWriter | None = None

    def rest(self, end: int | None) -> Part:
        """What to ask for, when the parts that are not begun end at `end`."""
        last = end or (self._writer.part.end if self._writer else self.position)
        return Part(self.position, last - self.position)

    def write(self, chunk: memoryview) -> bool:
        """Write the next bytes, over the borders of parts; False when no more are wanted."""
        while chunk:
            if self._writer is None:
                part, _ = self._take(finished=False)
                if part is None:
                    raise _too_long(self.file.file)
                self._writer = self.file.begin_part(part)
            writer = self._writer
            taken = chunk[: writer.rest.length]
            writer.write(taken)
            self.position = writer.position
            chunk = chunk[len(taken) :]
            if not writer.rest.length:
                self._writer = None
                self.file.end_part(writer)
                following, self.was_last = self._take(finished=True)
                if following is None:
                    self.complete = True
                    if chunk and self.position == self.file.file.size:
                        raise _too_long(self.file.file)
                    return False
                self._writer = self.file.begin_part(following)
        return True

    def close(self) -> None:
        """Give up what is not finished."""
        if self._writer is not None:
            self.file.drop_part(self._writer)


def _too_long(file: SourceFile) -> DownloadError:
    return DownloadError(Cause.INTEGRITY, f"{file.path} is longer than listed: more came than its {file.size} bytes")


def _telling(errors: Sequence[BaseException]) -> BaseException:
    """The error that tells why: the others are threads that were told to stop because of it."""
    causes = [e for e in errors if not (isinstance(e, DownloadError) and e.cause is Cause.CANCELLED)]
    return (causes or list(errors))[0]
