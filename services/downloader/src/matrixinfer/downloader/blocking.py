"""Blocking work off the event loop, on daemon threads.

asyncio's own pool is joined when the process ends, so one read that hangs would hold the pod until it is
killed; a daemon thread does not. The trap: a cancelled await does not stop its thread, so the caller sets its stop
event first, and the cancellation waits here, for a bounded time, until the thread has noticed.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")

_NOTICE_SECONDS = 5.0


async def in_thread(work: Callable[[], T], *, name: str) -> T:
    """Run `work` on a thread of its own and return what it returns, or raise what it raises."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            # Without an error `result` is what work returned.
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = work(), None
        # Whatever it was, it is raised again where the result is awaited.
        except BaseException as exc:  # noqa: BLE001
            outcome = None, exc
        # The loop may be closed already when the process is on its way out; nobody waits then.
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if not done.done():
            await asyncio.wait((done,), timeout=_NOTICE_SECONDS)
        if done.done() and not done.cancelled():
            done.exception()
        raise
