"""READY: read it, and make it true. Blocking.

A folder is a model when READY is in it, and only then. Publishing removes the old READY first and writes the new one
last, with every rename made to last in between, so no reader ever sees READY over a mixture. The trap: the folder
may hold links that somebody else made, and a rename through one would leave the volume; those are refused.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from matrixinfer.downloader.core.manifest import Ready, VerifiedFile, parse_ready
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.workspace import Workspace, fsync_folder, volume_errors

__all__ = ["publish", "published"]


def published(output: Path, ready: Path) -> Ready | None:
    """Return what is published in a folder: READY is sound and every file of it is there with its size."""
    try:
        found = parse_ready(ready.read_bytes())
    except OSError:
        return None
    if found is None or not all(_is_there(output / file.path, file.size) for file in found.files):
        return None
    return found


def publish(workspace: Workspace, ready: Ready) -> None:
    """Move the staged files to the output and write READY; files of what was published before and is no more go."""
    with volume_errors(workspace.output):
        _withdraw(workspace)
        folders = {workspace.output}
        for file in ready.files:
            folders |= _make_parents(workspace.output, file.path)
            workspace.staged(file.path).replace(workspace.published(file.path))
        _remove_stale(workspace, ready.files)
        for folder in folders:
            fsync_folder(folder)
        _write_ready(workspace, ready)
        workspace.clear()


def _withdraw(workspace: Workspace) -> None:
    """Remove READY, keeping the list of what it spoke of until the new one is written."""
    with suppress(FileNotFoundError):
        workspace.ready.replace(workspace.previous)
        fsync_folder(workspace.output)


def _make_parents(output: Path, path: str) -> set[Path]:
    folder, made = output, set()
    for segment in path.split("/")[:-1]:
        folder = folder / segment
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise DownloadError(Cause.UNSAFE_PATH, f"{folder} is a link; nothing is written through it")
        made.add(folder)
    return made


def _remove_stale(workspace: Workspace, files: Sequence[VerifiedFile]) -> None:
    try:
        before = parse_ready(workspace.previous.read_bytes())
    except FileNotFoundError:
        return
    kept = {file.path for file in files}
    for path in sorted({file.path for file in before.files} - kept if before else ()):
        # Through a link this would remove somebody else's file.
        if _has_no_link(workspace.output, path):
            workspace.published(path).unlink(missing_ok=True)
            _remove_empty_folders(workspace.output, path)


def _remove_empty_folders(output: Path, path: str) -> None:
    for folder in list((output / path).parents)[: path.count("/")]:
        try:
            folder.rmdir()
        except OSError:
            return


def _has_no_link(output: Path, path: str) -> bool:
    return not any(folder.is_symlink() for folder in list((output / path).parents)[: path.count("/")])


def _write_ready(workspace: Workspace, ready: Ready) -> None:
    written = workspace.work / "ready.new"
    with written.open("wb") as document:
        document.write(ready.to_json())
        document.flush()
        os.fsync(document.fileno())
    written.replace(workspace.ready)
    fsync_folder(workspace.output)


def _is_there(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
