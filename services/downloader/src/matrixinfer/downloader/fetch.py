"""One download from request to READY: look, lock, list, select, check the room, fetch, verify, publish.

The order is the guarantee: nothing is written before every name was checked and the room is there, nothing is
published before every file was verified. Retries happen in `patience` and nowhere else. The trap: worker threads
outlive a cancelled await, so the stop event is set before anything is cancelled, and the lock is given up last.
"""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from matrixinfer.downloader.blocking import in_thread
from matrixinfer.downloader.cache import Cache
from matrixinfer.downloader.core.deal import deal
from matrixinfer.downloader.core.evict import room_to_make
from matrixinfer.downloader.core.manifest import Listing, Ready, Selection, SourceFile, VerifiedFile, digest, select
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.room import Room, shortage
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.lock import Lock, held
from matrixinfer.downloader.plain import PlainFolder
from matrixinfer.downloader.progress import Phase, Progress
from matrixinfer.downloader.shelf import Shelf
from matrixinfer.downloader.sources.source import Lending, Source
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.transfer import Transfer
from matrixinfer.downloader.workers import Job, Workers
from matrixinfer.downloader.workspace import Workspace, volume_errors
from matrixinfer.service.logging import get_logger

__all__ = ["Tools", "fetch", "open_shelf"]

log = get_logger("fetch")

_LISTINGS = 3
_TELL_SECONDS = 2.0
_SKIPPED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Tools:
    """What the download needs from the process it runs in."""

    pod: str
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    progress: Progress = field(default_factory=Progress)
    stop: threading.Event = field(default_factory=threading.Event)
    node: str = ""
    """Names the kernel we run on; empty when nothing may be concluded from it."""
    losses: list[DownloadError] = field(default_factory=list)
    workers: Workers = field(default_factory=Workers)
    """Processes that may fetch shares of it."""

    def overtaken(self, error: DownloadError) -> None:
        """Note that another process took the lock from us; nothing may be written from now on."""
        self.losses.append(error)

    def check(self) -> None:
        """Raise DownloadError when the process shall stop (Cancelled) or holds the lock no more (LockLost)."""
        if self.losses:
            raise self.losses[0]
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
        node=tools.node,
        wait_seconds=limits.lock_wait_seconds,
        patience_seconds=limits.lock_patience_seconds,
        monotonic=tools.monotonic,
        pause=tools.pause,
        waiting=lambda holder: tools.progress.enter(Phase.WAITING, waits_for=_who(shelf.workspace, holder)),
        lost=tools.overtaken,
    ) as lock:
        await _pass(shelf.gate, limits, tools)
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


async def _pass(gate: Path | None, limits: Limits, tools: Tools) -> None:
    """Wait until nothing is evicted; from now on nothing will be, because whoever wants to sees our lock."""
    if gate is None:
        return
    async with held(
        gate,
        pod=tools.pod,
        node=tools.node,
        wait_seconds=limits.lock_wait_seconds,
        patience_seconds=limits.lock_patience_seconds,
        monotonic=tools.monotonic,
        pause=tools.pause,
        waiting=lambda holder: tools.progress.enter(Phase.WAITING, waits_for=holder),
        lost=lambda _: None,
    ):
        pass


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
    files = await in_thread(
        lambda: _Missing(request, source, shelf, limits, tools).fetch(listing.revision, selection), name="transfer"
    )
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
        return limits.patience(tools.progress).work(source.listing, tools.stop)

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


class _Missing:
    """What of a selection is not on the shelf yet, and the fetching of it."""

    def __init__(self, request: Request, source: Source, shelf: Shelf, limits: Limits, tools: Tools) -> None:
        self._request = request
        self._source = source
        self._shelf = shelf
        self._limits = limits
        self._tools = tools
        self._told = float("-inf")

    def fetch(self, revision: str, selection: Selection) -> Sequence[VerifiedFile]:
        """Return the verified files of a selection, sorted by path. Blocking."""
        there = self._present(selection.files)
        missing = [file for file in selection.files if file.path not in there]
        staged = self._staged(missing)
        self._check_room(staged, {file.sha256 for file in there.values()})
        shares = deal(missing, self._tools.workers.count)
        fetched = self._shared(revision, shares) if shares else self._here(staged)
        return tuple(sorted([*there.values(), *fetched], key=lambda file: file.path))

    def _here(self, staged: Sequence[StagedFile]) -> Sequence[VerifiedFile]:
        """Fetch with the threads of this process."""
        limits, tools = self._limits, self._tools
        tools.workers.dismiss()
        transfer = Transfer(
            self._source,
            self._shelf,
            limits,
            tools.progress,
            check=tools.check,
            monotonic=tools.monotonic,
            tell=self._tell_waiters,
        )
        return transfer.run(staged) if staged else ()

    def _shared(self, revision: str, shares: Sequence[Sequence[SourceFile]]) -> Sequence[VerifiedFile]:
        """Fetch with worker processes; what one that died left undone is fetched here."""
        limits, tools = self._limits, self._tools
        job = Job(self._request, revision, (), limits, limits.connections)
        fetched = tools.workers.fetch(
            job,
            shares,
            progress=tools.progress,
            check=tools.check,
            tell=self._tell_waiters,
            lend=self._source.keys if isinstance(self._source, Lending) else None,
        )
        return [*fetched.verified, *self._here(self._staged(fetched.lost))]

    def _staged(self, files: Sequence[SourceFile]) -> Sequence[StagedFile]:
        return [StagedFile(file, self._shelf.workspace, self._limits.part_bytes) for file in files]

    def _present(self, files: Sequence[SourceFile]) -> dict[str, VerifiedFile]:
        there = {found.path: found for file in files if (found := self._shelf.present(file))}
        self._tools.progress.present(sum(found.size for found in there.values()))
        for _ in there:
            self._tools.progress.file_done()
        if there:
            log.info("files_shared", files=len(there), bytes=sum(found.size for found in there.values()))
        return there

    def _check_room(self, staged: Sequence[StagedFile], kept: Collection[str]) -> None:
        noted = sum(file.noted_bytes() for file in staged)
        if noted:
            log.info("download_resumed", bytes=noted)
        needed = sum(file.file.size for file in staged) - noted
        limits, volume = self._limits, self._volume()
        missing = room_to_make(
            free_bytes=volume.f_bavail * volume.f_frsize,
            total_bytes=volume.f_blocks * volume.f_frsize,
            needed_bytes=needed,
            reserve_bytes=limits.reserve_bytes,
            high_water=limits.high_water_percent,
        )
        if missing and staged and self._shelf.gate:
            self._ask_for_a_byte(staged[0].file)
        if missing and self._shelf.make_room(missing, kept, pod=self._tools.pod, node=self._tools.node):
            volume = self._volume()
        problem = shortage(
            Room(volume.f_bavail * volume.f_frsize, volume.f_favail if volume.f_files else None),
            needed_bytes=needed,
            needed_files=len(staged),
            reserve_bytes=self._limits.reserve_bytes,
        )
        if problem:
            raise DownloadError(Cause.NO_SPACE, problem)

    def _ask_for_a_byte(self, file: SourceFile) -> None:
        """Whoever lists a model may still not read it, and for that no other model goes."""

        def asked() -> None:
            with self._source.read(file, Part(0, min(1, file.size))) as body:
                body.readinto(memoryview(bytearray(1)))

        self._limits.patience(self._tools.progress).work(asked, self._tools.stop)

    def _volume(self) -> os.statvfs_result:
        work = self._shelf.workspace.work
        with volume_errors(work):
            return os.statvfs(work)

    def _tell_waiters(self) -> None:
        now = self._tools.monotonic()
        if now - self._told < _TELL_SECONDS:
            return
        self._told = now
        view = self._tools.progress.view()
        # Only a courtesy to those who wait for the lock: it may be torn, or fail.
        with suppress(OSError):
            self._shelf.workspace.progress.write_bytes(json.dumps({"percent": view.percent}).encode())


def _who(workspace: Workspace, holder: str) -> str:
    try:
        percent = json.loads(workspace.progress.read_bytes())["percent"]
    except (OSError, ValueError, KeyError, TypeError):
        return holder
    return f"{holder}, which has {percent} %"
