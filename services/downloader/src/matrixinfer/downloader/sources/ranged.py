"""One range of a file over HTTP, whatever the source: asking for it, and not believing what comes.

A server may ignore a range and send the whole file, of which the part is taken; may send another range than it was
asked for; may answer with another length. All three end here, so that what is written is what was asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from matrixinfer.downloader.core.manifest import SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.verify import Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.wire.http import Answer, RedirectRefused, WireError

__all__ = ["RangedBody", "body_of", "range_header", "translated"]


def range_header(file: SourceFile, part: Part) -> dict[str, str]:
    """Return the header that asks for a part; none for a whole file, which may be empty."""
    return {} if part.length == file.size else {"Range": f"bytes={part.offset}-{part.end - 1}"}


def body_of(answer: Answer, file: SourceFile, part: Part, what: str, promise: Expected | None = None) -> "RangedBody":
    """Return the bytes of the part out of a good answer; raises DownloadError when the answer cannot have them."""
    # Where all was asked for, more than all must show, as an error.
    skip, left = 0, None
    if answer.status == 206:
        given = answer.headers.get("content-range", "")
        if given not in (f"bytes {part.offset}-{part.end - 1}/{file.size}", f"bytes {part.offset}-{part.end - 1}/*"):
            raise DownloadError(
                Cause.INTEGRITY,
                f"{what}: asked for bytes {part.offset}-{part.end - 1} of {file.size}, the answer has {given!r}; "
                "its size is not as listed",
            )
    elif part.length != file.size:
        skip, left = part.offset, part.length
    return RangedBody(answer, left, what, skip, promise)


class RangedBody:
    """The bytes of one range, in order."""

    def __init__(self, answer: Answer, left: int | None, what: str, skip: int, promise: Expected | None) -> None:
        self.promise = promise
        self._answer = answer
        self._what = what
        self._skip = skip
        self._left = left

    def readinto(self, buffer: memoryview) -> int:
        """Read on; a connection that breaks raises TransientError."""
        with translated(self._what):
            while self._skip:
                count = self._answer.readinto(buffer[: self._skip])
                if not count:
                    return 0
                self._skip -= count
            count = self._answer.readinto(buffer if self._left is None else buffer[: self._left])
        if self._left is not None:
            self._left -= count
        return count


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn trouble on the way into an error that is tried again, and a way that is closed into one that is not."""
    try:
        yield
    except WireError as exc:
        raise TransientError(f"{what}: {exc}") from exc
    except RedirectRefused as exc:
        raise DownloadError(Cause.REDIRECT_REFUSED, f"{what}: {exc}") from exc
