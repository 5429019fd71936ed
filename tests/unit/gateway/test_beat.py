"""Sleepers that wake together."""

import asyncio
import math

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.feeds.beat import Beat
from matrixinfer.testkit.virtual import run_virtually

seconds = st.floats(0, 5, allow_nan=False)


async def woken(beat: Beat, sleeps: list[float]) -> list[float]:
    """Seconds after which each of those who went to sleep together woke up."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def sleep(seconds: float) -> float:
        await beat.sleep(seconds)
        return loop.time() - began

    async with asyncio.TaskGroup() as tasks:
        sleeping = [tasks.create_task(sleep(seconds)) for seconds in sleeps]
    return [task.result() for task in sleeping]


@given(st.lists(seconds, min_size=1, max_size=20))
def test_nobody_sleeps_longer_than_it_wants_nor_a_beat_less_nor_not_at_all(sleeps: list[float]) -> None:
    for wanted, slept in zip(sleeps, run_virtually(woken(Beat(0.5), sleeps)), strict=True):
        # What is slept is the difference of two times, so it is exact but for their last digits.
        assert max(wanted - 0.5, 0) - 1e-9 < slept <= max(wanted, 0.5) + 1e-9
        assert slept > 0


@given(st.lists(seconds, min_size=50, max_size=50))
def test_many_wake_up_as_often_as_there_are_beats(sleeps: list[float]) -> None:
    slept = run_virtually(woken(Beat(0.5), sleeps))
    assert len(set(slept)) <= math.ceil(max(0.5, *sleeps) / 0.5)


def test_one_that_is_cancelled_lets_the_others_sleep_on() -> None:
    async def main() -> None:
        beat = Beat(1.0)
        leaving, staying = asyncio.ensure_future(beat.sleep(3)), asyncio.ensure_future(beat.sleep(3))
        await beat.sleep(1)
        leaving.cancel()
        await beat.sleep(1)
        assert not staying.done()
        await staying

    run_virtually(main())
