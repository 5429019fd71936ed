"""One download per folder: who waits is told for whom, for how long, and takes over from the dead only."""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from matrixinfer.downloader import lock as lock_module
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.lock import Lock, held

PATIENCE = 12.0


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited_for: list[str] = []
        self.losses: list[DownloadError] = []

    def monotonic(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def lock(
    folder: Path, clock: Clock, *, pod: str = "me", node: str = "here", wait_seconds: float = 10
) -> AbstractAsyncContextManager[Lock]:
    return held(
        folder,
        pod=pod,
        node=node,
        wait_seconds=wait_seconds,
        patience_seconds=PATIENCE,
        monotonic=clock.monotonic,
        pause=clock.pause,
        waiting=clock.waited_for.append,
        lost=clock.losses.append,
    )


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def dead_holder(folder: Path, *, node: str, pod: str = "gone") -> None:
    """What a process leaves that was killed while it held the lock."""
    own = folder / "1"
    own.mkdir(parents=True)
    (own / "alive").touch()
    device = str((own / "alive").stat().st_dev)
    (own / "beat").write_text(json.dumps({"pod": pod, "kernel": node, "device": device, "count": 7}))


async def test_a_free_lock_is_had_at_once(tmp_path: Path) -> None:
    clock = Clock()
    async with lock(tmp_path / "work" / "holders", clock) as mine:
        mine.check()
        assert mine.generation == 1
    assert clock.now == 0


async def test_who_waits_learns_for_whom_and_gives_up_at_the_deadline(tmp_path: Path) -> None:
    clock = Clock()
    async with lock(tmp_path, clock, pod="first"):
        with pytest.raises(DownloadError, match="first has been downloading") as caught:
            async with lock(tmp_path, clock, pod="second"):
                pass
    assert caught.value.cause is Cause.LOCK_TIMEOUT
    assert clock.now == 10
    assert set(clock.waited_for) == {"first"}


async def test_the_lock_is_had_as_soon_as_it_is_free_and_generations_grow(tmp_path: Path) -> None:
    clock = Clock()
    generations = []
    for _ in range(3):
        async with lock(tmp_path, clock) as mine:
            generations.append(mine.generation)
    assert (generations, clock.now) == ([1, 2, 3], 0)
    assert names(tmp_path) == ["3"]


async def test_the_dead_of_this_very_kernel_is_followed_at_once(tmp_path: Path) -> None:
    dead_holder(tmp_path, node="here")
    clock = Clock()
    async with lock(tmp_path, clock) as mine:
        assert mine.generation == 2
    assert clock.now == 0


async def test_the_dead_of_another_node_is_followed_after_it_stood_still(tmp_path: Path) -> None:
    dead_holder(tmp_path, node="elsewhere")
    clock = Clock()
    async with lock(tmp_path, clock, wait_seconds=60):
        pass
    assert PATIENCE <= clock.now < PATIENCE + 1
    assert set(clock.waited_for) == {"gone"}


async def test_a_holder_of_another_node_that_counts_is_waited_for(tmp_path: Path) -> None:
    dead_holder(tmp_path, node="elsewhere")
    clock = Clock()

    async def counting(seconds: float) -> None:
        clock.now += seconds
        beat = json.loads((tmp_path / "1" / "beat").read_text())
        (tmp_path / "1" / "beat").write_text(json.dumps({**beat, "count": int(clock.now)}))

    clock.pause = counting  # type: ignore[method-assign]
    with pytest.raises(DownloadError) as caught:
        async with lock(tmp_path, clock, wait_seconds=100):
            pass
    assert caught.value.cause is Cause.LOCK_TIMEOUT


def never_refused(*_: object) -> None:
    """A file system on which every lock succeeds."""


def not_supported(*_: object) -> None:
    raise OSError(37, "No locks available")


@pytest.mark.parametrize("flock", [never_refused, not_supported])
async def test_where_locks_lie_or_fail_the_living_is_not_overtaken_and_the_dead_is_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Callable[..., None]
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    clock = Clock()
    async with lock(tmp_path, clock, pod="first"):
        with pytest.raises(DownloadError):
            async with lock(tmp_path, clock, wait_seconds=PATIENCE - 1):
                pass
    dead_holder(tmp_path / "other", node="here")
    clock = Clock()
    async with lock(tmp_path / "other", clock, wait_seconds=60):
        pass
    assert PATIENCE <= clock.now < PATIENCE + 1


async def test_a_holder_that_slept_too_long_learns_that_it_was_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_BEAT_SECONDS", 0.001)
    clock = Clock()
    async with lock(tmp_path, clock, pod="first") as first:
        dead_holder_free = tmp_path / "2"
        dead_holder_free.mkdir()
        (dead_holder_free / "beat").write_text(json.dumps({"pod": "second", "count": 0}))
        with pytest.raises(DownloadError, match="second took over") as caught:
            first.check()
        async with asyncio.timeout(10):
            while not clock.losses:
                await asyncio.sleep(0.001)
    assert caught.value.cause is Cause.LOCK_LOST
    assert clock.losses[0].cause is Cause.LOCK_LOST


async def test_of_many_that_find_a_dead_holder_one_follows(tmp_path: Path) -> None:
    dead_holder(tmp_path, node="here")
    held_at_once, most = 0, 0

    async def one(index: int) -> None:
        nonlocal held_at_once, most
        async with lock(tmp_path, Clock(), pod=f"pod-{index}", wait_seconds=10**6):
            held_at_once += 1
            most = max(most, held_at_once)
            await asyncio.sleep(0.001)
            held_at_once -= 1

    async with asyncio.TaskGroup() as tasks:
        for index in range(8):
            tasks.create_task(one(index))
    assert most == 1
    assert names(tmp_path) == ["9"]


async def test_being_told_to_stop_ends_the_waiting(tmp_path: Path) -> None:
    async def told_to_stop(_seconds: float) -> None:
        raise DownloadError(Cause.CANCELLED, "stop")

    clock = Clock()
    async with lock(tmp_path, clock):
        clock.pause = told_to_stop  # type: ignore[method-assign]
        with pytest.raises(DownloadError) as caught:
            async with lock(tmp_path, clock):
                pass
    assert caught.value.cause is Cause.CANCELLED


async def test_other_users_may_follow(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        async with lock(tmp_path / "holders", Clock()):
            assert (tmp_path / "holders").stat().st_mode & 0o777 == 0o777
            assert (tmp_path / "holders" / "1").stat().st_mode & 0o777 == 0o777
    finally:
        os.umask(before)
