"""The seam between the download and where the bytes are.

A source lists what it holds and reads ranges of it; selecting, verifying, retrying and writing happen elsewhere and
the same for all. Both methods block, with a deadline on every wait, and are called from several threads at once.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part

__all__ = ["Source"]


class Source(Protocol):
    """One source at one place."""

    def listing(self) -> Listing:
        """Return revision and files, with sizes and whatever the source vouches for.

        Raises DownloadError; its subclass TransientError when another try may help.
        """
        ...

    def read(self, file: SourceFile, part: Part) -> AbstractContextManager[Iterable[bytes]]:
        """Open one range; the chunks are its bytes in order, fewer only when the connection broke off.

        Raises DownloadError (SourceChanged when the file is no longer the one that was listed) or TransientError, from
        the call or while the chunks are read.
        """
        ...
