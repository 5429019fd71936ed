"""A worker is as alive as its parent."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.wire.credentials import Lent
from matrixinfer.downloader.wire.sigv4 import Keys
from matrixinfer.downloader.worker import _Worker
from matrixinfer.downloader.workers import Channel, Job

STANDS_SECONDS = 0.05


def test_an_error_is_told_whole() -> None:
    ours, theirs = map(Channel, socket.socketpair())
    ours.send((DownloadError(Cause.NO_SPACE, "full"), TransientError("busy", retry_after=2.5)))
    told = theirs.receive()
    assert isinstance(told, tuple)
    full, busy = told
    assert (type(full), full.cause, full.message, str(full)) == (DownloadError, Cause.NO_SPACE, "full", "full")
    assert (type(busy), busy.cause, busy.retry_after) == (TransientError, Cause.UNREACHABLE, 2.5)


def test_keys_that_are_lent_are_asked_for_once_a_minute_and_when_they_are_refused() -> None:
    asked: list[Keys | None] = []
    now = [0.0]

    def ask(refused: Keys | None) -> Keys:
        asked.append(refused)
        return Keys(f"key-{len(asked)}", "secret")

    lent = Lent(ask, lambda: now[0])
    first = lent.keys()
    assert first is not None
    assert lent.keys() == first
    assert lent.renewed(first)
    # Another thread, with the keys of before.
    assert lent.renewed(first)
    assert asked == [None, first]
    now[0] = 61.0
    assert lent.keys() == Keys("key-3", "secret")


def test_a_worker_that_hears_nothing_stands_still_until_it_does(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    parent = Channel(ours)
    limits = Limits(lock_patience_seconds=0.01)
    worker = _Worker(Channel(theirs), Job(Request("s3://b/m", tmp_path), "r", (), limits, 1), lambda: 0.0)
    worker._hears.clear()
    standing = threading.Thread(target=worker._stand_still)
    standing.start()
    standing.join(STANDS_SECONDS)
    assert standing.is_alive()

    def listen() -> None:
        with suppress(EOFError):
            worker._listen()

    listening = threading.Thread(target=listen)
    listening.start()
    parent.send(3)
    standing.join()
    assert worker._allowance == 3
    # And silence makes it stand still again.
    while worker._hears.is_set():
        listening.join(0.001)
    parent.close()
    listening.join()
