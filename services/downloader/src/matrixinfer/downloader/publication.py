"""READY on a volume: read it without believing it, and write a document so that it lasts. Blocking.

READY is believed when it is sound and every file that it names is there with its size: files are verified before they
get their names, and nothing of ours changes one afterwards. The trap: a link in place of a file would lead a reader
anywhere, so a file counts only when it is one, or the link to the one place that the caller allows.
"""

import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from matrixinfer.downloader.core.manifest import READY_NAME, Ready, VerifiedFile, parse_ready
from matrixinfer.downloader.workspace import fsync_folder

__all__ = ["read_publication", "write_lasting"]

LinkOf = Callable[[VerifiedFile], str | None]
"""Where the link of a file may lead; None when it must be no link."""


def read_publication(folder: Path, link_of: LinkOf = lambda _: None) -> Ready | None:
    """Return what is published in a folder; None when that is nothing, or not complete."""
    try:
        found = parse_ready((folder / READY_NAME).read_bytes())
    except OSError:
        return None
    if found is None or not all(_is_there(folder / file.path, file, link_of(file)) for file in found.files):
        return None
    return found


def write_lasting(path: Path, content: bytes, *, by: Path) -> None:
    """Write a document that is there whole or not at all, even after a crash; it grows in the folder `by`."""
    growing = by / f"{path.name}.{uuid.uuid4().hex[:12]}.new"
    try:
        with growing.open("xb") as document:
            document.write(content)
            document.flush()
            os.fsync(document.fileno())
        growing.replace(path)
    except BaseException:
        growing.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _is_there(path: Path, file: VerifiedFile, link: str | None) -> bool:
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            if link is None or str(path.readlink()) != link:
                return False
            status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == file.size
