"""The seam between the download and where the bytes are.

A source lists what it holds and reads ranges of it; selecting, verifying, retrying and writing happen elsewhere and
the same for all. All of it blocks, with a deadline on every wait, and is called from several threads at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.verify import Expected
from matrixinfer.downloader.wire.sigv4 import Keys

__all__ = ["Body", "Cloning", "Lending", "Sharing", "Source"]


class Body(Protocol):
    """The bytes of one range, in order."""

    @property
    def promise(self) -> Expected | None:
        """What the answer vouches for of the whole file; None when it says nothing that the listing did not."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer as far as it goes; 0 at the end, which comes early only when the connection broke off.

        Raises DownloadError (SourceChanged when the file is no longer the one that was listed) or TransientError.
        """
        ...


class Source(Protocol):
    """One source at one place."""

    def listing(self) -> Listing:
        """Return revision and files, with sizes and whatever the source vouches for in its listing.

        Raises DownloadError; its subclass TransientError when another try may help.
        """
        ...

    def promise(self, file: SourceFile) -> Expected | None:
        """Return what the source vouches for; asked once, before the first byte, of a file in several parts."""
        ...

    def read(self, file: SourceFile, part: Part) -> AbstractContextManager[Body]:
        """Open one range. Raises DownloadError (SourceChanged, …) or TransientError."""
        ...

    def abort(self) -> None:
        """Wake up every thread that waits for the source: what it was doing is given up."""
        ...


@runtime_checkable
class Cloning(Protocol):
    """A source whose files may share their blocks with ours."""

    def clone(self, file: SourceFile, descriptor: int) -> bool:
        """Make the open, empty file have the content of `file` without copying; False where that cannot be done."""
        ...


@runtime_checkable
class Lending(Protocol):
    """A source with keys that one process looks for and others use."""

    def keys(self, refused: Keys | None) -> Keys | None:
        """Return the keys in force, and other ones than those that were refused; raises DownloadError."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """A source of which others take a part, and from whom we take theirs."""

    def order(self, file: SourceFile, parts: Sequence[Part]) -> Sequence[Part]:
        """Return the parts in the order in which they should be fetched."""
        ...

    def doubt(self, file: SourceFile) -> Sequence[Part]:
        """Take note that a file turned out wrong; returns the bytes that another try would get from others."""
        ...
