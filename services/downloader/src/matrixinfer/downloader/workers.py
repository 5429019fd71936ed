"""Processes that fetch shares of one download, each with an interpreter's lock of its own.

They are forked before this process has a second thread, because a fork of many threads may keep a lock for ever that
one of them held; so they wait until it is known what there is to fetch, take one share each, and never another. This
process lists, holds the lock on the volume, adds up, publishes and tells; they bring files onto the shelf and say so.
They write nothing that a killed process might not leave, so they are ended by a kill, whenever it is time.

The traps: who takes the lock over from us may begin at once, so they die with us, by the kernel's hand, and stand still
when we do; and one that is killed must not cost the download, so what it left undone is handed back.
"""

import gc
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, TypeAlias

from matrixinfer.downloader.core.deal import allowances, worth
from matrixinfer.downloader.core.manifest import SourceFile, VerifiedFile
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import DownloadError
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.progress import Progress, View
from matrixinfer.downloader.wire.sigv4 import Keys
from matrixinfer.service.logging import get_logger

__all__ = ["Channel", "Fetched", "Job", "KeysAsked", "KeysLent", "News", "Workers", "fork_workers"]

log = get_logger("workers")

Lend: TypeAlias = Callable[[Keys | None], Keys | None]
"""Gives the keys in force, and other ones than those that were refused."""

_LENGTH_BYTES = 8
_PR_SET_PDEATHSIG = 1
# A fraction of the silence at which a worker stands still.
_TICK_SECONDS = 0.1
# A worker that waits takes what there is for it at once, unless it is stopped.
_TAKE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """A share of a download; `revision` is what the source was resolved to."""

    request: Request
    revision: str
    files: Sequence[SourceFile]
    limits: Limits
    allowance: int
    """The connections that may work at first; later ones come as messages, which also say that we live."""


@dataclass(frozen=True, slots=True)
class News:
    """How far a worker is, and what it finished since it last said so; with the last ones, how it ended."""

    view: View
    verified: Sequence[VerifiedFile]
    is_last: bool = False
    error: DownloadError | None = None


@dataclass(frozen=True, slots=True)
class KeysAsked:
    """A worker needs the keys in force, and other ones than the store refused."""

    refused: Keys | None


@dataclass(frozen=True, slots=True)
class KeysLent:
    """The answer: keys, none for requests that are not signed, or why there are none."""

    keys: Keys | None = None
    error: DownloadError | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of it: verified files, and those of workers that died."""

    verified: Sequence[VerifiedFile]
    lost: Sequence[SourceFile]


class Channel:
    """Whole messages between this process and a fork of it, the one peer that may be trusted with pickles."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, message: object, *, seconds: float | None = None) -> None:
        """Send one, within so many seconds; raises OSError when the other side is gone, or does not read."""
        data = pickle.dumps(message)
        with self._sending:
            self._socket.settimeout(seconds)
            try:
                self._socket.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
            finally:
                self._socket.settimeout(None)

    def offer(self, message: object) -> None:
        """Send a small one unless the other side is gone, or has not read the ones before."""
        data = pickle.dumps(message)
        with self._sending, suppress(OSError):
            self._socket.send(len(data).to_bytes(_LENGTH_BYTES, "big") + data, socket.MSG_DONTWAIT)

    def receive(self) -> object:
        """Wait for one; raises EOFError when the other side is gone."""
        size = int.from_bytes(self._exactly(_LENGTH_BYTES), "big")
        # Written by this very program.
        return pickle.loads(self._exactly(size))  # noqa: S301

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                piece = self._socket.recv(count - len(data))
            except OSError as exc:
                raise EOFError("the other process is gone") from exc
            if not piece:
                raise EOFError("the other process is gone")
            data += piece
        return bytes(data)


@dataclass(frozen=True, slots=True)
class _Member:
    pid: int
    channel: Channel

    def end(self) -> int:
        """Kill it, if it still lives; returns its exit code."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Share:
    """What one worker has to do, and how far it is."""

    def __init__(
        self, member: _Member, job: Job, progress: Progress, changed: threading.Condition, lend: Lend | None
    ) -> None:
        self._lend = lend
        self.member = member
        self.job = job
        self.view = View()
        self.verified: list[VerifiedFile] = []
        self.has_ended = False
        self.error: DownloadError | None = None
        self._total = worth(len(job.files), sum(file.size for file in job.files))
        self._progress = progress
        self._changed = changed
        self._has_begun = False

    @property
    def left(self) -> int:
        """The work that is left, never nothing before the end."""
        return 0 if self.has_ended else max(1, self._total - worth(len(self.verified), self.view.done_bytes))

    @property
    def lost(self) -> Sequence[SourceFile]:
        """What it left undone."""
        done = {file.path for file in self.verified}
        return [file for file in self.job.files if file.path not in done]

    def listen(self) -> None:
        """Hand the job over and take in what is told, until the end or the worker's death."""
        try:
            self.member.channel.send(self.job, seconds=_TAKE_SECONDS)
            self._has_begun = True
            while not self._has_told_all(self.member.channel.receive()):
                pass
        except (EOFError, OSError):
            # What it left undone is seen by who waits for us.
            pass
        finally:
            with self._changed:
                self.has_ended = True
                self._changed.notify_all()

    def allow(self, connections: int) -> None:
        """Say that we live, and how many connections may work."""
        if self._has_begun:
            self.member.channel.offer(connections)

    def give_up(self) -> None:
        """Count as not there what it had of files that it did not finish."""
        self._progress.present(sum(file.size for file in self.verified) - self.view.done_bytes)

    def _has_told_all(self, message: object) -> bool:
        if isinstance(message, KeysAsked):
            self.member.channel.send(self._lent(message.refused))
            return False
        if isinstance(message, News):
            self._take_in(message)
            return message.is_last
        return True

    def _lent(self, refused: Keys | None) -> KeysLent:
        try:
            return KeysLent(self._lend(refused) if self._lend else None)
        except DownloadError as exc:
            return KeysLent(error=exc)

    def _take_in(self, news: News) -> None:
        self._progress.added(self.view, news.view)
        for _ in news.verified:
            self._progress.file_done()
        with self._changed:
            self.view = news.view
            self.verified.extend(news.verified)
            self.error = news.error


class Workers:
    """The processes of one download; none, where this one does all of it."""

    def __init__(self, members: Sequence[_Member] = ()) -> None:
        self._members = list(members)

    @property
    def count(self) -> int:
        """How many wait for work."""
        return len(self._members)

    def fetch(
        self,
        job: Job,
        shares: Sequence[Sequence[SourceFile]],
        *,
        progress: Progress,
        check: Callable[[], None],
        tell: Callable[[], None],
        lend: Lend | None = None,
    ) -> Fetched:
        """Let one worker fetch each share; raises the first error of any, and what `check` raises. Blocking.

        `lend` gives the keys of the source, where it has some that are looked for.
        """
        changed = threading.Condition()
        limits = replace(job.limits, cores=job.limits.cores / len(shares))
        first = allowances([worth(len(share), sum(f.size for f in share)) for share in shares], limits.connections)
        jobs = [
            replace(job, files=tuple(files), limits=limits, allowance=allowance)
            for files, allowance in zip(shares, first, strict=True)
        ]
        begun = [
            _Share(member, each, progress, changed, lend) for member, each in zip(self._members, jobs, strict=False)
        ]
        log.info("work_shared", processes=len(begun), files=[len(share) for share in shares])
        try:
            for share in begun:
                threading.Thread(target=share.listen, name="worker", daemon=True).start()
            self._govern(begun, changed, limits.connections, progress, check, tell)
            return self._outcome(begun)
        finally:
            self.dismiss()

    def dismiss(self) -> None:
        """End them all. What they have noted on the volume stays, and another process goes on with it."""
        while self._members:
            self._members.pop().end()

    def _govern(
        self,
        shares: Sequence[_Share],
        changed: threading.Condition,
        connections: int,
        progress: Progress,
        check: Callable[[], None],
        tell: Callable[[], None],
    ) -> None:
        with changed:
            while not all(share.has_ended for share in shares):
                changed.wait(_TICK_SECONDS)
                if failed := next((share.error for share in shares if share.error is not None), None):
                    raise failed
                check()
                tell()
                progress.paced(sum(share.view.connections for share in shares if not share.has_ended))
                for share, allowance in zip(shares, allowances([s.left for s in shares], connections), strict=True):
                    share.allow(allowance)

    def _outcome(self, shares: Sequence[_Share]) -> Fetched:
        lost: list[SourceFile] = []
        for share in shares:
            if share.error is not None:
                raise share.error
            if not share.lost:
                continue
            self._members.remove(share.member)
            log.warning("worker_lost", exit_code=share.member.end(), files=len(share.lost), action="fetching them here")
            share.give_up()
            lost.extend(share.lost)
        return Fetched([file for share in shares for file in share.verified], lost)


def fork_workers(count: int, live: Callable[[Channel], None]) -> Workers:
    """Fork processes that `live` with a channel to this one; only while this process has one thread."""
    members: list[_Member] = []
    parent = os.getpid()
    if count:
        # What was loaded stays as it is: a collection that looked at it would copy it for each process.
        gc.freeze()
        # Loaded here because only workers need it, and before there are any, so that none has to.
        import ctypes  # noqa: F401
    for _ in range(count):
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            # A pod may be short of processes; fewer do it too.
            ours.close()
            theirs.close()
            break
        if not pid:
            ours.close()
            for other in members:
                other.channel.close()
            _live(partial(live, Channel(theirs)), parent)
        theirs.close()
        members.append(_Member(pid, Channel(ours)))
    return Workers(members)


def _live(live: Callable[[], None], parent: int) -> NoReturn:
    """The life of a fork: it never returns into what its parent was about to do."""
    code = 1
    try:
        _die_with(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Whoever stops all processes at once stops our parent too, and that one knows what to do.
            signal.signal(number, signal.SIG_IGN)
        live()
        code = 0
    # Whatever it was, the parent goes on without us; a traceback is all that can be left.
    except BaseException as exc:
        log.error("worker_crashed", exc_info=exc)
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
