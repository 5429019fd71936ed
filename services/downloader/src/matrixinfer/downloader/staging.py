"""One file while it grows: ranges written in any order, noted in a journal, hashed in order from the file itself.

What is hashed is what the file holds, not what the socket gave, so a bad write is found too; the pages are still in
memory, so it costs no second read of the disk. Blocking, used from several threads. The traps: after a crash of the
machine the journal may know of bytes that never reached the disk, so finished parts are compared with their
checksum before they count; and the hash needs order, so only one thread hashes a file at a time.
"""

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matrixinfer.downloader.core.manifest import SourceFile, VerifiedFile
from matrixinfer.downloader.core.ranges import FinishedPart, Part, finished_parts, header_line, part_line, split
from matrixinfer.downloader.core.verify import ContentHash
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.workspace import Workspace, volume_errors

__all__ = ["PartWriter", "StagedFile"]

_CHUNK_BYTES = 1 << 20


class StagedFile:
    """One file of the manifest in the work folder."""

    def __init__(self, file: SourceFile, workspace: Workspace, part_bytes: int) -> None:
        self.file = file
        self.resumed = False
        """True when some of its bytes come from an earlier process."""
        self._parts = split(file.size, part_bytes)
        self._header = header_line(file.path, file.size, file.version, part_bytes)
        self._path = workspace.staged(file.path)
        self._published = workspace.published(file.path)
        self._journal = workspace.journal(file.path)
        self._finished: set[Part] = set()
        self._hash_lock = threading.Lock()
        self._hash = ContentHash(file.size, file.expected)
        self._hashed = 0

    @property
    def present_bytes(self) -> int:
        """Bytes of the finished parts."""
        return sum(part.length for part in self._finished)

    @property
    def missing(self) -> tuple[Part, ...]:
        """The parts that are still to be fetched, in order."""
        return tuple(part for part in self._parts if part not in self._finished)

    def open(self, stop: Callable[[], bool]) -> None:
        """Take up what an earlier process left of this very version of the file, or begin anew."""
        with volume_errors(self.file.path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            noted = finished_parts(_content(self._journal), self._header, self._parts)
            if noted and self._published and not self._path.exists() and self._published.is_file():
                # An earlier process died between its renames.
                self._published.rename(self._path)
            if noted and self._path.is_file() and self._path.stat().st_size == self.file.size:
                self._finished = {finished.part for finished in self._intact(noted, stop)}
            self.resumed = bool(self._finished)
        if not self.resumed:
            self.restart()

    def restart(self) -> None:
        """Forget every byte; the file is made anew, at its full size, and so is the journal."""
        self._finished.clear()
        self._hash, self._hashed = ContentHash(self.file.size, self.file.expected), 0
        self.resumed = False
        with volume_errors(self.file.path):
            self._path.unlink(missing_ok=True)
            self._journal.unlink(missing_ok=True)
            with self._path.open("xb") as made:
                made.truncate(self.file.size)
            # Written whole before it appears under its name: a torn header would only cost a restart, but it is cheap.
            self._journal.write_bytes(self._header)

    def discard(self) -> None:
        """Remove it, so that the next process begins anew."""
        with volume_errors(self.file.path):
            self._journal.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    @contextmanager
    def part(self, part: Part) -> Iterator["PartWriter"]:
        """Write one part; it counts as finished when the block ended without an error."""
        with volume_errors(self.file.path):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            writer = PartWriter(self.file.path, part, descriptor)
            yield writer
        finally:
            os.close(descriptor)
        with volume_errors(self.file.path), self._journal.open("ab", buffering=0) as journal:
            journal.write(part_line(part, writer.crc32))
        self._finished.add(part)
        self._hash_on()

    def finish(self) -> VerifiedFile:
        """Hash what is left, make the bytes last, and compare; raises DownloadError(IntegrityMismatch)."""
        with self._hash_lock:
            self._hash_in_order()
        with volume_errors(self.file.path):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        problem = self._hash.mismatch()
        if size != self.file.size or self._hashed != self.file.size:
            problem = f"it has {size} bytes, {self._hashed} of them readable, where the source lists {self.file.size}"
        if problem:
            raise DownloadError(Cause.INTEGRITY, f"{self.file.path} is not what the source promises: {problem}")
        return VerifiedFile(self.file.path, self.file.size, self._hash.sha256())

    def _hash_on(self) -> None:
        # Whoever hashes takes the parts of the others along; a part that just misses it is taken by `finish`.
        if self._hash_lock.acquire(blocking=False):
            try:
                self._hash_in_order()
            finally:
                self._hash_lock.release()

    def _hash_in_order(self) -> None:
        for part in self._parts:
            if part.offset < self._hashed:
                continue
            if part not in self._finished:
                return
            for chunk in _read(self._path, part):
                self._hash.update(chunk)
                self._hashed += len(chunk)

    def _intact(self, noted: Sequence[FinishedPart], stop: Callable[[], bool]) -> Iterable[FinishedPart]:
        for finished in noted:
            if stop():
                raise DownloadError(Cause.CANCELLED, "told to stop while looking at what is there already")
            crc = 0
            for chunk in _read(self._path, finished.part):
                crc = zlib.crc32(chunk, crc)
            if crc == finished.crc32:
                yield finished


class PartWriter:
    """Where the bytes of one part go; `position` is the next one wanted, over all tries."""

    def __init__(self, path: str, part: Part, descriptor: int) -> None:
        self.part = part
        self.position = part.offset
        self.crc32 = 0
        self._path = path
        self._descriptor = descriptor

    @property
    def rest(self) -> Part:
        """What is still missing of the part."""
        return Part(self.position, self.part.end - self.position)

    def write(self, chunk: bytes) -> None:
        """Write the next bytes; raises DownloadError when they are more than the part has, or cannot be written."""
        if len(chunk) > self.rest.length:
            raise DownloadError(
                Cause.INTEGRITY,
                f"{self._path} is longer than listed: more bytes came than bytes {self.part.offset} to "
                f"{self.part.end} have",
            )
        with volume_errors(self._path):
            view = memoryview(chunk)
            while view:
                written = os.pwrite(self._descriptor, view, self.position)
                self.crc32 = zlib.crc32(view[:written], self.crc32)
                self.position += written
                view = view[written:]


def _read(path: Path, part: Part) -> Iterator[bytes]:
    with volume_errors(path.name), path.open("rb", buffering=0) as opened:
        position = part.offset
        while position < part.end:
            chunk = os.pread(opened.fileno(), min(_CHUNK_BYTES, part.end - position), position)
            if not chunk:
                return
            position += len(chunk)
            yield chunk


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
