"""A model as one tar file, to carry it where no network goes: out of a cache, into another. Blocking.

The first member is READY, which names every file with its size and sha256; the files follow under their names. The same
model always makes the same archive. Reading one trusts nothing: only what READY names is taken, every byte is hashed,
and nothing is published unless all of it is there. The trap: a tar file may hold links, devices and names that lead
out of any folder, so members are never extracted, only their bytes are read.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from matrixinfer.downloader.cache import Cache
from matrixinfer.downloader.core.manifest import READY_NAME, Ready, SourceFile, VerifiedFile, parse_ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.lock import kernel, try_hold
from matrixinfer.downloader.publication import read_publication
from matrixinfer.downloader.workspace import volume_errors

__all__ = ["export_model", "import_model"]

_CHUNK_BYTES = 1 << 20
_READY_BYTES = 64 << 20


def export_model(model: Path, archive: Path) -> Ready:
    """Write the model in a folder (or behind a link to it) to a new archive, which appears when it is whole."""
    folder = model.resolve()
    ready = read_publication(folder, lambda file: f"{'../' * (file.path.count('/') + 2)}blobs/{file.sha256}")
    if ready is None:
        raise DownloadError(Cause.NOT_FOUND, f"{model} holds no complete model")
    growing = archive.with_name(f".{archive.name}.part")
    with volume_errors(archive):
        try:
            with (
                growing.open("wb") as written,
                tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                document = ready.to_json()
                tar.addfile(_member(READY_NAME, len(document)), io.BytesIO(document))
                for file in ready.files:
                    with (folder / file.path).open("rb") as content:
                        tar.addfile(_member(file.path, file.size), content)
                tar.close()
                written.flush()
                os.fsync(written.fileno())
            growing.replace(archive)
        except BaseException:
            growing.unlink(missing_ok=True)
            raise
    return ready


def import_model(archive: Path, cache_root: Path, output: Path) -> Ready:
    """Bring the model of an archive into a cache and lead `output` to it; raises DownloadError when it is not whole."""
    with _opened(archive) as tar:
        members = iter(tar)
        ready = _manifest(archive, tar, next(members, None))
        request = Request(ready.source, output, ready.include, ready.exclude, ready.digest, cache_root)
        cache = Cache(cache_root, request)
        if found := cache.published():
            return found
        lock = try_hold(cache.workspace.lock, pod=os.uname().nodename, node=kernel())
        if lock is None:
            raise DownloadError(Cause.LOCK_TIMEOUT, f"a download of {ready.source} is under way in {cache_root}")
        try:
            _take(archive, tar, members, ready, cache)
            lock.check()
            cache.publish(ready)
        finally:
            lock.release()
    return ready


def _take(archive: Path, tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], ready: Ready, cache: Cache) -> None:
    missing = {file.path: file for file in ready.files}
    for member in members:
        file = missing.pop(member.name, None)
        if file is None or not member.isreg() or member.size != file.size:
            raise _damaged(archive, f"{member.name!r} is not a file that its READY names")
        content = tar.extractfile(member)
        if content is None:
            raise _damaged(archive, f"{member.name!r} cannot be read")
        _keep(archive, content, file, cache)
    if missing:
        raise _damaged(archive, f"{min(missing)!r} is not in it")


def _keep(archive: Path, content: IO[bytes], file: VerifiedFile, cache: Cache) -> None:
    staged = cache.workspace.staged(file.path)
    found = hashlib.sha256()
    with volume_errors(file.path):
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)
        with staged.open("xb") as written:
            while chunk := content.read(_CHUNK_BYTES):
                found.update(chunk)
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())
    if found.hexdigest() != file.sha256:
        staged.unlink(missing_ok=True)
        raise _damaged(archive, f"{file.path!r} is not what its READY says")
    cache.keep(SourceFile(file.path, file.size, ""), file)


def _manifest(archive: Path, tar: tarfile.TarFile, first: tarfile.TarInfo | None) -> Ready:
    if first is None or first.name != READY_NAME or not first.isreg() or first.size > _READY_BYTES:
        raise _damaged(archive, "it does not begin with READY")
    document = tar.extractfile(first)
    ready = parse_ready(document.read()) if document else None
    if ready is None:
        raise _damaged(archive, "its READY is not sound")
    return ready


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, mode="r:") as tar:
            yield tar
    except FileNotFoundError as exc:
        raise DownloadError(Cause.NOT_FOUND, f"{archive} does not exist") from exc
    except tarfile.TarError as exc:
        raise _damaged(archive, f"it cannot be read ({type(exc).__name__})") from exc


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member


def _damaged(archive: Path, why: str) -> DownloadError:
    return DownloadError(Cause.INTEGRITY, f"{archive} is no archive of a model: {why}")
