"""The folders of one download: where files are staged, where the lock and the journals are, where all ends up.

The work folder of a plain download lies beside the output, on the same file system, so that readers see nothing but
model files; where the output is itself the root of a volume it lies inside it, under a name that no model file may
have. That of a cache lies in the cache, one for each origin of models. What two processes must agree on depends on
these paths only. The trap: a rename between two mounts fails even on
one file system, so `prepare` tries one before a single byte is fetched.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from matrixinfer.downloader.core.manifest import WORK_PREFIX
from matrixinfer.downloader.errors import Cause, DownloadError

__all__ = ["Workspace", "fsync_folder", "prepare", "prepare_cache", "remove_tries", "volume_errors"]

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True, slots=True)
class Workspace:
    """All paths of one download; `output` is None where files do not end up under their names (a cache)."""

    output: Path | None
    work: Path

    @property
    def lock(self) -> Path:
        """The folder of those who hold the lock, one after the other."""
        return self.work / "holders"

    @property
    def progress(self) -> Path:
        """How far the holder of the lock is, for those who wait."""
        return self.work / "progress.json"

    def staged(self, path: str) -> Path:
        """Where a file grows."""
        return self.work / f"staging/{path}"

    def journal(self, path: str) -> Path:
        """Where the finished parts of a file are noted."""
        return self.work / f"journal/{sha256(path.encode()).hexdigest()[:32]}"

    def published(self, path: str) -> Path | None:
        """Where a file ends up; None when its name does not say that."""
        return self.output / path if self.output else None

    def clear(self) -> None:
        """Remove what only an unfinished download needs, and whatever killed processes left; the holders stay."""
        for entry in self.work.iterdir():
            if entry == self.lock:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def remove_tries(folder: Path) -> None:
    """Remove what processes left that were killed while they tried a folder."""
    for left in folder.glob(f"{WORK_PREFIX}-try-*"):
        left.unlink(missing_ok=True)


def prepare(output: Path) -> Workspace:
    """Make the folders of a plain download and try them; raises DownloadError(VolumeNotWritable, NoSpace)."""
    with volume_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        beside = Workspace(output, output.parent / f"{WORK_PREFIX}-{output.name}")
        if not os.path.ismount(output) and _usable(beside, output):
            return beside
        inside = Workspace(output, output / WORK_PREFIX)
        inside.work.mkdir(exist_ok=True)
        _try_rename(inside.work, output)
        return inside


def prepare_cache(root: Path, origin_key: str) -> Workspace:
    """Make the folders of a cache and of one origin in it, and try that they can be written."""
    with volume_errors(root):
        work = root / WORK_PREFIX / origin_key
        for folder in (root / "blobs", root / "models", root / WORK_PREFIX / "known", work):
            folder.mkdir(parents=True, exist_ok=True)
        _try_rename(work, root / "blobs")
        return Workspace(None, work)


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


def _usable(workspace: Workspace, output: Path) -> bool:
    try:
        workspace.work.mkdir(exist_ok=True)
        _try_rename(workspace.work, output)
    except OSError as exc:
        if exc.errno in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return True


def _try_rename(work: Path, target: Path) -> None:
    # Its own name for each process: several may try at once.
    name = f"{WORK_PREFIX}-try-{uuid.uuid4().hex[:12]}"
    try:
        (work / name).touch()
        (work / name).rename(target / name)
        (target / name).unlink()
    except FileNotFoundError:
        # Somebody who publishes tidied up; that it could be removed says as much as the rest.
        pass
    except OSError:
        (work / name).unlink(missing_ok=True)
        raise
