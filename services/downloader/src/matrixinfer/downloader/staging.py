"""One file while it grows: ranges written in any order, noted in a journal, hashed in order, on the fly.

A part that comes in order is hashed from the buffer it came in; others are read back, while their pages are still in
memory, by whoever closes the gap. Blocking, used from several threads. The traps: after a crash of the machine the
journal may know of bytes that never reached the disk, so finished parts are compared with their checksum before they
count; the hash needs order, so one thread at a time has it; and a part that failed halfway was hashed for nothing, so
the hash of before is kept until the part is finished.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import xxhash

from matrixinfer.downloader.core.manifest import SourceFile, VerifiedFile
from matrixinfer.downloader.core.ranges import FinishedPart, Part, finished_parts, header_line, part_line, split
from matrixinfer.downloader.core.verify import ContentHash, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.workspace import Workspace, volume_errors

__all__ = ["PartWriter", "StagedFile"]

_CHUNK_BYTES = 1 << 20
# The kernel keeps pieces of eight pages at hand, warm, for each processor. For a longer write a file system takes
# one big piece that nobody used of late, and copying into it took twice the time on ext4.
_WRITE_BYTES = 1 << 15


class StagedFile:
    """One file of the manifest in the work folder."""

    def __init__(self, file: SourceFile, workspace: Workspace, part_bytes: int) -> None:
        self.listed = file
        """As the source listed it; `file` may know more, from the answer that brought it."""
        self.file = file
        self.resumed = False
        """True when some of its bytes come from an earlier process."""
        self._parts = split(file.size, part_bytes)
        self._part_bytes = part_bytes
        self.path = workspace.staged(file.path)
        """Where it grows."""
        self._published = workspace.published(file.path)
        self._journal = workspace.journal(file.path)
        self._finished: set[Part] = set()
        self._descriptor = -1
        self._noted = -1
        self._has_noted = False
        self._hash_lock = threading.Lock()
        self._hash: ContentHash | None = None
        """Of the first `_hashed` bytes; most files get theirs from the writer of their only part."""
        self._hashed = 0

    @property
    def in_one_part(self) -> bool:
        """True when one request brings it."""
        return len(self._parts) <= 1

    @property
    def present_bytes(self) -> int:
        """Bytes of the finished parts."""
        return sum(part.length for part in self._finished)

    @property
    def missing(self) -> tuple[Part, ...]:
        """The parts that are still to be fetched, in order."""
        return tuple(part for part in self._parts if part not in self._finished)

    def noted_bytes(self) -> int:
        """Bytes that an earlier process noted as finished, without looking at them."""
        return sum(finished.part.length for finished in self._noted_before or ())

    def promise(self, expected: Expected) -> None:
        """Take what the source vouches for where the listing did not tell; only before the first byte."""
        with self._hash_lock:
            if self.file.expected is None and not self._hashed:
                self.file = replace(self.file, expected=expected)
                self._hash = None

    def open(self, stop: Callable[[], bool]) -> None:
        """Take up what an earlier process left of this very version of the file, or begin anew."""
        with volume_errors(self.file.path):
            noted = self._noted_before
            if noted and self._published and not self.path.exists() and self._published.is_file():
                # An earlier process died between its renames.
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._published.rename(self.path)
            if noted and self.path.is_file() and self.path.stat().st_size == self.file.size:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._take_intact(noted, stop)
            self.resumed = bool(self._finished)
        if not self.resumed:
            self.restart()

    def clone(self, clone: Callable[[int], bool]) -> None:
        """Let `clone` fill the file at once; what it filled is hashed by `finish`, as every byte is."""
        if self.resumed or not self.file.size or not clone(self._descriptor):
            return
        if os.fstat(self._descriptor).st_size == self.file.size:
            self._finished.update(self._parts)
        else:
            self.restart()

    def restart(self) -> None:
        """Forget every byte; the file is made anew, at its full size, and so is the journal."""
        self.close()
        self._finished.clear()
        self._hash, self._hashed = None, 0
        self.resumed = False
        with volume_errors(self.file.path):
            # First: it must never speak of bytes that are another file's.
            self.drop_journal()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                self._descriptor = _opened(self.path, flags)
            except FileExistsError:
                self.path.unlink()
                self._descriptor = _opened(self.path, flags)
            if not self.in_one_part:
                os.ftruncate(self._descriptor, self.file.size)

    def forget(self, doubtful: Sequence[Part]) -> None:
        """Count the parts that hold any of these bytes as missing, after `finish`; the others are hashed again."""
        wrong = {part for part in self._parts for bytes_ in doubtful if _overlap(part, bytes_)}
        self._finished -= wrong
        self._hash, self._hashed = None, 0
        with volume_errors(self.file.path):
            # The journal still speaks of them: after a crash now the whole file is found wrong, and fetched anew.
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def discard(self) -> None:
        """Remove it, so that the next process begins anew."""
        self.close()
        with volume_errors(self.file.path):
            self.drop_journal()
            self.path.unlink(missing_ok=True)

    def drop_journal(self) -> None:
        """Forget what was noted, if anything was: nothing of it is to be taken up."""
        if self._noted_before is None and not self._has_noted:
            return
        self._journal.unlink(missing_ok=True)
        self._has_noted = False

    def close(self) -> None:
        """Close what is open; what is on the volume stays."""
        for descriptor in (self._descriptor, self._noted):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._noted = -1

    def begin_part(self, part: Part) -> "PartWriter":
        """Return where the bytes of a part go; `end_part` or `drop_part` must follow."""
        return PartWriter(self.file.path, part, self._descriptor, self._claim_hash(part))

    def end_part(self, writer: "PartWriter") -> None:
        """Count a part as finished: note it, and hash on as far as there is no gap."""
        if writer.hasher:
            self._hash, self._hashed = writer.hasher, writer.part.end
            self._hash_lock.release()
        with volume_errors(self.file.path):
            self._note(writer.part, writer.checksum)
        self._finished.add(writer.part)
        self._hash_on()

    def drop_part(self, writer: "PartWriter") -> None:
        """Give up a part; its bytes count for nothing."""
        if writer.hasher:
            self._hash_lock.release()

    def finish(self) -> VerifiedFile:
        """Hash what is left, make the bytes last, and compare; raises DownloadError(IntegrityMismatch)."""
        with self._hash_lock:
            self._hash_in_order()
        with volume_errors(self.file.path):
            size = os.fstat(self._descriptor).st_size
            # Whatever the umask: an engine runs as another user.
            os.fchmod(self._descriptor, 0o644)
            os.fsync(self._descriptor)
            self.close()
        found = self._running()
        problem = found.mismatch()
        if size != self.file.size or self._hashed != self.file.size:
            problem = f"it has {size} bytes, {self._hashed} of them readable, where the source lists {self.file.size}"
        if problem:
            raise DownloadError(Cause.INTEGRITY, f"{self.file.path} is not what the source promises: {problem}")
        return VerifiedFile(self.file.path, self.file.size, found.sha256())

    @cached_property
    def _header(self) -> bytes:
        return header_line(self.listed.path, self.listed.size, self.listed.version, self._part_bytes)

    @cached_property
    def _noted_before(self) -> Sequence[FinishedPart] | None:
        """What the journal of an earlier process says; None where there is none."""
        try:
            journal = self._journal.read_bytes()
        except FileNotFoundError:
            return None
        return finished_parts(journal, self._header, self._parts)

    def _claim_hash(self, part: Part) -> ContentHash | None:
        """Return a hash to go on with when this part is the next in order and nobody else has it."""
        if not self._hash_lock.acquire(blocking=False):
            return None
        if self._hashed != part.offset:
            self._hash_lock.release()
            return None
        return self._copied()

    def _running(self) -> ContentHash:
        if self._hash is None:
            self._hash = ContentHash(self.file.size, self.file.expected)
        return self._hash

    def _copied(self) -> ContentHash:
        """Return a hash of what was hashed so far, to go on with."""
        return self._hash.copy() if self._hash else ContentHash(self.file.size, self.file.expected)

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
            for chunk in self._read(part):
                self._running().update(chunk)
                self._hashed += len(chunk)

    def _note(self, part: Part, checksum: int) -> None:
        if self.in_one_part and self._published is None:
            # It goes to the shelf as soon as it is complete: there is never anything to take up.
            return
        if self._noted < 0:
            # A file of one part has nothing to take up until it is complete, so its journal begins then.
            noted = _opened(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
            if not os.fstat(noted).st_size:
                os.write(noted, self._header)
            self._noted, self._has_noted = noted, True
        os.write(self._noted, part_line(part, checksum))

    def _take_intact(self, noted: Sequence[FinishedPart], stop: Callable[[], bool]) -> None:
        """Count the noted parts that the disk still has; those in order are hashed in the same pass."""
        for finished in noted:
            if stop():
                raise DownloadError(Cause.CANCELLED, "told to stop while looking at what is there already")
            in_order = self._copied() if finished.part.offset == self._hashed else None
            checksum = xxhash.xxh3_64()
            for chunk in self._read(finished.part):
                checksum.update(chunk)
                if in_order:
                    in_order.update(chunk)
            if checksum.intdigest() != finished.checksum:
                continue
            self._finished.add(finished.part)
            if in_order:
                self._hash, self._hashed = in_order, finished.part.end

    def _read(self, part: Part) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, part.length)))
        position = part.offset
        with volume_errors(self.file.path):
            while position < part.end:
                count = os.preadv(self._descriptor, [buffer[: part.end - position]], position)
                if not count:
                    return
                position += count
                yield buffer[:count]


class PartWriter:
    """Where the bytes of one part go; `position` is the next one wanted, over all tries."""

    def __init__(self, path: str, part: Part, descriptor: int, hasher: ContentHash | None) -> None:
        self.part = part
        self.position = part.offset
        self.path = path
        self._descriptor = descriptor
        self.hasher = hasher
        """The hash of the file up to here, when the part came in order."""
        self._checksum = xxhash.xxh3_64()

    @property
    def rest(self) -> Part:
        """What is still missing of the part."""
        return Part(self.position, self.part.end - self.position)

    @property
    def checksum(self) -> int:
        """The xxh3 of what was written."""
        return self._checksum.intdigest()

    def write(self, chunk: memoryview) -> None:
        """Write the next bytes; raises DownloadError when they are more than the part has, or cannot be written."""
        if len(chunk) > self.rest.length:
            raise DownloadError(
                Cause.INTEGRITY,
                f"{self.path} is longer than listed: more bytes came than bytes {self.part.offset} to "
                f"{self.part.end} have",
            )
        with volume_errors(self.path):
            left = chunk
            while left:
                written = os.pwrite(self._descriptor, left[:_WRITE_BYTES], self.position)
                self.position += written
                left = left[written:]
        self._checksum.update(chunk)
        if self.hasher:
            self.hasher.update(chunk)


def _overlap(one: Part, other: Part) -> bool:
    return one.offset < other.end and other.offset < one.end


def _opened(path: Path, flags: int) -> int:
    """Open a file to write; its folder is made when it is missing, which is once for many files."""
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o644)
