"""What a cache can give to others: complete contents, and the finished parts of files that still grow. Blocking.

Reads only, beside a download that writes: a part counts once its journal says so, and what was opened stays what it
was, whatever is renamed or removed meanwhile. The trap: a file that is fetched anew takes the place of another, so it
is opened first and its journal is read afterwards, which is removed before the file is.
"""

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from matrixinfer.downloader.core.manifest import READY_NAME, WORK_PREFIX, parse_ready
from matrixinfer.downloader.core.ranges import Part, finished_parts, header_line, split
from matrixinfer.downloader.core.sharing import SHARING_NAME, FileName, Held, Share, is_sha256, read_share
from matrixinfer.downloader.workspace import Workspace

__all__ = ["Holdings", "Opened"]

_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A file, open for reading, and which of its bytes count."""

    file: FileIO
    held: Held

    def read(self, count: int, position: int) -> bytes:
        """Return bytes from a position on; fewer only at the end of the file."""
        return os.pread(self.file.fileno(), count, position)


class Holdings:
    """One cache, as others see it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own = root / WORK_PREFIX

    def origin(self, key: str) -> bytes | None:
        """Say whether a download from this origin is under way, and something that changes with its progress.

        None when this cache never had to do with the origin.
        """
        work = self._own / key
        if not work.is_dir():
            return None
        fetching = (work / SHARING_NAME).is_file()
        moved = 0
        if fetching:
            # Journals grow with every part; the folder's time changes with every file that becomes complete.
            moved = sum(_size(entry) for entry in _entries(work / "journal")) + _changed(self._root / "blobs")
        return json.dumps({"fetching": fetching, "count": moved}).encode()

    def ready(self, digest: str) -> bytes | None:
        """Return the READY of a model that is here."""
        text = _document(self._root / "models" / digest / READY_NAME)
        found = parse_ready(text) if text else None
        return text if found and found.digest == f"sha256:{digest}" else None

    def open(self, name: FileName) -> Opened | None:
        """Open what there is of a file; None when that is nothing."""
        return self._blob(name.sha256 or self._noted(name)) or self._growing(name)

    def _noted(self, name: FileName) -> str:
        text = _document(self._own / "known" / name.file).decode("ascii", "replace")
        return text if is_sha256(text) else ""

    def _blob(self, sha256: str) -> Opened | None:
        if not sha256 or (file := _opened(self._root / "blobs" / sha256)) is None:
            return None
        size = os.fstat(file.fileno()).st_size
        return Opened(file, Held.of(size, [Part(0, size)] if size else []))

    def _growing(self, name: FileName) -> Opened | None:
        workspace = Workspace(None, self._own / name.origin)
        note = read_share(_document(workspace.work / SHARING_NAME))
        share = note[1].get(name.file) if note else None
        if note is None or share is None:
            return None
        file = _opened(workspace.staged(share.path))
        if file is None:
            # It may have become complete just now.
            return self._blob(share.sha256 or self._noted(name))
        return Opened(file, _finished(workspace, share, part_bytes=note[0]))


def _finished(workspace: Workspace, share: Share, *, part_bytes: int) -> Held:
    header = header_line(share.path, share.size, share.version, part_bytes)
    journal = _document(workspace.journal(share.path))
    found = finished_parts(journal, header, split(share.size, part_bytes))
    return Held.of(share.size, [finished.part for finished in found])


def _opened(path: Path) -> FileIO | None:
    """Open a regular file, and nothing else; closed when nobody uses it any more."""
    try:
        file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    return None


def _document(path: Path) -> bytes:
    if (document := _opened(path)) is None:
        return b""
    with document:
        return document.read(_DOCUMENT_BYTES) or b""


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def _changed(folder: Path) -> int:
    with suppress(OSError):
        return folder.stat().st_mtime_ns
    return 0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
