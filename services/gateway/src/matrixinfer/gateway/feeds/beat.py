"""Sleep for many that wakes them together: a process that wakes up seldom costs less than one that wakes up often.

Owns one timer for each beat that somebody sleeps to. Refuses exactness: a sleep ends up to a beat early, so that it
keeps within what the sleeper was promised, but never before the next beat.
"""

import asyncio

__all__ = ["Beat"]


class Beat:
    """Wakes sleepers every so many seconds."""

    def __init__(self, seconds: float) -> None:
        """Beats are `seconds` apart."""
        self._seconds = seconds
        self._sleepers: dict[int, asyncio.Event] = {}

    async def sleep(self, seconds: float) -> None:
        """Sleep until the last beat within `seconds`, or the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        beat = int(max(now + seconds, now + self._seconds) / self._seconds)
        if beat not in self._sleepers:
            self._sleepers[beat] = asyncio.Event()
            loop.call_at(beat * self._seconds, self._strike, beat)
        await self._sleepers[beat].wait()

    def _strike(self, beat: int) -> None:
        self._sleepers.pop(beat).set()
