"""A model as something to carry where no network goes: out of a cache, into another. Blocking.

Either one tar file, READY first and then the files under their names, or an OCI image layout, a folder or a tar file of
it, which registries and their tools understand. The same model always makes the same bytes. Reading one trusts
nothing: only what READY names is taken, every byte is hashed, and nothing is published unless all of it is there.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from matrixinfer.downloader.cache import Cache, link_to_blob
from matrixinfer.downloader.core.manifest import READY_NAME, Ready, SourceFile, VerifiedFile
from matrixinfer.downloader.core.oci import INDEX_NAME, MARK_NAME, blob_name, documents
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.lock import kernel, try_hold
from matrixinfer.downloader.package import Package, damaged, opened
from matrixinfer.downloader.publication import read_publication, write_lasting
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.workspace import fsync_folder, volume_errors

__all__ = ["export_layout", "export_model", "import_model"]

_CHUNK_BYTES = 1 << 20


def export_model(model: Path, archive: Path) -> Ready:
    """Write the model in a folder (or behind a link to it) to a new tar file, which appears when it is whole."""
    folder, ready = _complete(model)
    with _growing_tar(archive) as tar:
        _add(tar, READY_NAME, ready.to_json())
        for file in ready.files:
            _add_file(tar, file.path, folder / file.path, file)
    return ready


def export_layout(model: Path, layout: Path) -> Ready:
    """Write the model as an OCI image layout: a tar file when the name ends so, else a folder that must be new."""
    if layout.suffix == ".tar":
        return _export_layout_tar(model, layout)
    folder, ready = _complete(model)
    made, growing = documents(ready), layout.with_name(f".{layout.name}.part")
    with volume_errors(layout):
        if layout.exists():
            raise DownloadError(Cause.VOLUME_NOT_WRITABLE, f"{layout} is there already; name a folder that is not")
        shutil.rmtree(growing, ignore_errors=True)
        blobs = growing / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        try:
            for name, file in _contents(ready).items():
                _link_or_copy((folder / file.path).resolve(), growing / name)
            for sha, blob in made.blobs.items():
                write_lasting(blobs / sha, blob, by=growing)
            write_lasting(growing / MARK_NAME, made.mark, by=growing)
            write_lasting(growing / INDEX_NAME, made.index, by=growing)
            growing.rename(layout)
            fsync_folder(layout.parent)
        except BaseException:
            shutil.rmtree(growing, ignore_errors=True)
            raise
    return ready


def import_model(archive: Path, cache_root: Path, output: Path) -> Ready:
    """Bring the model of an archive into a cache and lead `output` to it; raises DownloadError when it is not whole."""
    with opened(archive) as package:
        ready = package.ready
        request = Request(ready.source, output, ready.include, ready.exclude, ready.digest, cache_root)
        cache = Cache(cache_root, request)
        if found := cache.published():
            return found
        lock = try_hold(cache.workspace.lock, pod=os.uname().nodename, node=kernel())
        if lock is None:
            raise DownloadError(Cause.LOCK_TIMEOUT, f"a download of {ready.source} is under way in {cache_root}")
        try:
            _take(archive, package, cache)
            lock.check()
            cache.publish(ready)
        finally:
            lock.release()
    return ready


def _complete(model: Path) -> tuple[Path, Ready]:
    folder = model.resolve()
    ready = read_publication(folder, link_to_blob)
    if ready is None:
        raise DownloadError(Cause.NOT_FOUND, f"{model} holds no complete model")
    return folder, ready


def _export_layout_tar(model: Path, archive: Path) -> Ready:
    folder, ready = _complete(model)
    made = documents(ready)
    with _growing_tar(archive) as tar:
        _add(tar, MARK_NAME, made.mark)
        _add(tar, INDEX_NAME, made.index)
        for sha, blob in made.blobs.items():
            _add(tar, blob_name(sha), blob)
        for name, file in _contents(ready).items():
            _add_file(tar, name, folder / file.path, file)
    return ready


def _contents(ready: Ready) -> dict[str, VerifiedFile]:
    """The files by the name of their blob: two files of one content are one blob."""
    return {blob_name(file.sha256): file for file in ready.files}


@contextmanager
def _growing_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    growing = archive.with_name(f".{archive.name}.part")
    with volume_errors(archive):
        try:
            with growing.open("wb") as written:
                with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    yield tar
                written.flush()
                os.fsync(written.fileno())
            growing.replace(archive)
        except BaseException:
            growing.unlink(missing_ok=True)
            raise


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    tar.addfile(_member(name, len(content)), io.BytesIO(content))


def _add_file(tar: tarfile.TarFile, name: str, path: Path, file: VerifiedFile) -> None:
    with path.open("rb") as content:
        tar.addfile(_member(name, file.size), content)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member


def _link_or_copy(content: Path, blob: Path) -> None:
    try:
        blob.hardlink_to(content)
    except OSError:
        # Another volume, or one without links; what else is wrong the copy meets again.
        with content.open("rb") as read, blob.open("xb") as written:
            shutil.copyfileobj(read, written, _CHUNK_BYTES)
            written.flush()
            os.fsync(written.fileno())


def _take(archive: Path, package: Package, cache: Cache) -> None:
    for file in package.ready.files:
        with package.content(file) as content:
            _keep(archive, content, file, cache)


def _keep(archive: Path, content: IO[bytes], file: VerifiedFile, cache: Cache) -> None:
    taken = StagedFile(SourceFile(file.path, file.size, ""), cache.workspace, max(1, file.size))
    staged = taken.path
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
        raise damaged(archive, f"{file.path!r} is not what its READY says")
    cache.keep(taken, file)
