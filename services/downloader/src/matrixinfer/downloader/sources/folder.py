"""Files that are already on this machine: a mounted volume claim (`pvc://`) or a folder (`file://`).

Nobody vouches for their content, so size and modification time are checked again when a file is opened, and the
digest records what was copied. The trap: a symbolic link may lead anywhere; it is followed (a hub's cache is made of
them) but only inside `boundary`, the root of the claim or the folder itself.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError

__all__ = ["FolderSource"]

# _IOW(0x94, 9, int), the same on every architecture that Linux runs models on.
_FICLONE = 0x40049409


class FolderSource:
    """A folder, or a single file, below `boundary`."""

    def __init__(self, path: Path, boundary: Path) -> None:
        self._path = path
        self._boundary = boundary

    def listing(self) -> Listing:
        """Walk the folder; the revision is empty, because nothing names a state of it."""
        try:
            root = self._inside(self._path)
            if root.is_file():
                return Listing("", (self._entry(self._path.name, root.stat()),))
            return Listing("", tuple(self._walk(root, "")))
        except FileNotFoundError as exc:
            raise DownloadError(Cause.NOT_FOUND, f"{exc.filename} does not exist") from exc
        except PermissionError as exc:
            raise DownloadError(Cause.ACCESS_DENIED, f"{exc.filename} may not be read by this user") from exc
        except OSError as exc:
            raise TransientError(f"{self._path} cannot be read: {exc.strerror}") from exc

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator["_Body"]:
        """Open one range of one file."""
        path = self._path if self._path.is_file() else self._path / file.path
        try:
            with self._inside(path).open("rb", buffering=0) as opened:
                if _version(os.fstat(opened.fileno())) != file.version:
                    raise DownloadError(Cause.SOURCE_CHANGED, f"{file.path} was written while it was being copied")
                yield _Body(opened.fileno(), part)
        except FileNotFoundError as exc:
            raise DownloadError(Cause.SOURCE_CHANGED, f"{file.path} was removed while it was being copied") from exc
        except PermissionError as exc:
            raise DownloadError(Cause.ACCESS_DENIED, f"{file.path} may not be read by this user") from exc
        except OSError as exc:
            raise TransientError(f"{file.path} cannot be read: {exc.strerror}") from exc

    def clone(self, file: SourceFile, descriptor: int) -> bool:
        """Share the blocks of the file, where both lie on one file system that can (XFS, Btrfs, …)."""
        path = self._path if self._path.is_file() else self._path / file.path
        try:
            with self._inside(path).open("rb", buffering=0) as opened:
                if _version(os.fstat(opened.fileno())) != file.version:
                    return False
                fcntl.ioctl(descriptor, _FICLONE, opened.fileno())
        except OSError:
            # Whatever it was, copying meets it again and says what it is.
            return False
        return True

    def promise(self, _file: SourceFile) -> None:
        """Nobody vouches for a file of a folder."""

    def abort(self) -> None:
        """Nothing to wake up: a disk answers, or nothing helps."""

    def _walk(self, folder: Path, prefix: str) -> Iterator[SourceFile]:
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            real, name = self._inside(Path(entry.path)), prefix + entry.name
            status = real.stat()
            if stat.S_ISDIR(status.st_mode):
                # A link to a folder above would be walked for ever.
                if entry.is_symlink() and folder.resolve().is_relative_to(real):
                    raise DownloadError(Cause.UNSAFE_PATH, f"{name} is a link to a folder that holds it")
                yield from self._walk(real, f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                yield self._entry(name, status)
            else:
                raise DownloadError(Cause.UNSAFE_PATH, f"{name} is neither a file nor a folder")

    def _entry(self, name: str, status: os.stat_result) -> SourceFile:
        return SourceFile(name, status.st_size, _version(status))

    def _inside(self, path: Path) -> Path:
        real, boundary = path.resolve(strict=True), self._boundary.resolve()
        if not real.is_relative_to(boundary):
            raise DownloadError(Cause.UNSAFE_PATH, f"{path} is a link that leads out of {self._boundary}")
        return real


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


class _Body:
    """One range of an open file."""

    promise = None

    def __init__(self, descriptor: int, part: Part) -> None:
        self._descriptor = descriptor
        self._position = part.offset
        self._end = part.end

    def readinto(self, buffer: memoryview) -> int:
        """Read on."""
        count = os.preadv(self._descriptor, [buffer[: self._end - self._position]], self._position)
        self._position += count
        return count
