"""Downloaders that start in milliseconds: the program is loaded once, and each process is a fork of that.

A second of the processor is what `python -m matrixinfer.downloader` takes to load. A fork is as real a process: it has
its own arguments, environment, descriptors and signals, and ends with its own exit code.
"""

import os
from collections.abc import Mapping, Sequence
from io import FileIO
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from matrixinfer.downloader.__main__ import main

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        # What started the tests; every process looks for it.
        "__main__",
        __name__,
        # What the program itself loads when it is needed.
        "matrixinfer.downloader.peers.serve",
        "matrixinfer.downloader.peers.swarm",
        "matrixinfer.downloader.report",
    ]
)


class Fork:
    """One downloader."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it with these arguments, and with nothing but this in its environment."""
        reader, writer = _CONTEXT.Pipe(duplex=False)
        self.process: ForkServerProcess = _CONTEXT.Process(
            target=_become, args=(list(arguments), dict(environment), writer), daemon=True
        )
        self.process.start()
        writer.close()
        self.output = FileIO(os.dup(reader.fileno()))
        """What it says on stdout and stderr; ends when it does."""
        reader.close()

    def end(self) -> int:
        """Return its exit code, once all it said was read."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return code

    def kill(self) -> None:
        """End it without a word, if it still runs."""
        self.process.kill()
        self.process.join()
        self.output.close()


def _become(arguments: Sequence[str], environment: Mapping[str, str], output: Connection) -> None:
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    main(arguments)
