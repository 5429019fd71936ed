"""Whatever interrupts a download, and however often: the run that is left alone ends with the same bytes and digest."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.downloader.core.manifest import Listing, Ready, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.sources.folder import FolderSource
from matrixinfer.downloader.sources.source import Body

LIMITS = Limits(
    part_bytes=1 << 10, connections=3, tries=3, first_wait_seconds=0, longest_wait_seconds=0.001, reserve_bytes=0
)
MODEL = {"config.json": b"{}", "a/w.bin": random.Random(1).randbytes(9_500), "b.bin": random.Random(2).randbytes(4_096)}

ENDS = {
    "killed": DownloadError(Cause.CANCELLED, "killed"),
    "denied": DownloadError(Cause.ACCESS_DENIED, "expired"),
    "crashed": RuntimeError("a bug"),
    "busy": TransientError("busy"),
}


class Failing:
    """A folder whose reads fail in one way after a number of them, cutting the last one short."""

    def __init__(self, folder: FolderSource, after: int, end: str) -> None:
        self._folder = folder
        self._left = after
        self._end = end
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        return self._folder.listing()

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator["Body | CutBody"]:
        with self._lock:
            self._left -= 1
            fails = self._left < 0
        with self._folder.read(file, part) as chunks:
            yield CutBody(chunks, ENDS[self._end]) if fails else chunks

    def promise(self, _file: SourceFile) -> None:
        """Nobody vouches."""

    def abort(self) -> None:
        """Nobody waits."""


class CutBody:
    """Half of what comes first, then the end."""

    promise = None

    def __init__(self, body: Body, end: Exception) -> None:
        self._body = body
        self._end = end
        self._cut = False

    def readinto(self, buffer: memoryview) -> int:
        if self._cut:
            raise self._end
        self._cut = True
        return self._body.readinto(buffer) // 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    folder = tmp_path_factory.mktemp("source")
    for path, content in MODEL.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    return FolderSource(folder, folder)


async def run(output: Path, source: FolderSource | Failing) -> Ready:
    tools = Tools(pod="p", now=lambda: datetime(2026, 11, 24, tzinfo=UTC), monotonic=monotonic)
    return await fetch(Request("file:///model", output), lambda: source, LIMITS, tools)


@settings(deadline=None)
@given(history=st.lists(st.tuples(st.integers(0, 17), st.sampled_from(sorted(ENDS))), max_size=6))
def test_the_last_run_ends_right(
    tmp_path_factory: pytest.TempPathFactory, source: FolderSource, history: list[tuple[int, str]]
) -> None:
    output = tmp_path_factory.mktemp("run") / "model"

    async def live() -> str:
        for after, end in history:
            with suppress(DownloadError, RuntimeError):
                await run(output, Failing(source, after, end))
                continue
            assert not (output / "READY").exists()
        return (await run(output, source)).digest

    assert asyncio.run(live()) == asyncio.run(run(tmp_path_factory.mktemp("clean") / "model", source)).digest
    assert {p: (output / p).read_bytes() for p in MODEL} == MODEL
    assert sorted(p.name for p in output.parent.iterdir()) == [".matrixinfer-model", "model"]
    assert [p.name for p in (output.parent / ".matrixinfer-model").iterdir()] == ["holders"]
