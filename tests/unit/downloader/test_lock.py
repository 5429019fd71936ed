"""One download per folder: who waits is told for whom, for how long, and never locks a file that is gone."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.lock import Lock, held


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited_for: list[str] = []

    def monotonic(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def lock(path: Path, clock: Clock, *, pod: str = "me", wait_seconds: float = 10):
    return held(
        path,
        pod=pod,
        wait_seconds=wait_seconds,
        monotonic=clock.monotonic,
        pause=clock.pause,
        waiting=clock.waited_for.append,
    )


async def test_a_free_lock_is_had_at_once(tmp_path: Path) -> None:
    clock = Clock()
    async with lock(tmp_path / "work" / "lock", clock) as mine:
        mine.check()
    assert clock.now == 0


async def test_who_waits_learns_for_whom_and_gives_up_at_the_deadline(tmp_path: Path) -> None:
    clock = Clock()
    async with lock(tmp_path / "lock", clock, pod="first"):
        with pytest.raises(DownloadError, match="first has been downloading") as caught:
            async with lock(tmp_path / "lock", clock, pod="second"):
                pass
    assert caught.value.cause is Cause.LOCK_TIMEOUT
    assert clock.now == 10
    assert set(clock.waited_for) == {"first"}


async def test_the_lock_is_had_as_soon_as_it_is_free(tmp_path: Path) -> None:
    clock = Clock()
    order: list[str] = []

    async def second() -> None:
        async with lock(tmp_path / "lock", clock, pod="second", wait_seconds=10**6):
            order.append("second")

    async with asyncio.TaskGroup() as tasks, lock(tmp_path / "lock", clock, pod="first"):
        tasks.create_task(second())
        await asyncio.sleep(0)
        order.append("first")
    assert order == ["first", "second"]


async def test_the_file_stays_so_that_all_lock_the_same_one(tmp_path: Path) -> None:
    async with lock(tmp_path / "lock", Clock()):
        inode = (tmp_path / "lock").stat().st_ino
    async with lock(tmp_path / "lock", Clock()):
        assert (tmp_path / "lock").stat().st_ino == inode


async def test_a_file_that_was_removed_under_its_holder_is_not_confused_with_the_new_one(tmp_path: Path) -> None:
    async with lock(tmp_path / "lock", Clock(), pod="first") as first:
        (tmp_path / "lock").unlink()
        async with lock(tmp_path / "lock", Clock(), pod="second"):
            with pytest.raises(DownloadError, match="second took") as caught:
                first.check()
    assert caught.value.cause is Cause.LOCK_LOST


def test_a_lock_whose_file_is_gone_is_lost(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="another process"):
        Lock(tmp_path / "nothing", "token").check()


async def test_being_told_to_stop_ends_the_waiting(tmp_path: Path) -> None:
    async def told_to_stop(_seconds: float) -> None:
        raise DownloadError(Cause.CANCELLED, "stop")

    clock = Clock()
    async with lock(tmp_path / "lock", clock):
        clock.pause = told_to_stop
        with pytest.raises(DownloadError) as caught:
            async with lock(tmp_path / "lock", clock):
                pass
    assert caught.value.cause is Cause.CANCELLED


async def test_other_users_may_wait_for_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        async with lock(tmp_path / "lock", Clock(), pod="first"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
            assert json.loads((tmp_path / "lock").read_bytes())["pod"] == "first"
    finally:
        os.umask(before)
