"""Every part is fetched once, by whoever comes first, and no connection waits for bytes that nobody fetches."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.ranges import Part, split
from matrixinfer.downloader.core.schedule import Begin, Fetch, Job, Schedule

PART = 10


class Connections:
    """A few connections that take turns in a random order, as threads do."""

    def __init__(self, sizes: list[int], width: int, seed: int) -> None:
        self.schedule = Schedule(sizes)
        self.width = width
        self.fetched: list[tuple[Job[int], Part]] = []
        self.requests = 0
        self._current: list[Job[int] | None] = [None] * width
        self._busy: list[Fetch[int] | None] = [None] * width
        self._random = random.Random(seed)

    def run(self) -> None:
        for _ in range(10_000):
            if self.schedule.done:
                return
            self._step(self._random.randrange(self.width))
        pytest.fail("it does not end")

    def _step(self, index: int) -> None:
        busy = self._busy[index]
        if busy is not None:
            part = self.schedule.take(busy)
            if part is None:
                self.schedule.ended(busy)
                self._busy[index] = None
            else:
                self.fetched.append((busy.job, part))
                if self.schedule.finished(busy.job):
                    self.schedule.settled(busy.job)
            return
        task = self.schedule.next(self._current[index], self.width)
        if isinstance(task, Begin):
            self._current[index] = task.job
            parts = split(task.job.file, PART)
            if parts:
                self.schedule.begun(task.job, parts)
            else:
                self.schedule.settled(task.job)
        elif task is not None:
            self._current[index] = task.job
            self._busy[index] = task
            self.requests += 1


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(0, 1000),
)
def test_every_part_is_fetched_once(sizes: list[int], width: int, seed: int) -> None:
    connections = Connections(sorted(sizes, reverse=True), width, seed)
    connections.run()
    assert sorted(part for _, part in connections.fetched) == sorted(p for size in sizes for p in split(size, PART))


def test_as_many_files_as_connections_are_one_request_each() -> None:
    connections = Connections([200] * 8, 1, 0)
    connections.run()
    assert connections.requests == 8


def test_one_file_is_shared_from_its_front() -> None:
    schedule = Schedule([400])
    begin = schedule.next(None, 4)
    assert isinstance(begin, Begin)
    schedule.begun(begin.job, split(400, PART))
    first, second = schedule.next(begin.job, 4), schedule.next(None, 4)
    assert isinstance(first, Fetch)
    assert isinstance(second, Fetch)
    assert [part.offset for part in [*first.parts, *second.parts]] == [0, 10, 20, 30, 40, 50, 60, 70]


def test_who_has_a_long_way_to_go_gives_back_what_it_has_not_come_to() -> None:
    schedule = Schedule([400])
    begin = schedule.next(None, 1)
    assert isinstance(begin, Begin)
    schedule.begun(begin.job, split(400, PART))
    alone = schedule.next(begin.job, 1)
    assert isinstance(alone, Fetch)
    assert len(alone.parts) == 40
    schedule.take(alone)
    helper = schedule.next(None, 2)
    assert isinstance(helper, Fetch)
    assert helper.parts[0].offset == 20
    assert len(alone.parts) == 1
