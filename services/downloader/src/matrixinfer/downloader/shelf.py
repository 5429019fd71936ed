"""The seam between a download and where its files end up: a plain folder, or a cache that many models share.

Everything here blocks, and all but `published` is called by the one process that holds the lock.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from matrixinfer.downloader.core.manifest import Ready, SourceFile, VerifiedFile
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.workspace import Workspace

__all__ = ["Shelf"]


class Shelf(Protocol):
    """Where one request is published."""

    @property
    def workspace(self) -> Workspace:
        """Where its files grow."""
        ...

    @property
    def gate(self) -> Path | None:
        """A lock to pass through once the own one is held: nothing is evicted meanwhile. None where nothing ever is."""
        ...

    def make_room(self, missing_bytes: int, kept: Collection[str], *, pod: str, node: str) -> int:
        """Remove what nothing refers to, oldest use first, but no content of `kept`; returns the bytes freed."""
        ...

    def published(self) -> Ready | None:
        """Return the complete publication that answers the request; None when there is none."""
        ...

    def adopted(self) -> Ready | None:
        """Publish what an older layout of this very request left complete; None when there is nothing of the kind."""
        ...

    def present(self, file: SourceFile) -> VerifiedFile | None:
        """Return a file that was verified before, in this state, for whatever model; None when it must be fetched."""
        ...

    def keep(self, staged: StagedFile, verified: VerifiedFile) -> None:
        """Take a file that was just verified, so that no later run fetches it again."""
        ...

    def publish(self, ready: Ready) -> None:
        """Make every file appear under its name, and READY last."""
        ...
