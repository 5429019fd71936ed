"""The folders of one download: where files are staged, where the lock and the journals are, where all ends up.

The work folder lies beside the output, on the same file system, so that readers see nothing but model files; where
the output is itself the root of a volume it lies inside it, under a name that no model file may have. Everything that
two processes must agree on depends on the output's path only. The trap: a rename between two mounts fails even on
one file system, so `prepare` tries one before a single byte is fetched.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from matrixinfer.downloader.core.manifest import READY_NAME, WORK_PREFIX
from matrixinfer.downloader.errors import Cause, DownloadError

__all__ = ["Workspace", "fsync_folder", "prepare", "volume_errors"]

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True, slots=True)
class Workspace:
    """All paths of one download."""

    output: Path
    work: Path

    @property
    def ready(self) -> Path:
        """The document that says that the output is complete."""
        return self.output / READY_NAME

    @property
    def previous(self) -> Path:
        """The READY of what was published here before, while something else takes its place."""
        return self.work / "previous.json"

    @property
    def lock(self) -> Path:
        """The lock file. It is never removed: who holds a removed file locks nothing."""
        return self.work / "lock"

    @property
    def progress(self) -> Path:
        """How far the holder of the lock is, for those who wait."""
        return self.work / "progress.json"

    def staged(self, path: str) -> Path:
        """Where a file grows."""
        return self.work / "staging" / path

    def journal(self, path: str) -> Path:
        """Where the finished parts of a file are noted."""
        return self.work / "journal" / sha256(path.encode()).hexdigest()[:32]

    def published(self, path: str) -> Path:
        """Where a file ends up."""
        return self.output / path

    def clear(self) -> None:
        """Remove what only an unfinished download needs; the lock stays."""
        for name in ("staging", "journal"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        self.previous.unlink(missing_ok=True)
        self.progress.unlink(missing_ok=True)


def prepare(output: Path) -> Workspace:
    """Make the folders and try that they can be written; raises DownloadError(VolumeNotWritable, NoSpace)."""
    with volume_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        beside = Workspace(output, output.parent / f"{WORK_PREFIX}-{output.name}")
        if not os.path.ismount(output) and _usable(beside):
            return beside
        inside = Workspace(output, output / WORK_PREFIX)
        inside.work.mkdir(exist_ok=True)
        _try_rename(inside)
        return inside


@contextmanager
def volume_errors(what: Path | str) -> Iterator[None]:
    """Turn what the file system says into DownloadErrors that tell a full volume from one that cannot be written."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_SPACE:
            raise DownloadError(Cause.NO_SPACE, f"the volume is full: {what} cannot be written") from exc
        raise DownloadError(Cause.VOLUME_NOT_WRITABLE, f"{what} cannot be written: {exc.strerror}") from exc


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder last over a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _usable(workspace: Workspace) -> bool:
    try:
        workspace.work.mkdir(exist_ok=True)
        _try_rename(workspace)
    except OSError as exc:
        if exc.errno in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return True


def _try_rename(workspace: Workspace) -> None:
    # Its own name for each process: several may try at once.
    name = f"{WORK_PREFIX}-try-{os.getpid()}"
    (workspace.work / name).touch()
    try:
        (workspace.work / name).rename(workspace.output / name)
    except OSError:
        (workspace.work / name).unlink(missing_ok=True)
        raise
    (workspace.output / name).unlink()
