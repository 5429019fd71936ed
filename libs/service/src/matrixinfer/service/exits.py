"""How a process ends: the exit codes all services share, and the exception that asks for one.

Owns no policy: the part that knows why it cannot go on raises `Exit`, `lifecycle.run` turns it into the code and
one log line. A service with more causes than these (the downloader) passes its own numbers.
"""

from enum import IntEnum

__all__ = ["Exit", "ExitCode"]


class ExitCode(IntEnum):
    """Exit codes that mean the same in every service."""

    OK = 0
    """Asked to stop and finished its work, or had nothing more to do."""
    CRASHED = 1
    """An error nobody planned for; the traceback is in the log."""
    MISCONFIGURED = 2
    """Settings, arguments or a port that cannot work: a restart does not help, a changed manifest does."""
    LEASE_LOST = 3
    """No longer the leader, so it stopped at once; the restarted process stands for election again."""
    DRAIN_TIMEOUT = 4
    """Asked to stop, but work was still going on when the drain time was over, and was cut."""


class Exit(Exception):
    """Ends the process with `code`; `reason` is a sentence for the operator and ends up in the log."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
