"""One download per folder: a lock made of folders, for processes on one node or on many.

    <work>/holders/<generation>/beat       what the holder counts, every two seconds, and who it is
    <work>/holders/<generation>/alive      held by flock for as long as the holder's process lives
    <work>/holders/<generation>/released   it is done

What is decided about all this is in `core.holding`. Making a folder is the lock, so it needs no file system that locks
files; flock only tells sooner that a holder of this very kernel and mount is dead, and is asked only after it was seen
to work here. Neither a wall clock nor the age of a file is looked at. The traps: pids mean nothing in another pod, so
the holder is named by pod; and the latest generation is never removed, because its number is what the next one
counts on.
"""

import asyncio
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from matrixinfer.downloader.blocking import in_thread
from matrixinfer.downloader.core.holding import Holder, Observation, Seen, judge, observe
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.workspace import volume_errors
from matrixinfer.service.logging import get_logger

__all__ = ["Lock", "held", "is_held", "kernel", "try_hold"]

log = get_logger("lock")

_POLL_SECONDS = 0.5
_BEAT_SECONDS = 2.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def kernel() -> str:
    """Name the running kernel: pods of one node have the same, and no other node has it; empty when it has no name."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""


class Lock:
    """A lock that is held."""

    def __init__(self, folder: Path, generation: int, identity: dict[str, str]) -> None:
        self.generation = generation
        """The fencing token: later holders have greater ones."""
        self._folder = folder
        self._identity = identity
        self._count = 0
        self._own = folder / str(generation)
        self._alive = os.open(self._own / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with suppress(OSError):
            fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write()

    def beat(self) -> None:
        """Show that we live; raises DownloadError(LockLost) when a later generation has begun."""
        self.check()
        self._count += 1
        with suppress(OSError):
            self._write()

    def check(self) -> None:
        """Raise DownloadError(LockLost) when another process took over."""
        latest = _latest(self._folder)
        if latest == self.generation:
            return
        other = _holder(self._folder, latest).pod or "another process"
        raise DownloadError(
            Cause.LOCK_LOST,
            f"{other} took over {self._folder.parent}: this process stood still for too long, or its lock was removed",
        )

    def release(self) -> None:
        """Let others begin at once."""
        with suppress(OSError):
            (self._own / "released").touch()
        os.close(self._alive)

    def _write(self) -> None:
        device = str(os.fstat(self._alive).st_dev)
        growing = self._own / "beat.new"
        growing.write_text(json.dumps({**self._identity, "device": device, "count": self._count}))
        growing.replace(self._own / "beat")


@asynccontextmanager
async def held(
    folder: Path,
    *,
    pod: str,
    node: str,
    wait_seconds: float,
    patience_seconds: float,
    monotonic: Callable[[], float],
    pause: Callable[[float], Awaitable[None]],
    waiting: Callable[[str], None],
    lost: Callable[[DownloadError], None],
) -> AsyncIterator[Lock]:
    """Hold the lock; while another has it, `waiting` is told who that is, and `lost` when it is taken from us.

    Raises DownloadError (LockTimeout after `wait_seconds`; whatever `pause` raises when the process shall stop).
    """
    deadline = monotonic() + wait_seconds
    seen: Seen | None = None
    while True:
        found = await in_thread(lambda: _look(folder, node), name="look")
        if found.holder is not None:
            seen = observe(seen, found.holder, monotonic())
        generation = judge(found, seen, monotonic(), patience_seconds=patience_seconds)
        if generation is not None and (lock := _begin(folder, generation, {"pod": pod, "kernel": node})):
            break
        if generation is not None:
            continue
        holder = (found.holder.pod if found.holder else "") or "another process"
        waiting(holder)
        left = deadline - monotonic()
        if left <= 0:
            raise DownloadError(
                Cause.LOCK_TIMEOUT, f"{holder} has been downloading into this folder for more than {wait_seconds:.0f} s"
            )
        await pause(min(_POLL_SECONDS, left))
    beating = asyncio.ensure_future(_beat(lock, lost))
    try:
        yield lock
    finally:
        beating.cancel()
        await asyncio.wait((beating,))
        lock.release()


def try_hold(folder: Path, *, pod: str, node: str) -> Lock | None:
    """Hold a lock that is free, or whose holder is known to be dead; None otherwise. Blocking, for short work."""
    found = _look(folder, node)
    generation = judge(found, None, 0.0, patience_seconds=1.0)
    return _begin(folder, generation, {"pod": pod, "kernel": node}) if generation is not None else None


def is_held(folder: Path, node: str) -> bool:
    """True unless the lock is free, or its holder is known to be dead."""
    return folder.is_dir() and judge(_look(folder, node), None, 0.0, patience_seconds=1.0) is None


async def _beat(lock: Lock, lost: Callable[[DownloadError], None]) -> None:
    while True:
        await asyncio.sleep(_BEAT_SECONDS)
        try:
            await in_thread(lock.beat, name="beat")
        except DownloadError as exc:
            lost(exc)
            return


def _begin(folder: Path, generation: int, identity: dict[str, str]) -> Lock | None:
    """Begin a generation; None when another process was faster."""
    with volume_errors(folder):
        own = folder / str(generation)
        try:
            own.mkdir()
        except FileExistsError:
            return None
        if _latest(folder) != generation:
            # We were asleep between the look and now: others have come and gone, and cleaned up.
            own.rmdir()
            return None
        # Pods of one volume need not run as the same user.
        with suppress(PermissionError):
            own.chmod(0o777)
        for older in _generations(folder):
            if older < generation:
                shutil.rmtree(folder / str(older), ignore_errors=True)
        return Lock(folder, generation, identity)


def _look(folder: Path, node: str) -> Observation:
    with volume_errors(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):
                folder.chmod(0o777)
        generation = _latest(folder)
        if not generation:
            return Observation(None, None)
        return Observation(_holder(folder, generation), _lives(folder, generation, node))


def _generations(folder: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
    return []


def _latest(folder: Path) -> int:
    return max(_generations(folder), default=0)


def _holder(folder: Path, generation: int) -> Holder:
    beat = _read_beat(folder / str(generation))
    counted = str(beat.get("count", ""))
    count = int(counted) if counted.isdigit() else -1
    released = (folder / str(generation) / "released").exists()
    return Holder(generation, count, str(beat.get("pod", "")), released)


def _read_beat(own: Path) -> dict[str, object]:
    try:
        found = json.loads((own / "beat").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives(folder: Path, generation: int, node: str) -> bool | None:
    """Whether the holder's process lives, where this kernel must know; else None."""
    own = folder / str(generation)
    beat = _read_beat(own)
    try:
        descriptor = os.open(own / "alive", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        same = bool(node) and (beat.get("kernel"), beat.get("device")) == (node, str(os.fstat(descriptor).st_dev))
        if not same or not _locks_work(folder):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _locks_work(folder: Path) -> bool:
    """True when a second lock on one file is refused here, as it must be; some volumes grant every one."""
    probe = folder / f"probe-{uuid.uuid4().hex[:12]}"
    first = second = -1
    try:
        first = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        second = os.open(probe, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    except OSError:
        return False
    finally:
        for descriptor in (first, second):
            if descriptor >= 0:
                os.close(descriptor)
        probe.unlink(missing_ok=True)
