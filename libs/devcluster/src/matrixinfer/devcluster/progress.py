"""Telling the user what happens: what is done now, how long it has taken, what is waited for and why.

Owns the rule that there is never a silent quarter of a minute. Lines go to stderr, so that what a command prints is
its result.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from matrixinfer.devcluster.errors import ClusterError

__all__ = ["Progress"]

_SILENCE_SECONDS = 10.0
_POLL_SECONDS = 0.5


class Progress:
    """Lines with the seconds since the start."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._write = write or _to_stderr
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """Say what happens now."""
        self._write(f"[{self.seconds:6.1f} s] {text}")

    def wait(self, what: str, why_not: Callable[[], str], seconds: float) -> None:
        """Wait until `why_not` returns nothing; says its answer whenever that changes, and now and then anyway."""
        begun = said_at = time.monotonic()
        said = ""
        while reason := why_not():
            now = time.monotonic()
            if now - begun > seconds:
                raise ClusterError(f"{what}: not within {seconds:.0f} s; {reason}")
            if reason != said or now - said_at > _SILENCE_SECONDS:
                self.say(f"  waiting for {what}: {reason}")
                said, said_at = reason, now
            time.sleep(_POLL_SECONDS)

    def run(self, argv: Sequence[str], folder: Path) -> list[str]:
        """Run a program, saying what it reports on stderr as it comes; returns the lines of its stdout."""
        with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("w+") as report:
            process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=report)
            try:
                with Path(report.name).open(encoding="utf-8", errors="replace") as lines:
                    last = self._narrate(process, lines.readline)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            if process.returncode != 0:
                raise ClusterError(f"`{' '.join(argv)}` ended with {process.returncode}; it said last: {last}")
            output.seek(0)
            return output.read().splitlines()

    def _narrate(self, process: "subprocess.Popen[bytes]", next_line: Callable[[], str]) -> str:
        last, said_at = "nothing", time.monotonic()
        while True:
            # Asked before reading: what was written before the end is read after it.
            ended = process.poll() is not None
            while raw := next_line():
                if line := raw.rstrip():
                    last, said_at = line, time.monotonic()
                    self.say(f"  {line}")
            if ended:
                return last
            if time.monotonic() - said_at > _SILENCE_SECONDS:
                said_at = time.monotonic()
                self.say(f"  still at it: {last}")
            time.sleep(_POLL_SECONDS)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
