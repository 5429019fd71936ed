"""A loop, a transport and tasks that do nothing by themselves: a protocol is driven through them step by step.

They are as strict as the real ones: writing after the end of the stream is an error, a paused transport is fed
nothing, and a timer that was cancelled never fires.
"""

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Cancelled(BaseException):
    """What a cancelled task sees; nothing may swallow it."""


class Timer:
    def __init__(self, when: float, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._when = when
        self._call = call
        self._arguments = arguments
        self.is_cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.is_cancelled = True

    def fire(self) -> None:
        self._call(*self._arguments)


class Loop:
    """Time that moves only by `advance`; what shall be called soon is called by `turn`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.soon: deque[Callable[[], None]] = deque()

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_at(self, when: float, call: Callable[..., None], *arguments: Any) -> Timer:
        timer = Timer(when, call, arguments)
        self.timers.append(timer)
        return timer

    def call_later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> Timer:
        return self.call_at(self.now + seconds, call, *arguments)

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def turn(self) -> bool:
        """Call what was to be called first; False when there is nothing."""
        if not self.soon:
            return False
        self.soon.popleft()()
        return True

    @property
    def waiting(self) -> list[Timer]:
        self.timers = [timer for timer in self.timers if not timer.is_cancelled]
        return self.timers

    def advance(self) -> bool:
        """Go to the next timer and fire it; False when there is none."""
        if not self.waiting:
            return False
        timer = min(self.timers, key=Timer.when)
        self.timers.remove(timer)
        self.now = max(self.now, timer.when())
        timer.fire()
        return True


@types.coroutine
def turn() -> Generator[None, None, None]:
    """Let everybody else go first."""
    yield


class Task:
    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._is_cancelled = False
        self._waits_for: asyncio.Future[Any] | None = None
        self.is_done = False

    @property
    def can_go_on(self) -> bool:
        return self._is_cancelled or self._waits_for is None or self._waits_for.done()

    def cancel(self) -> bool:
        self._is_cancelled = True
        return not self.is_done

    def step(self) -> None:
        try:
            if self._is_cancelled:
                self._is_cancelled = False
                waits_for = self._work.throw(Cancelled())
            else:
                waits_for = self._work.send(None)
        except (StopIteration, Cancelled):
            self.is_done = True
            return
        self._waits_for = waits_for if isinstance(waits_for, asyncio.Future) else None
        if self._waits_for is not None:
            # As asyncio's tasks do when they have seen what is waited for.
            self._waits_for._asyncio_future_blocking = False


class Tasks:
    """Stands in for a TaskGroup; nothing runs until `step`."""

    def __init__(self) -> None:
        self.running: deque[Task] = deque()

    def create_task(self, work: Coroutine[Any, Any, None]) -> Task:
        task = Task(work)
        self.running.append(task)
        return task

    def step(self) -> bool:
        """Let the oldest task that can take one step; False when none can."""
        task = next((task for task in self.running if task.can_go_on), None)
        if task is None:
            return False
        self.running.remove(task)
        task.step()
        if not task.is_done:
            self.running.append(task)
        return True


class Transport:
    """A connected stream socket; `out` is what the peer received."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.is_reading = True
        self.has_ended = False
        self.was_aborted = False
        self._is_closing = False

    def write(self, data: bytes) -> None:
        assert not self.has_ended, f"written after the end of the stream: {bytes(data)!r}"
        if not self._is_closing:
            self.out += data

    def write_eof(self) -> None:
        self.has_ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = self.was_aborted = True

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, **_limits: int) -> None:
        pass

    def get_extra_info(self, _name: str) -> None:
        return None
