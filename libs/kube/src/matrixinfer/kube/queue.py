"""A queue of keys: deduplicating, delaying, with back-off per key.

Owns when a key is handed to a worker. Refuses to know why. A key that is added while a worker has it is handed out once
more afterwards, so no two workers ever hold one key and no change is missed. Time is the event loop's, so a loop with
virtual time makes every test of it exact.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from matrixinfer.kube import metrics
from matrixinfer.kube.resource import Key

__all__ = ["Backoff", "WorkQueue"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays from `base_seconds`, growing by `factor` up to `cap_seconds`, each cut by up to `jitter` of itself."""

    base_seconds: float = 0.1
    cap_seconds: float = 120.0
    factor: float = 2.0
    jitter: float = 0.25

    def delay(self, failures: int, draw: float) -> float:
        """Return the seconds to wait after that many failures in a row; `draw` is uniform in [0, 1)."""
        # The exponent is bounded because 2.0 ** 1100 raises.
        full = min(self.cap_seconds, self.base_seconds * self.factor ** min(max(failures, 1) - 1, 64))
        return full * (1.0 - self.jitter * draw)


class WorkQueue:
    """Keys waiting for a worker. Everything but `get` is synchronous; use it from one event loop."""

    def __init__(self, name: str, *, backoff: Backoff | None = None, draw: Callable[[], float] = random.random) -> None:
        self.name = name
        self._backoff = backoff or Backoff()
        self._draw = draw
        self._ready: asyncio.Queue[Key | None] = asyncio.Queue()
        self._waiting: dict[Key, float] = {}
        self._working: dict[Key, float] = {}
        self._delayed: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._closed = False
        self._depth = metrics.QUEUE_DEPTH.labels(name)
        self._adds = metrics.QUEUE_ADDS.labels(name)
        self._retries = metrics.QUEUE_RETRIES.labels(name)
        self._wait_seconds = metrics.QUEUE_WAIT_SECONDS.labels(name)
        self._work_seconds = metrics.QUEUE_WORK_SECONDS.labels(name)
        metrics.QUEUE_UNFINISHED.labels(name).set_function(lambda: sum(self._ages()))
        metrics.QUEUE_LONGEST.labels(name).set_function(lambda: max(self._ages(), default=0.0))

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """True when nothing waits, is under way or is due later."""
        return not (self._waiting or self._working or self._delayed)

    def add(self, key: Key) -> None:
        """Make the key wait for a worker; a key that waits already is not added twice."""
        if self._closed or key in self._waiting:
            return
        self._waiting[key] = self._now()
        self._adds.inc()
        self._depth.set(len(self._waiting))
        if key not in self._working:
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Add the key later; of several such requests the earliest counts, and handing the key out cancels it."""
        if self._closed:
            return
        if seconds <= 0:
            self.add(key)
            return
        due = self._now() + seconds
        pending = self._delayed.get(key)
        if pending is not None:
            if pending.when() <= due:
                return
            pending.cancel()
        self._delayed[key] = asyncio.get_running_loop().call_at(due, self._release, key)

    def retry(self, key: Key, *, at_least: float = 0.0) -> float:
        """Add the key after its back-off, or after `at_least` seconds when that is longer; returns the delay."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = max(at_least, self._backoff.delay(failures, self._draw()))
        self._retries.inc()
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """Start the key's back-off over."""
        self._failures.pop(key, None)

    def failures(self, key: Key) -> int:
        """Return how often the key was retried since it was last forgotten."""
        return self._failures.get(key, 0)

    async def get(self) -> Key | None:
        """Return the next key, or None once the queue is shut down. Call `done` with the key afterwards."""
        key = await self._ready.get()
        if self._closed or key is None:
            # Passed on, so that every waiting worker wakes.
            self._ready.put_nowait(None)
            return None
        now = self._now()
        self._wait_seconds.observe(now - self._waiting.pop(key))
        self._depth.set(len(self._waiting))
        self._working[key] = now
        if (pending := self._delayed.pop(key, None)) is not None:
            # The pass that begins now looks at everything and says itself when to look again.
            pending.cancel()
        return key

    def done(self, key: Key) -> None:
        """Say that the worker has finished with the key; changes since then bring it back."""
        self._work_seconds.observe(self._now() - self._working.pop(key))
        if key in self._waiting and not self._closed:
            self._ready.put_nowait(key)

    def shut_down(self) -> None:
        """Hand out nothing more; keys that wait are dropped, because the next start looks at every object anyway."""
        self._closed = True
        for pending in self._delayed.values():
            pending.cancel()
        self._delayed.clear()
        self._waiting.clear()
        self._depth.set(0)
        self._ready.put_nowait(None)

    def _release(self, key: Key) -> None:
        self._delayed.pop(key, None)
        self.add(key)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _ages(self) -> list[float]:
        if not self._working:
            return []
        try:
            now = self._now()
        except RuntimeError:  # asked from a thread that serves metrics
            return []
        return [now - since for since in tuple(self._working.values())]
