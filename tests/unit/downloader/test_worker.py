"""A worker is as alive as its parent."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.worker import _Worker
from matrixinfer.downloader.workers import Channel, Job

STANDS_SECONDS = 0.05


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
