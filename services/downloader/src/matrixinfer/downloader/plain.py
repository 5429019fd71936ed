"""A plain folder that holds one model: its files under their names, and READY beside them. Blocking.

A folder is a model when READY is in it, and only then. Publishing removes the old READY first and writes the new one
last, with every rename made to last in between, so no reader ever sees READY over a mixture. The trap: the folder
may hold links that somebody else made, and a rename through one would leave the volume; those are refused.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from matrixinfer.downloader.core.manifest import READY_NAME, Ready, SourceFile, VerifiedFile, parse_ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.publication import read_publication, write_lasting
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.workspace import Workspace, fsync_folder, prepare, remove_tries, volume_errors

__all__ = ["PlainFolder"]


class PlainFolder:
    """One output folder, and the work folder beside or inside it."""

    def __init__(self, request: Request) -> None:
        self.workspace: Workspace = prepare(request.output)
        self._request = request
        self._output = request.output

    gate = None

    def make_room(self, *_: object, **__: object) -> int:
        """Nothing can go: there is one model here."""
        return 0

    def published(self) -> Ready | None:
        """Return what is published here when it answers the request."""
        found = read_publication(self._output)
        request = self._request
        if found is None or not found.answers(request.source, request.include, request.exclude):
            return None
        return found

    def adopted(self) -> None:
        """Never: a plain folder has always looked like this."""

    def present(self, _file: SourceFile) -> VerifiedFile | None:
        """Nothing: what was published here before belongs to what was published then."""
        return None

    def keep(self, _staged: StagedFile, _verified: VerifiedFile) -> None:
        """Nothing to do: the file stays staged until all are there."""

    def publish(self, ready: Ready) -> None:
        """Move the staged files to the output and write READY; files of what was published before and is no more go."""
        with volume_errors(self._output):
            self._withdraw()
            folders = {self._output}
            for file in ready.files:
                folders |= self._make_parents(file.path)
                self.workspace.staged(file.path).replace(self._output / file.path)
            self._remove_stale(ready.files)
            for folder in folders:
                fsync_folder(folder)
            write_lasting(self._output / READY_NAME, ready.to_json(), by=self.workspace.work)
            remove_tries(self._output)
            self.workspace.clear()

    @property
    def _previous(self) -> Path:
        """The READY of what was published here before, while something else takes its place."""
        return self.workspace.work / "previous.json"

    def _withdraw(self) -> None:
        """Remove READY, keeping the list of what it spoke of until the new one is written."""
        with suppress(FileNotFoundError):
            (self._output / READY_NAME).replace(self._previous)
            fsync_folder(self._output)

    def _make_parents(self, path: str) -> set[Path]:
        folder, made = self._output, set()
        for segment in path.split("/")[:-1]:
            folder = folder / segment
            folder.mkdir(exist_ok=True)
            if folder.is_symlink():
                raise DownloadError(Cause.UNSAFE_PATH, f"{folder} is a link; nothing is written through it")
            made.add(folder)
        return made

    def _remove_stale(self, files: Sequence[VerifiedFile]) -> None:
        try:
            before = parse_ready(self._previous.read_bytes())
        except FileNotFoundError:
            return
        kept = {file.path for file in files}
        for path in sorted({file.path for file in before.files} - kept if before else ()):
            # Through a link this would remove somebody else's file.
            if self._has_no_link(path):
                (self._output / path).unlink(missing_ok=True)
                self._remove_empty_folders(path)

    def _remove_empty_folders(self, path: str) -> None:
        for folder in list((self._output / path).parents)[: path.count("/")]:
            try:
                folder.rmdir()
            except OSError:
                return

    def _has_no_link(self, path: str) -> bool:
        return not any(folder.is_symlink() for folder in list((self._output / path).parents)[: path.count("/")])
