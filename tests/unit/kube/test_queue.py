"""The queue hands each key to one worker at a time, loses no change, and backs off per key."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.kube.queue import Backoff, WorkQueue
from matrixinfer.kube.resource import Key

A, B = Key("n", "a"), Key("n", "b")
Virtual = Callable[[Any], Any]


def test_a_waiting_key_is_handed_out_once(virtual: Virtual) -> None:
    async def main() -> None:
        queue = WorkQueue("t")
        queue.add(A)
        queue.add(A)
        queue.add(B)
        assert (await queue.get(), await queue.get(), len(queue)) == (A, B, 0)

    virtual(main())


def test_a_key_added_during_its_work_comes_back_after_it(virtual: Virtual) -> None:
    async def main() -> None:
        queue = WorkQueue("t")
        queue.add(A)
        assert await queue.get() == A
        queue.add(A)
        queue.add(B)
        assert await queue.get() == B, "A is being worked on: no second worker gets it"
        queue.done(A)
        assert await queue.get() == A

    virtual(main())


def test_of_several_delays_the_earliest_counts(virtual: Virtual) -> None:
    async def main() -> float:
        queue = WorkQueue("t")
        start = asyncio.get_running_loop().time()
        queue.add_after(A, 30)
        queue.add_after(A, 5)
        queue.add_after(A, 60)
        assert await queue.get() == A
        queue.done(A)
        assert queue.idle, "the later ones are superseded"
        return asyncio.get_running_loop().time() - start

    assert abs(virtual(main()) - 5) < 0.01


def test_handing_out_a_key_cancels_what_was_due_later(virtual: Virtual) -> None:
    async def main() -> None:
        queue = WorkQueue("t")
        queue.add_after(A, 30)
        queue.add(A)
        assert await queue.get() == A
        queue.done(A)
        assert queue.idle

    virtual(main())


def test_retries_back_off_and_forget_starts_over(virtual: Virtual) -> None:
    async def main() -> list[float]:
        queue = WorkQueue("t", backoff=Backoff(1.0, 5.0, 2.0, 0.0), draw=lambda: 0.0)
        delays = [queue.retry(A) for _ in range(5)]
        queue.forget(A)
        return [*delays, queue.retry(A), queue.retry(B, at_least=9.0)]

    assert virtual(main()) == [1, 2, 4, 5, 5, 1, 9]


def test_shutting_down_wakes_every_worker_and_drops_the_rest(virtual: Virtual) -> None:
    async def main() -> None:
        queue = WorkQueue("t")
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(queue.get()) for _ in range(3)]
            await asyncio.sleep(0)
            queue.add_after(A, 5)
            queue.shut_down()
        assert [worker.result() for worker in workers] == [None, None, None]
        queue.add(B)
        assert await queue.get() is None
        assert queue.idle

    virtual(main())


@given(failures=st.integers(0, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_positive_and_capped(failures: int, draw: float) -> None:
    backoff = Backoff(base_seconds=0.1, cap_seconds=60.0, jitter=0.25)
    assert 0.075 <= backoff.delay(failures, draw) <= 60.0


@given(draw=st.floats(0, 1, exclude_max=True))
def test_delays_grow_with_failures(draw: float) -> None:
    delays = [Backoff(jitter=0.25).delay(n, draw) for n in range(1, 10)]
    assert delays == sorted(delays)
