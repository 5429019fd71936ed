"""Work on threads: results and errors come back, and a cancelled await waits until its thread has noticed."""

import asyncio
import threading

import pytest

from matrixinfer.downloader.blocking import in_thread


async def test_the_result_comes_back() -> None:
    assert await in_thread(lambda: threading.current_thread().name, name="worker") == "worker"


async def test_an_error_comes_back_as_itself() -> None:
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await in_thread(broken, name="worker")


async def test_a_cancelled_await_waits_for_the_thread_to_notice() -> None:
    stop, ended = threading.Event(), threading.Event()

    def work() -> None:
        stop.wait(5)
        ended.set()

    waiting = asyncio.ensure_future(in_thread(work, name="worker"))
    await asyncio.sleep(0)
    stop.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
