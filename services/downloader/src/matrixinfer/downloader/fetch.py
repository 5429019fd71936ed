"""One download from request to READY: look, lock, list, select, check the room, fetch, verify, publish.

The order is the guarantee: nothing is written before every name was checked and the room is there, nothing is
published before every file was verified. Retries happen here and nowhere else: per range, with growing waits, for as
long as bytes keep coming. The trap: worker threads outlive a cancelled await, so the stop event is set before
anything is cancelled, and the lock is given up last.
"""

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import tenacity

from matrixinfer.downloader.blocking import in_thread
from matrixinfer.downloader.cache import Cache
from matrixinfer.downloader.core.manifest import Listing, Ready, Selection, SourceFile, VerifiedFile, digest, select
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.room import Room, shortage
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.lock import Lock, held
from matrixinfer.downloader.plain import PlainFolder
from matrixinfer.downloader.progress import Phase, Progress
from matrixinfer.downloader.shelf import Shelf
from matrixinfer.downloader.sources.source import Source
from matrixinfer.downloader.staging import PartWriter, StagedFile
from matrixinfer.downloader.workspace import Workspace, volume_errors
from matrixinfer.service.logging import get_logger

__all__ = ["Limits", "Tools", "fetch", "open_shelf"]

log = get_logger("fetch")

T = TypeVar("T")

_LISTINGS = 3
# However much arrives with every try, a source that breaks off this often is given up.
_TRIES_FACTOR = 10
_TELL_SECONDS = 2.0
_SKIPPED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once, how long, how often."""

    part_bytes: int = 16 << 20
    connections: int = 8
    tries: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 20.0
    listing_seconds: float = 300.0
    lock_wait_seconds: float = 3600.0
    reserve_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Tools:
    """What the download needs from the process it runs in."""

    pod: str
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    progress: Progress = field(default_factory=Progress)
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise DownloadError(Cancelled) when the process shall stop."""
        if self.stop.is_set():
            raise DownloadError(Cause.CANCELLED, "told to stop; what was fetched is kept for the next start")

    async def pause(self, seconds: float) -> None:
        """Wait, and raise when the process shall stop."""
        await asyncio.sleep(seconds)
        self.check()


async def fetch(request: Request, open_source: Callable[[], Source], limits: Limits, tools: Tools) -> Ready:
    """Return what is published in the output folder in the end; raises DownloadError.

    Without any network or lock when it is published already. `open_source` is called on a thread, and only when needed.
    """
    shelf = await in_thread(lambda: open_shelf(request), name="prepare")
    if found := await _already(request, shelf.published):
        return _answer(found, tools)
    async with held(
        shelf.workspace.lock,
        pod=tools.pod,
        wait_seconds=limits.lock_wait_seconds,
        monotonic=tools.monotonic,
        pause=tools.pause,
        waiting=lambda holder: tools.progress.enter(Phase.WAITING, waits_for=_who(shelf.workspace, holder)),
    ) as lock:
        # Whoever held the lock before may have done the work.
        if found := await _already(request, shelf.published) or await _already(request, shelf.adopted):
            return _answer(found, tools)
        async with _answering(limits):
            source = await in_thread(open_source, name="open-source")
        for left in reversed(range(_LISTINGS)):
            try:
                ready = await _transfer(request, source, shelf, limits, tools)
                break
            except DownloadError as exc:
                if exc.cause is not Cause.SOURCE_CHANGED or not left:
                    raise
                log.warning("source_changed", reason=exc.message, action="listing it again")
        tools.check()
        _expect(request, ready.digest)
        tools.progress.enter(Phase.PUBLISHING)
        await in_thread(lambda: _publish(shelf, ready, lock), name="publish")
    tools.progress.published(ready.digest)
    return ready


def open_shelf(request: Request) -> Shelf:
    """Return where the request is published; raises DownloadError when it cannot be written."""
    return Cache(request.cache, request) if request.cache else PlainFolder(request)


async def _already(request: Request, look: Callable[[], Ready | None]) -> Ready | None:
    found = await in_thread(look, name="look")
    if found and request.expected_digest not in ("", found.digest):
        # Another state of a source that moves. What this version recorded is fetched and takes its place.
        log.info("published_is_another_version", published=found.digest, recorded=request.expected_digest)
        return None
    return found


def _answer(found: Ready, tools: Tools) -> Ready:
    tools.progress.resolved(found.resolved_revision, found.total_bytes, len(found.files))
    tools.progress.present(found.total_bytes)
    for _ in found.files:
        tools.progress.file_done()
    tools.progress.published(found.digest)
    log.info("already_published", digest=found.digest, bytes=found.total_bytes)
    return found


def _expect(request: Request, found: str) -> None:
    if request.expected_digest and found != request.expected_digest:
        raise DownloadError(
            Cause.SOURCE_CHANGED,
            f"the source now holds {found}, but this version was recorded as {request.expected_digest}; "
            "restore the source, or change the Model so that a new version is made",
        )


def _publish(shelf: Shelf, ready: Ready, lock: Lock) -> None:
    lock.check()
    shelf.publish(ready)


async def _transfer(request: Request, source: Source, shelf: Shelf, limits: Limits, tools: Tools) -> Ready:
    tools.progress.enter(Phase.RESOLVING)
    listing = await _list(source, limits, tools)
    selection = select(listing, request.include, request.exclude)
    tools.progress.resolved(listing.revision, selection.total_bytes, len(selection.files))
    log.info(
        "source_resolved",
        revision=listing.revision,
        files=len(selection.files),
        bytes=selection.total_bytes,
        skipped=len(selection.skipped),
        skipped_files=[f"{path}: {why}" for path, why in selection.skipped[:_SKIPPED_SHOWN]],
    )
    tools.progress.enter(Phase.DOWNLOADING)
    files = await _Transfer(source, shelf, limits, tools).run(selection)
    return Ready(
        source=request.source,
        include=tuple(request.include),
        exclude=tuple(request.exclude),
        resolved_revision=listing.revision,
        digest=digest(files),
        files=files,
        published_at=tools.now().isoformat(timespec="seconds"),
    )


async def _list(source: Source, limits: Limits, tools: Tools) -> Listing:
    def listed() -> Listing:
        return _patiently(source.listing, limits, tools, tools.stop, position=lambda: 0)

    async with _answering(limits):
        return await in_thread(listed, name="list")


@asynccontextmanager
async def _answering(limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.listing_seconds):
            yield
    except TimeoutError as exc:
        raise DownloadError(
            Cause.UNREACHABLE, f"the source could not be listed within {limits.listing_seconds:.0f} s"
        ) from exc


class _Transfer:
    """All files of one selection: several connections, each taking the next missing part, the biggest files first."""

    def __init__(self, source: Source, shelf: Shelf, limits: Limits, tools: Tools) -> None:
        self._source = source
        self._shelf = shelf
        self._workspace = shelf.workspace
        self._limits = limits
        self._tools = tools
        self._queue: deque[tuple[StagedFile, Part]] = deque()
        self._missing: dict[str, int] = {}
        self._verified: list[VerifiedFile] = []
        # Set on the first error of any worker, or when the process shall stop: threads look at it between chunks.
        self._halt = threading.Event()
        self._told = float("-inf")

    async def run(self, selection: Selection) -> Sequence[VerifiedFile]:
        """Return the verified files, sorted by path."""
        wanted = await in_thread(lambda: self._without_present(selection.files), name="look")
        biggest_first = sorted(wanted, key=lambda file: (-file.size, file.path))
        staged = [StagedFile(file, self._workspace, self._limits.part_bytes) for file in biggest_first]
        await self._each(deque(staged), self._open)
        present = sum(file.present_bytes for file in staged)
        self._tools.progress.present(present)
        if present:
            log.info("download_resumed", bytes=present, of=selection.total_bytes)
        missing = sum(file.size for file in wanted) - present
        await in_thread(lambda: self._check_room(missing, len(selection.files)), name="preflight")
        complete = deque(file for file in staged if not file.missing)
        for file in staged:
            self._enqueue(file)
        await self._each(complete, self._finish)
        await self._each(self._queue, self._part)
        return tuple(sorted(self._verified, key=lambda file: file.path))

    def _without_present(self, files: Sequence[SourceFile]) -> Sequence[SourceFile]:
        """Count the files that the shelf has already, and return the others."""
        there = {found.path: found for file in files if (found := self._shelf.present(file))}
        self._verified.extend(there.values())
        self._tools.progress.present(sum(found.size for found in there.values()))
        for _ in there:
            self._tools.progress.file_done()
        if there:
            log.info("files_shared", files=len(there), bytes=sum(found.size for found in there.values()))
        return [file for file in files if file.path not in there]

    async def _open(self, file: StagedFile) -> None:
        await in_thread(lambda: file.open(self._halted), name="open")

    async def _part(self, item: tuple[StagedFile, Part]) -> None:
        file, part = item
        await in_thread(lambda: self._fetch_part(file, part), name="fetch")
        self._missing[file.file.path] -= 1
        if not self._missing[file.file.path]:
            await self._finish(file)

    async def _finish(self, file: StagedFile) -> None:
        try:
            self._verified.append(await in_thread(lambda: self._verify(file), name="verify"))
            self._tools.progress.file_done()
        except DownloadError as exc:
            if exc.cause is not Cause.INTEGRITY:
                raise
            self._tools.progress.verify_failed()
            if not file.resumed:
                await in_thread(file.discard, name="discard")
                raise
            # Bytes of an earlier process may have been damaged since; the source gets one more chance.
            log.warning("resumed_file_differs", file=file.file.path, reason=exc.message, action="fetching it anew")
            self._tools.progress.present(-file.present_bytes)
            await in_thread(file.restart, name="restart")
            self._enqueue(file)

    def _verify(self, file: StagedFile) -> VerifiedFile:
        verified = file.finish()
        self._shelf.keep(file.file, verified)
        return verified

    def _enqueue(self, file: StagedFile) -> None:
        self._missing[file.file.path] = len(file.missing)
        self._queue.extend((file, part) for part in file.missing)

    def _fetch_part(self, file: StagedFile, part: Part) -> None:
        with file.part(part) as writer:
            _patiently(
                lambda: self._read_rest(file, writer),
                self._limits,
                self._tools,
                self._halt,
                position=lambda: writer.position,
            )
        self._tell_waiters()

    def _read_rest(self, file: StagedFile, writer: PartWriter) -> None:
        self._check()
        with self._source.read(file.file, writer.rest) as chunks:
            for chunk in chunks:
                self._check()
                writer.write(chunk)
                self._tools.progress.fetched(len(chunk))
        if writer.rest.length:
            raise TransientError(
                f"{file.file.path}: the connection ended {writer.rest.length} bytes before the end of the part"
            )

    def _check_room(self, needed_bytes: int, needed_files: int) -> None:
        with volume_errors(self._workspace.work):
            found = os.statvfs(self._workspace.work)
        problem = shortage(
            Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None),
            needed_bytes=needed_bytes,
            needed_files=needed_files,
            reserve_bytes=self._limits.reserve_bytes,
        )
        if problem:
            raise DownloadError(Cause.NO_SPACE, problem)

    def _tell_waiters(self) -> None:
        now = self._tools.monotonic()
        if now - self._told < _TELL_SECONDS:
            return
        self._told = now
        view = self._tools.progress.view()
        # Only a courtesy to those who wait for the lock: it may be torn, or fail.
        with suppress(OSError):
            self._workspace.progress.write_bytes(json.dumps({"percent": view.percent}).encode())

    def _halted(self) -> bool:
        return self._halt.is_set() or self._tools.stop.is_set()

    def _check(self) -> None:
        self._tools.check()
        if self._halt.is_set():
            raise DownloadError(Cause.CANCELLED, "another file failed")

    async def _each(self, items: "deque[T]", work: Callable[[T], Awaitable[None]]) -> None:
        async def worker() -> None:
            try:
                while items:
                    await work(items.popleft())
            except BaseException:
                self._halt.set()
                raise

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._limits.connections):
                    tasks.create_task(worker())
        except ExceptionGroup as group:
            raise _telling(group) from group


def _patiently(
    work: Callable[[], T], limits: Limits, tools: Tools, halt: threading.Event, *, position: Callable[[], int]
) -> T:
    """Do `work` on this thread, again after a TransientError; a try that moved `position` on does not count."""
    reached, tries = position(), 0

    def used_up(state: tenacity.RetryCallState) -> bool:
        nonlocal reached, tries
        tries = 1 if position() > reached else tries + 1
        reached = position()
        return tries >= limits.tries or state.attempt_number >= limits.tries * _TRIES_FACTOR

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, TransientError) and error.retry_after else 0.0
        return max(growing(state), min(asked, limits.longest_wait_seconds))

    def sleep(seconds: float) -> None:
        # Ends early when the process shall stop; the next try then raises that.
        halt.wait(seconds)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        tools.progress.retried()
        log.warning("retrying", reason=str(state.outcome.exception()) if state.outcome else "", tries=tries)

    growing = tenacity.wait_random_exponential(limits.first_wait_seconds, limits.longest_wait_seconds)
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


def _telling(group: ExceptionGroup[Exception]) -> Exception:
    """The error that tells why: the others are workers that were told to stop because of it."""
    causes = [e for e in group.exceptions if not (isinstance(e, DownloadError) and e.cause is Cause.CANCELLED)]
    return (causes or list(group.exceptions))[0]


def _who(workspace: Workspace, holder: str) -> str:
    try:
        percent = json.loads(workspace.progress.read_bytes())["percent"]
    except (OSError, ValueError, KeyError, TypeError):
        return holder
    return f"{holder}, which has {percent} %"
