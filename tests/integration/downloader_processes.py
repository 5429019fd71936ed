"""Processes that download into one cache, killed or not: run by test_downloader_processes, as a script of its own.

    python downloader_processes.py SCENARIO.json

Everything is loaded once, then each download is a fork: a real process with its own descriptors and locks, that costs
milliseconds. A process is killed (SIGKILL, by itself) at its n-th step, where a step is a change of the file system
(told by the interpreter's audit hook) or a buffer of bytes read from the source: so every gap between two steps is a
place to die. What all of them read from the source is counted in memory that they share.
"""

import asyncio
import fcntl
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matrixinfer.downloader import lock
from matrixinfer.downloader.core.manifest import SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.sources.folder import FolderSource
from matrixinfer.downloader.sources.source import Body

CHANGES = frozenset(("os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "open"))
LIMITS = Limits(part_bytes=1 << 14, buffer_bytes=1 << 12, connections=3, reserve_bytes=0)


class Counted:
    """The bytes that all processes read."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 4096)
        self._own = 0

    def add(self, count: int, slot: int) -> None:
        self._own += count
        struct.pack_into("q", self._shared, slot * 8, self._own)

    @property
    def total(self) -> int:
        return sum(struct.unpack_from("q", self._shared, slot * 8)[0] for slot in range(512))


class Dying:
    """A folder as source; tells of every buffer that is read, and dies when its time has come."""

    def __init__(self, folder: Path, counted: Counted, slot: int, steps: int) -> None:
        self._folder = FolderSource(folder, folder)
        self._counted = counted
        self._slot = slot
        self._steps = steps
        self.listing = self._folder.listing
        self.promise = self._folder.promise
        self.abort = self._folder.abort

    def step(self) -> None:
        self._steps -= 1
        if not self._steps:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if event in CHANGES and writes:
            self.step()

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator["DyingBody"]:
        with self._folder.read(file, part) as body:
            yield DyingBody(body, self)

    def took(self, count: int) -> None:
        self._counted.add(count, self._slot)
        self.step()


class DyingBody:
    """One range of it."""

    promise = None

    def __init__(self, body: Body, source: Dying) -> None:
        self._body = body
        self._source = source

    def readinto(self, buffer: memoryview) -> int:
        count = self._body.readinto(buffer)
        self._source.took(count)
        return count


def download(scenario: dict[str, Any], counted: Counted, slot: int, steps: int, node: str) -> int:
    """The life of one process; returns its exit code."""
    source = Dying(Path(scenario["source"]), counted, slot, steps)
    if steps:
        sys.addaudithook(source.audit)
    cache = Path(scenario["cache"])
    request = Request("file:///model", cache / "versions" / "m", cache=cache)
    if scenario.get("plain"):
        request = Request("file:///model", cache)
    limits = replace(LIMITS, lock_patience_seconds=lock_patience_seconds(scenario))
    tools = Tools(pod=f"pod-{slot}", node=node, now=lambda: datetime.now(UTC), monotonic=time.monotonic)
    try:
        ready = asyncio.run(fetch(request, lambda: source, limits, tools))
    # Whatever it was, it is the exit code; the test shows what was said.
    except Exception as exc:  # noqa: BLE001
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        return 1
    Path(scenario["digests"], str(slot)).write_text(ready.digest)
    return 0


def lock_patience_seconds(scenario: dict[str, Any]) -> float:
    """Where one comes after the other, a holder that is not known to be dead is dead nevertheless.

    Where nobody dies, one that stands still waits for a processor or the disk.
    """
    if "kills" in scenario:
        return 0.05
    return 3.0 if "first_dies_at" in scenario else 60.0


def forked(scenario: dict[str, Any], counted: Counted, slot: int, steps: int = 0, node: str = "") -> int:
    """Start one; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        shift = float(scenario.get("clock_shift_seconds", 0)) * (-1) ** slot
        if shift:
            real = time.time
            time.time = lambda: real() + shift
        code = download(scenario, counted, slot, steps, node)
    finally:
        os._exit(code)


def killed_again_and_again(scenario: dict[str, Any], counted: Counted) -> dict[str, Any]:
    """Kill one process after the other, then let one end."""
    draw = random.Random(scenario["seed"])
    kills = 0
    for slot in range(1, scenario["kills"] + 1):
        pid = forked(scenario, counted, slot, steps=draw.randint(1, scenario["most_steps"]), node="here")
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            # It came to its end before its time: begin anew, with nothing.
            Path(scenario["cache"]).rename(f"{scenario['cache']}-{slot}")
    _, status = os.waitpid(forked(scenario, counted, 0, node="here"), 0)
    return {"kills": kills, "codes": [os.waitstatus_to_exitcode(status)], "bytes": counted.total}


def at_the_same_time(scenario: dict[str, Any], counted: Counted) -> dict[str, Any]:
    """Start many; the first may be one that dies."""
    nodes = scenario.get("nodes", 1)
    pids = []
    for slot in range(scenario["processes"]):
        steps = scenario.get("first_dies_at", 0) if slot == 0 else 0
        pids.append(forked(scenario, counted, slot, steps, node=f"node-{slot % nodes}"))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"codes": codes, "bytes": counted.total}


def main() -> None:
    """Play a scenario, print what came of it."""
    scenario = json.loads(Path(sys.argv[1]).read_text())
    if scenario.get("flock") == "lies":
        fcntl.flock = lambda *_: None
    lock._BEAT_SECONDS = 0.1
    lock._POLL_SECONDS = 0.02
    play = killed_again_and_again if "kills" in scenario else at_the_same_time
    sys.stdout.write(json.dumps(play(scenario, Counted())) + "\n")


if __name__ == "__main__":
    main()
