"""One download per output folder: a lock file, held by flock, with a deadline for those who wait.

The kernel drops the lock with its process, however that ends, so there is no age to guess and no clock to compare. The
file is never removed. As a fence for file systems on which flock lies, the holder writes its own token into the
file and looks again before it publishes. The traps: locking a file that somebody has just removed locks nothing,
so the inode is compared; and pids mean nothing in another pod, so the holder is named by pod.
"""

import errno
import fcntl
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.workspace import volume_errors

__all__ = ["Lock", "held"]

_POLL_SECONDS = 0.5
_UNSUPPORTED = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS))


class Lock:
    """A lock that is held."""

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token

    def check(self) -> None:
        """Raise DownloadError(LockLost) when another process wrote its name over ours."""
        holder = _holder(self._path)
        if holder.get("token") != self._token:
            other = holder.get("pod") or "another process"
            raise DownloadError(
                Cause.LOCK_LOST,
                f"{other} took {self._path} although it was held; the volume's locks cannot be relied on",
            )


@asynccontextmanager
async def held(
    path: Path,
    *,
    pod: str,
    wait_seconds: float,
    monotonic: Callable[[], float],
    pause: Callable[[float], Awaitable[None]],
    waiting: Callable[[str], None],
) -> AsyncIterator[Lock]:
    """Hold the lock; while another has it, `waiting` is told who that is.

    Raises DownloadError (LockTimeout after `wait_seconds`; whatever `pause` raises when the process shall stop).
    """
    deadline = monotonic() + wait_seconds
    while (descriptor := _try(path)) is None:
        holder = _holder(path).get("pod") or "another process"
        waiting(str(holder))
        left = deadline - monotonic()
        if left <= 0:
            raise DownloadError(
                Cause.LOCK_TIMEOUT, f"{holder} has been downloading into this folder for more than {wait_seconds:.0f} s"
            )
        await pause(min(_POLL_SECONDS, left))
    try:
        token = uuid.uuid4().hex
        with volume_errors(path):
            identity = json.dumps({"token": token, "pod": pod, "pid": os.getpid()}).encode()
            os.pwrite(descriptor, identity, 0)
            os.ftruncate(descriptor, len(identity))
        yield Lock(path, token)
    finally:
        os.close(descriptor)


def _try(path: Path) -> int | None:
    """Return the descriptor that holds the lock, None while another process has it."""
    with volume_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # Pods of one volume need not run as the same user; only the owner can, and needs to, open it up.
            with suppress(PermissionError):
                os.fchmod(descriptor, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as exc:
            os.close(descriptor)
            if exc.errno in _UNSUPPORTED:
                raise DownloadError(
                    Cause.VOLUME_NOT_WRITABLE, "the volume does not support file locks; use one that does"
                ) from exc
            raise
        os.close(descriptor)
        return None


def _holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
