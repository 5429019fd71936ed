"""The life of a worker process: wait for a share, fetch it with threads as a lone process would, tell how far it is.

Owns nothing that outlives it: journals, blobs and staged files are as any other killed process leaves them. The trap:
its right to write is its parent's, so it stands still while it hears nothing from it, and is gone when it is.
"""

import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

from matrixinfer.downloader.errors import DownloadError
from matrixinfer.downloader.fetch import open_shelf
from matrixinfer.downloader.progress import Progress
from matrixinfer.downloader.sources.source import Source
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.transfer import Transfer
from matrixinfer.downloader.wire.credentials import Credentials, Lent
from matrixinfer.downloader.wire.sigv4 import Keys
from matrixinfer.downloader.workers import Channel, Job, KeysAsked, KeysLent, News

__all__ = ["work"]

_TELL_SECONDS = 0.4
# What is left of the lock's patience is for the beat that came last to have been on its way.
_SILENCE_SHARE = 0.4


Begin: TypeAlias = Callable[[Job, Credentials], Source]


def work(parent: Channel, begin: Begin, monotonic: Callable[[], float]) -> None:
    """Do what the parent wants done; returns when that is nothing, or all of it was told.

    `begin` returns the source, which may need keys that the parent looks for; called when there is something to do.
    """
    try:
        job = parent.receive()
    except EOFError:
        return
    if isinstance(job, Job):
        _Worker(parent, job, monotonic).run(begin)


class _Worker:
    """One process at its share."""

    def __init__(self, parent: Channel, job: Job, monotonic: Callable[[], float]) -> None:
        self._parent = parent
        self._job = job
        self._monotonic = monotonic
        self._allowance = job.allowance
        self._progress = Progress()
        self._hears = threading.Event()
        self._hears.set()
        self._lent: SimpleQueue[KeysLent] = SimpleQueue()
        self._told_files = 0
        self._told_at = float("-inf")

    def run(self, begin: Begin) -> None:
        """Fetch the share and tell the end."""
        threading.Thread(target=self._obey, name="parent", daemon=True).start()
        job = self._job
        try:
            keys = Lent(self._ask_for_keys, self._monotonic)
            source, shelf = begin(job, keys), open_shelf(job.request)
            transfer = Transfer(
                source,
                shelf,
                job.limits,
                self._progress,
                check=self._stand_still,
                monotonic=self._monotonic,
                tell=lambda: self._tell(transfer),
                allowed=lambda: self._allowance,
            )
            transfer.run([StagedFile(file, shelf.workspace, job.limits.part_bytes) for file in job.files])
        except DownloadError as exc:
            self._parent.send(News(self._progress.view(), (), is_last=True, error=exc))
        else:
            self._tell(transfer, is_last=True)

    def _tell(self, transfer: Transfer, *, is_last: bool = False) -> None:
        now = self._monotonic()
        if not is_last and now - self._told_at < _TELL_SECONDS:
            return
        self._told_at = now
        verified = transfer.verified_after(self._told_files)
        self._told_files += len(verified)
        self._parent.send(News(self._progress.view(), verified, is_last))

    def _stand_still(self) -> None:
        if not self._hears.is_set():
            self._hears.wait()

    def _obey(self) -> None:
        try:
            self._listen()
        except EOFError:
            os._exit(1)

    def _listen(self) -> None:
        """Take in what the parent allows; raises EOFError when it is gone."""
        silence = self._job.limits.lock_patience_seconds * _SILENCE_SHARE
        while True:
            if not select.select([self._parent], [], [], silence)[0]:
                self._hears.clear()
            message = self._parent.receive()
            self._hears.set()
            if isinstance(message, KeysLent):
                self._lent.put(message)
            elif isinstance(message, int):
                self._allowance = message

    def _ask_for_keys(self, refused: Keys | None) -> Keys | None:
        self._parent.send(KeysAsked(refused))
        lent = self._lent.get()
        if lent.error is not None:
            raise lent.error
        return lent.keys
