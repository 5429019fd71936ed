"""An answerer at work without a task: nearly every answer waits once, for its engine.

An answerer is begun in the call that brought its request, and goes on in the very call that ends what it waits for,
when that is an `Ending`: no task, no turn of the loop. One that waits for anything else becomes a task of the group.
The traps: until then there is no current task, so who needs one (`asyncio.timeout`) has to wait for a turn of the loop
first; and whoever settles an `Ending` must expect that the answerer does all the rest before the call returns.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Ending", "Running"]

T = TypeVar("T")


class Ending(asyncio.Future[T]):
    """A future whose settling wakes a `Running` at once; to a task it is a future like any other."""

    wake: Callable[[], None] | None = None

    def settle(self, result: T) -> None:
        """Set the result, unless there is one."""
        if not self.done():
            self.set_result(result)
            self._wake()

    def give_up(self) -> None:
        """Cancel who waits, unless there is a result."""
        if not self.done():
            self.cancel()
            self._wake()

    def _wake(self) -> None:
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()


class Running:
    """One answerer from its begin to its end."""

    __slots__ = ("_coroutine", "_ending", "_over", "_task", "_tasks")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        tasks: asyncio.TaskGroup,
        over: Callable[[BaseException | None], None],
    ) -> None:
        """`over` is told the end, with what the answerer raised."""
        self._coroutine = coroutine
        self._tasks = tasks
        self._over = over
        self._task: asyncio.Task[None] | None = None
        self._ending: Ending[Any] | None = None

    def go_on(self) -> None:
        """Run until there is something to wait for."""
        try:
            waited = self._coroutine.send(None)
        except StopIteration:
            self._over(None)
        # The edge of one answer, as `over` says; what ends the process goes on.
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            self._over(exc)
        else:
            if type(waited) is Ending:
                self._ending, waited.wake = waited, self.go_on
            else:
                self._ending, rest = None, self._rest(waited)
                # Begun by hand: a task that is cancelled before its first step would never enter it.
                rest.send(None)
                self._task = self._tasks.create_task(rest)

    def cancel(self) -> None:
        """Cancel it where it waits."""
        if self._task is not None:
            self._task.cancel()
        elif self._ending is not None:
            self._ending.give_up()

    async def _rest(self, waited: object) -> None:
        error: BaseException | None = None
        try:
            await _resumed(self._coroutine, waited)
        # As in `go_on`. A cancelled task that ends like one that was not is all the same to the group.
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            error = exc
        finally:
            self._task = None
            self._over(error)


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, None], waited: object) -> Generator[object, None, None]:
    """Go on with a coroutine that was begun by hand and waits for something; this one is begun by hand, too."""
    waits: tuple[object, ...] = None, waited
    try:
        while True:
            try:
                yield from waits
            # Whatever is thrown in is the coroutine's to handle.
            except BaseException as exc:  # noqa: BLE001
                waits = (coroutine.throw(exc),)
            else:
                waits = (coroutine.send(None),)
    except StopIteration:
        return
