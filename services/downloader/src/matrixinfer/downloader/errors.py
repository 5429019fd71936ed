"""Everything that can end a download, one cause each, and the exit code that tells it apart.

A controller reads the cause from the termination message, a person reads the sentence, a script reads the code. The
trap: a message travels into the API and into logs, so no error here may carry a credential or a signed address.
"""

from enum import StrEnum

__all__ = ["EXIT_CODES", "Cause", "DownloadError", "TransientError"]


class Cause(StrEnum):
    """Why a download ended without a published model; also the `reason` of the conditions."""

    BAD_REQUEST = "BadRequest"
    """The source, the output or a pattern cannot mean anything."""
    ACCESS_DENIED = "AccessDenied"
    """Credentials are missing, wrong, or not allowed to read this."""
    NOT_FOUND = "NotFound"
    """The source, its revision or a file of it does not exist."""
    NOTHING_SELECTED = "NothingSelected"
    """The source exists, but no file is left after include and exclude."""
    NO_SPACE = "NoSpace"
    """The volume has too little room, or too few inodes."""
    VOLUME_NOT_WRITABLE = "VolumeNotWritable"
    """The output folder cannot be made or written."""
    INTEGRITY = "IntegrityMismatch"
    """Bytes arrived that are not what the source said they would be."""
    SOURCE_CHANGED = "SourceChanged"
    """The source changed during the download, or no longer is what this version recorded."""
    UNREACHABLE = "Unreachable"
    """The source did not answer, or broke off again and again."""
    REDIRECT_REFUSED = "RedirectRefused"
    """The source sends us to a host that is not allowed."""
    LOCK_TIMEOUT = "LockTimeout"
    """Another process held the output folder for longer than we may wait."""
    LOCK_LOST = "LockLost"
    """Another process took the output folder over although we held it."""
    CANCELLED = "Cancelled"
    """The process was told to stop; what was fetched is kept for the next one."""
    UNSAFE_PATH = "UnsafePath"
    """The source lists a name that would leave the output folder, or two that collide."""


EXIT_CODES: dict[Cause, int] = {
    Cause.BAD_REQUEST: 2,
    Cause.ACCESS_DENIED: 10,
    Cause.NOT_FOUND: 11,
    Cause.NOTHING_SELECTED: 11,
    Cause.NO_SPACE: 12,
    Cause.INTEGRITY: 13,
    Cause.SOURCE_CHANGED: 13,
    Cause.UNREACHABLE: 14,
    Cause.REDIRECT_REFUSED: 17,
    Cause.LOCK_TIMEOUT: 15,
    Cause.LOCK_LOST: 15,
    Cause.CANCELLED: 16,
    Cause.UNSAFE_PATH: 17,
    Cause.VOLUME_NOT_WRITABLE: 18,
}
"""The exit code of each cause; 0 is success and 1 a crash that nobody planned for."""


class DownloadError(Exception):
    """Ends the download: `cause` for programs, `message` (a sentence with the fix, where there is one) for people."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        # Raised in one process, told in another.
        return DownloadError, (self.cause, self.message)

    @property
    def exit_code(self) -> int:
        """The exit code of the cause."""
        return EXIT_CODES[self.cause]


class TransientError(DownloadError):
    """Something that may be gone at the next try; ends the download as `Unreachable` once the tries are used up."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(Cause.UNREACHABLE, message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return TransientError, (self.message,), {"retry_after": self.retry_after}
