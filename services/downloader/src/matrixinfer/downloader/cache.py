"""A cache that many models share: every content once, every model a folder of links to its contents. Blocking.

    blobs/<sha256>         one file for each content, read-only, verified before it got this name
    models/<digest>/       the files of one model under their names, hard links to blobs, and READY, written last
    <output>               a link to models/<digest>, made when READY is there
    .matrixinfer/          what only downloaders read: staging and lock of each origin, what is known of its files

Two revisions of a model share the files that did not change, and a model that moves on never changes the folder that a
running engine reads. A model appears by one rename, and an output moves by one rename of a link. The traps: hard
links have limits, and some file systems have none, so there a relative symbolic link takes their place; and a folder
of an older layout under the output's name may still be read by an engine, so it is moved aside only after everything
of it is in the cache.
"""

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from matrixinfer.downloader.core.evict import Shelved, to_evict
from matrixinfer.downloader.core.manifest import READY_NAME, WORK_PREFIX, Ready, SourceFile, VerifiedFile
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.verify import Algorithm
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.lock import Lock, is_held, try_hold
from matrixinfer.downloader.publication import read_publication, write_lasting
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.workspace import Workspace, fsync_folder, prepare_cache, remove_tries, volume_errors
from matrixinfer.service.logging import get_logger

__all__ = ["Cache", "link_to_blob"]

log = get_logger("cache")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_HARD_LINK = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES))


class Cache:
    """One request's view of a cache."""

    def __init__(self, root: Path, request: Request) -> None:
        self.workspace: Workspace = prepare_cache(root, request.origin_key)
        self._root = root
        self._request = request
        self._own = root / WORK_PREFIX

    def published(self) -> Ready | None:
        """Return the model that this version recorded, or else the one that this request ended with before."""
        request = self._request
        digest, revision = request.expected_digest, ""
        if recorded := self._recorded():
            digest, revision = (digest or recorded[0]), (recorded[1] if digest in ("", recorded[0]) else "")
        found = self._model(digest) if digest else None
        if found is None:
            return None
        ready = replace(
            found,
            source=request.source,
            include=tuple(request.include),
            exclude=tuple(request.exclude),
            resolved_revision=revision or found.resolved_revision,
        )
        with volume_errors(request.output):
            self._point(ready.digest)
            self._used(ready.digest)
        # Somebody who makes room looks for links after it moved a model away, and this looks for the model after the
        # link was made: one of the two sees the other.
        return ready if self._model(ready.digest) else None

    @property
    def gate(self) -> Path:
        """The lock of those who make room in this cache."""
        return self._own / "evicting"

    def make_room(self, missing_bytes: int, kept: Collection[str], *, pod: str, node: str) -> int:
        """Remove blobs of no model, then models that no link leads to, unless another download is under way."""
        lock = try_hold(self.gate, pod=pod, node=node)
        if lock is None:
            return 0
        try:
            if any(is_held(work / "holders", node) for work in self._own.iterdir() if work != self.workspace.work):
                # What it found here it counts on.
                return 0
            with volume_errors(self._root):
                return self._evict(missing_bytes, kept, lock)
        finally:
            lock.release()

    def adopted(self) -> Ready | None:
        """Link the files of an older layout into the cache: a folder with READY where there is a link now."""
        request = self._request
        for folder in (request.output, *self._older_folders()):
            found = None if folder.is_symlink() else read_publication(folder)
            if found is None or not found.answers(request.source, request.include, request.exclude):
                continue
            if request.expected_digest in ("", found.digest):
                with volume_errors(self._root):
                    for file in found.files:
                        _link_or_copy(folder / file.path, self._blob(file.sha256))
                self.publish(found)
                return found
        return None

    def present(self, file: SourceFile) -> VerifiedFile | None:
        """Return the file when the cache holds its content; the source need not be asked for it."""
        promised = file.expected
        is_sha256 = promised is not None and promised.algorithm is Algorithm.SHA256 and not promised.part_bytes
        known = promised.value if promised and is_sha256 else self._known(file)
        if not known or not _is_file(self._blob(known), file.size):
            return None
        return VerifiedFile(file.path, file.size, known)

    def keep(self, staged: StagedFile, verified: VerifiedFile) -> None:
        """Give a verified file the name of its content, and note which state of the source it was."""
        file, blob = staged.listed, self._blob(verified.sha256)
        with volume_errors(blob):
            # The bytes last already; that their names do is seen to once, before READY. A name that is lost with the
            # machine costs a fetch, a note that is torn is no note.
            staged.path.chmod(0o444)
            staged.path.replace(blob)
            staged.drop_journal()
            promised = file.expected
            if file.version and not (promised and promised.algorithm is Algorithm.SHA256 and not promised.part_bytes):
                self._note(file).write_bytes(verified.sha256.encode())

    def publish(self, ready: Ready) -> None:
        """Make the folder of the model, note that it answers the request, and lead the output to it."""
        with volume_errors(self._root):
            fsync_folder(self._root / "blobs")
            if self._model(ready.digest) is None:
                self._make(ready)
            self._record(ready)
            self._point(ready.digest)
            self._used(ready.digest)
            remove_tries(self._root / "blobs")
            self.workspace.clear()

    def _evict(self, missing_bytes: int, kept: Collection[str], lock: Lock) -> int:
        models, links = self._shelved(), self._linked()
        blobs = {entry.name: entry.stat().st_size for entry in os.scandir(self._root / "blobs") if entry.is_file()}
        named = {*kept, *(blob for model in models for blob in model.blobs)}
        loose = {blob: size for blob, size in blobs.items() if blob not in named}
        models = [replace(model, is_referenced=model.digest in links) for model in models]
        evicted = to_evict(models, loose, missing_bytes, {self._request.expected_digest})
        freed = 0
        for digest in evicted:
            lock.beat()
            aside = self.workspace.work / f"old-{uuid.uuid4().hex[:12]}"
            self._folder(digest).rename(aside)
            if digest in self._linked():
                aside.rename(self._folder(digest))
                continue
            shutil.rmtree(aside, ignore_errors=True)
            log.info("model_evicted", digest=digest)
        staying = {*kept, *(blob for model in self._shelved() for blob in model.blobs)}
        for blob, size in blobs.items():
            if blob not in staying:
                lock.beat()
                self._blob(blob).unlink(missing_ok=True)
                freed += size
        log.info("room_made", freed_bytes=freed, wanted_bytes=missing_bytes, models=len(evicted), loose=len(loose))
        return freed

    def _shelved(self) -> list[Shelved]:
        """The models of the cache; what is no complete model holds nothing."""
        found = []
        for folder in (self._root / "models").iterdir():
            digest = f"sha256:{folder.name}"
            used = folder.stat().st_mtime
            ready = self._model(digest)
            contents = {file.sha256: file.size for file in ready.files} if ready else {}
            found.append(Shelved(digest, contents, used, is_referenced=False))
        return found

    def _linked(self) -> set[str]:
        """Digests that a link leads to: any link in the cache, and those outside that were ever made."""
        ours = {self._root / "blobs", self._root / "models", self._own}
        found: set[str] = set()
        for here, folders, files in os.walk(self._root):
            if Path(here) == self._root:
                folders[:] = [name for name in folders if self._root / name not in ours]
            links = (Path(here, name) for name in (*folders, *files))
            found.update(self._digest_of(link) for link in links if link.is_symlink())
        outside = self._own / "outside"
        for note in outside.iterdir() if outside.is_dir() else ():
            path, _, digest = note.read_text().partition("\n")
            # A path that cannot be seen from here may be seen from elsewhere.
            if not os.path.lexists(path) or self._digest_of(Path(path)) == digest:
                found.add(digest)
        return found

    def _digest_of(self, link: Path) -> str:
        return f"sha256:{link.readlink().name}" if link.is_symlink() else ""

    def _blob(self, sha256: str) -> Path:
        return self._root / f"blobs/{sha256}"

    def _folder(self, digest: str) -> Path:
        return self._root / "models" / digest.removeprefix("sha256:")

    def _model(self, digest: str) -> Ready | None:
        found = read_publication(self._folder(digest), link_to_blob)
        return found if found and found.digest == digest else None

    def _make(self, ready: Ready) -> None:
        made = self.workspace.work / f"model-{uuid.uuid4().hex[:12]}"
        made.mkdir()
        try:
            folders = {made}
            for file in ready.files:
                path = made / file.path
                if path.parent not in folders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    folders.update(p for p in path.parents if p.is_relative_to(made))
                self._link(file, path)
            for folder in folders:
                fsync_folder(folder)
            write_lasting(made / READY_NAME, ready.to_json(), by=made)
            self._replace_folder(made, self._folder(ready.digest))
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise

    def _link(self, file: VerifiedFile, path: Path) -> None:
        try:
            path.hardlink_to(self._blob(file.sha256))
        except OSError as exc:
            if exc.errno not in _NO_HARD_LINK:
                raise
            path.symlink_to(link_to_blob(file))

    def _replace_folder(self, made: Path, final: Path) -> None:
        """Give a folder its name; what is there already is not complete, or it would have been used."""
        if final.exists():
            self._discard(final)
        made.rename(final)
        fsync_folder(final.parent)

    def _discard(self, folder: Path) -> None:
        aside = self.workspace.work / f"old-{uuid.uuid4().hex[:12]}"
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _point(self, digest: str) -> None:
        output, model = self._request.output, self._folder(digest)
        inside = output.is_relative_to(self._root)
        # Inside the cache the link holds wherever the volume is mounted.
        wanted = os.path.relpath(model, output.parent) if inside else str(model)
        if output.is_symlink():
            if str(output.readlink()) == wanted:
                return
        elif output.exists():
            self._give_way(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        if not inside:
            note = self._own / "outside" / sha256(str(output).encode()).hexdigest()[:32]
            note.parent.mkdir(exist_ok=True)
            write_lasting(note, f"{output}\n{digest}".encode(), by=self.workspace.work)
        link = output.with_name(f"{WORK_PREFIX}-{uuid.uuid4().hex[:12]}")
        link.symlink_to(wanted)
        link.replace(output)
        fsync_folder(output.parent)

    def _give_way(self, output: Path) -> None:
        """Make room for the link: for nothing that is not ours, and not under a mount."""
        if output.is_dir() and not os.path.ismount(output):
            if read_publication(output):
                self._discard(output)
                return
            with suppress(OSError):
                output.rmdir()
                return
        raise DownloadError(
            Cause.VOLUME_NOT_WRITABLE,
            f"{output} is in the way of the link to the model; with a cache the output must not be there, or be a link",
        )

    def _older_folders(self) -> Iterator[Path]:
        ours = {"blobs", "models", WORK_PREFIX}
        with suppress(OSError):
            yield from (p for p in sorted(self._root.iterdir()) if p.name not in ours and p.is_dir())

    def _note(self, file: SourceFile) -> Path:
        return self._own / f"known/{self._request.file_key(file.path, file.size, file.version)}"

    def _known(self, file: SourceFile) -> str:
        try:
            known = self._note(file).read_text(encoding="ascii", errors="replace") if file.version else ""
        except OSError:
            return ""
        return known if _SHA256.fullmatch(known) else ""

    @property
    def _request_record(self) -> Path:
        return self._own / "requests" / self._request.key

    def _record(self, ready: Ready) -> None:
        self._request_record.parent.mkdir(exist_ok=True)
        record = {"source": ready.source, "digest": ready.digest, "resolvedRevision": ready.resolved_revision}
        write_lasting(self._request_record, json.dumps(record).encode(), by=self.workspace.work)

    def _recorded(self) -> tuple[str, str] | None:
        """Digest and revision that this request ended with; None when it never ended."""
        try:
            record = json.loads(self._request_record.read_bytes())
            return str(record["digest"]), str(record["resolvedRevision"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _used(self, digest: str) -> None:
        """Note the time of use, by the volume's own clock; only the order of such times means anything."""
        # A reader that may not write finds the model all the same.
        with suppress(OSError):
            os.utime(self._folder(digest))


def link_to_blob(file: VerifiedFile) -> str:
    """Return where a link at the path of a file, in the folder of a model, leads to."""
    return f"{'../' * (file.path.count('/') + 2)}blobs/{file.sha256}"


def _is_file(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _link_or_copy(source: Path, blob: Path) -> None:
    if blob.exists():
        return
    try:
        blob.hardlink_to(source)
    except OSError as exc:
        if exc.errno not in _NO_HARD_LINK:
            raise
        growing = blob.with_name(f".{blob.name}.{uuid.uuid4().hex[:12]}")
        shutil.copyfile(source, growing)
        growing.replace(blob)
