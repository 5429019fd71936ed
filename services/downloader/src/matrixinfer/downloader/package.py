"""What a model travels in: a tar file of ours, or an OCI image layout in a folder or a tar file. Blocking, read only.

All three answer the same two questions: which READY, and where the bytes of a file are. The traps: a tar file may hold
links, devices, and two members of one name; a folder may hold links; so nothing is ever extracted or followed, and a
name counts only once and only when it is a plain file.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from matrixinfer.downloader.core.manifest import READY_NAME, Ready, VerifiedFile, parse_ready
from matrixinfer.downloader.core.oci import INDEX_NAME, MARK_NAME, blob_name, manifest_of, ready_of, same_files
from matrixinfer.downloader.errors import Cause, DownloadError

__all__ = ["Package", "damaged", "opened"]

_DOCUMENT_BYTES = 64 << 20
_MOST_MEMBERS = 1_000_000


class Package(Protocol):
    """One model on its way."""

    @property
    def ready(self) -> Ready:
        """What it holds, by its own word."""
        ...

    def content(self, file: VerifiedFile) -> IO[bytes]:
        """Open a file of `ready`, which has the size that it names; whether it has the bytes is for the caller."""
        ...


@contextmanager
def opened(place: Path) -> Iterator[Package]:
    """Open a package of any kind; raises DownloadError when it is none, or holds more or less than it says."""
    if place.is_dir():
        yield _Layout(place, _Folder(place))
        return
    try:
        with tarfile.open(place, mode="r:") as tar:
            members = _Tar(place, tar)
            yield _Layout(place, members) if MARK_NAME in members.names else _Plain(place, members)
    except FileNotFoundError as exc:
        raise DownloadError(Cause.NOT_FOUND, f"{place} does not exist") from exc
    except tarfile.TarError as exc:
        raise damaged(place, f"it cannot be read ({type(exc).__name__})") from exc


def damaged(place: Path, why: str) -> DownloadError:
    """Return the error of a package that is not sound."""
    return DownloadError(Cause.INTEGRITY, f"{place} is no archive of a model: {why}")


class _Store(Protocol):
    """Plain files by name."""

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """Return content and size; raises DownloadError when there is no plain file of this name."""
        ...


class _Folder:
    """A folder on a disk."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def open(self, name: str) -> tuple[IO[bytes], int]:
        here = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for step in name.split("/"):
                before, here = here, os.open(step, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
                os.close(before)
        except OSError as exc:
            os.close(here)
            raise damaged(self._place, f"{name!r} cannot be read ({exc.strerror})") from exc
        status = os.fstat(here)
        if not stat.S_ISREG(status.st_mode):
            os.close(here)
            raise damaged(self._place, f"{name!r} is no plain file")
        return os.fdopen(here, "rb"), status.st_size


class _Tar:
    """A tar file that is read in any order."""

    def __init__(self, place: Path, tar: tarfile.TarFile) -> None:
        self._place = place
        self._tar = tar
        self.names: dict[str, tarfile.TarInfo] = {}
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            if not member.isreg() or name in self.names:
                raise damaged(place, f"{member.name!r} is no plain file, or comes twice")
            if len(self.names) >= _MOST_MEMBERS:
                raise damaged(place, "it holds more files than any model has")
            self.names[name] = member

    def open(self, name: str) -> tuple[IO[bytes], int]:
        member = self.names.get(name)
        content = self._tar.extractfile(member) if member else None
        if member is None or content is None:
            raise damaged(self._place, f"{name!r} is not in it")
        return content, member.size


class _Plain:
    """A tar file of ours: READY and the files under their names."""

    def __init__(self, place: Path, members: _Tar) -> None:
        if next(iter(members.names), "") != READY_NAME:
            raise damaged(place, "it does not begin with READY")
        self._members = members
        self._place = place
        self.ready = _sound(place, _document(place, members, READY_NAME))
        if unknown := members.names.keys() - {READY_NAME} - {file.path for file in self.ready.files}:
            raise damaged(place, f"{min(unknown)!r} is not a file that its READY names")

    def content(self, file: VerifiedFile) -> IO[bytes]:
        return _sized(self._place, self._members, file.path, file)


class _Layout:
    """An OCI image layout with one model."""

    def __init__(self, place: Path, store: _Store) -> None:
        self._place = place
        self._store = store
        _document(place, store, MARK_NAME)
        try:
            manifest = self._blob(manifest_of(_document(place, store, INDEX_NAME)))
            self.ready = _sound(place, self._blob(ready_of(manifest)))
            same_files(manifest, self.ready)
        except ValueError as exc:
            raise damaged(place, str(exc)) from exc

    def content(self, file: VerifiedFile) -> IO[bytes]:
        return _sized(self._place, self._store, blob_name(file.sha256), file)

    def _blob(self, blob: VerifiedFile) -> bytes:
        found = _document(self._place, self._store, blob_name(blob.sha256))
        if len(found) != blob.size or hashlib.sha256(found).hexdigest() != blob.sha256:
            raise damaged(self._place, f"the blob {blob.sha256} is not what its name says")
        return found


def _document(place: Path, store: _Store, name: str) -> bytes:
    content, size = store.open(name)
    with content:
        if size > _DOCUMENT_BYTES:
            raise damaged(place, f"{name!r} is longer than any such document")
        return content.read()


def _sized(place: Path, store: _Store, name: str, file: VerifiedFile) -> IO[bytes]:
    content, size = store.open(name)
    if size != file.size:
        content.close()
        raise damaged(place, f"{file.path!r} has {size} bytes, its READY says {file.size}")
    return content


def _sound(place: Path, text: bytes) -> Ready:
    ready = parse_ready(text)
    if ready is None:
        raise damaged(place, "its READY is not sound")
    return ready
