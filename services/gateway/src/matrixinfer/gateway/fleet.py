"""The worker processes: started, told the newest snapshot, listened to, replaced when they die, drained.

Owns the processes and their listeners; hands on what all workers share. Each worker has a listener of its own
(SO_REUSEPORT) that stays open here, so connections that arrive while a dead worker is being replaced wait for its
successor. The traps: a worker that hangs is as bad as a dead one, so silence is a reason to kill it; and its row on the
load board may be cleared only when its process is gone.
"""

import asyncio
import itertools
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from matrixinfer.gateway import metrics
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.types import Snapshot
from matrixinfer.gateway.health import HealthBoard
from matrixinfer.gateway.ipc import (
    Acknowledged,
    Configure,
    Drain,
    Explain,
    Explained,
    FromWorker,
    Publish,
    Report,
    Serving,
    Wanted,
    encode,
    read_from_worker,
)
from matrixinfer.gateway.metrics import Traffic
from matrixinfer.service.logging import get_logger

__all__ = ["Fleet", "listeners", "worker_count"]

log = get_logger("fleet")

_ANSWER_SECONDS = 3.0
_ASKED_FRAMES = 64
_SILENCE_SECONDS = 30.0
_RESTART_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_SECONDS = 10.0


def listeners(host: str, port: int, count: int, *, lost_seconds: float = 60.0) -> list[socket.socket]:
    """Return `count` sockets bound to the same address; with port 0 the first one chooses. Raises OSError.

    A client that acknowledges nothing for `lost_seconds` is lost.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(socket.socket(family, socket.SOCK_STREAM))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _notice_lost_clients(made[-1], int(lost_seconds))
            made[-1].bind((host, port))
            port = made[-1].getsockname()[1]
    except OSError:
        for listener in made:
            listener.close()
        raise
    return made


def _notice_lost_clients(listener: socket.socket, seconds: int) -> None:
    """Have every connection end that leads nowhere: a client without power sends no farewell, and its answer would keep
    an engine at work. Linux hands these options on to what a listener accepts.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, seconds // 2))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 6))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    # Without it the kernel goes on sending for a quarter of an hour.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, seconds) * 1000)


@dataclass(slots=True)
class _Member:
    """One running worker."""

    index: int
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    serving: bool = False
    acknowledged: int = 0
    asked: deque[bytes] = field(default_factory=lambda: deque(maxlen=_ASKED_FRAMES))
    """Questions on their way, as frames."""


class Fleet:
    """All workers of one gateway process."""

    def __init__(
        self,
        *,
        listeners: Sequence[socket.socket],
        board_fd: int,
        slots: int,
        prefix_fd: int,
        prefix_bytes: int,
        ledger_fd: int,
        ledger_entries: int,
        health_fd: int,
        config: Configure,
        traffic: Traffic,
        clock: Callable[[], float],
        wake: Callable[[Wanted], None] = lambda _wanted: None,
    ) -> None:
        """`wake` hears which servers without endpoints requests wait for, from every worker and repeatedly."""
        self._listeners = listeners
        self._board_fd = board_fd
        self._slots = slots
        self._prefix_fd = prefix_fd
        self._prefix_bytes = prefix_bytes
        self._ledger_fd = ledger_fd
        self._ledger_entries = ledger_entries
        self._health_fd = health_fd
        self._health = HealthBoard(health_fd, len(listeners), slots)
        self._board = LoadBoard(board_fd, len(listeners), slots)
        self._config = config
        self._traffic = traffic
        self._clock = clock
        self._wake = wake
        self._members: dict[int, _Member] = {}
        self._frame: tuple[int, bytes] | None = None
        self._published_at: float | None = None
        self._drain: Literal["closing", "last"] | None = None
        self._questions = itertools.count()
        self._answers: dict[int, asyncio.Queue[bytes | None]] = {}

    @property
    def board(self) -> LoadBoard:
        """The loads of all endpoints."""
        return self._board

    @property
    def traffic(self) -> Traffic:
        """What the workers counted."""
        return self._traffic

    @property
    def health(self) -> HealthBoard:
        """What the workers know of each endpoint's health."""
        return self._health

    @property
    def is_serving(self) -> bool | str:
        """True when every worker accepts connections, else a sentence."""
        serving = sum(member.serving for member in self._members.values())
        return serving == len(self._listeners) or f"{serving} of {len(self._listeners)} workers accept connections"

    @property
    def acknowledged(self) -> int:
        """The newest revision that no worker is behind of."""
        newest = self._frame[0] if self._frame else 0
        return min((member.acknowledged for member in self._members.values()), default=newest)

    def describe(self) -> object:
        """What the debug page shows."""
        return [
            {"worker": m.index, "pid": m.process.pid, "serving": m.serving, "revision": m.acknowledged}
            for m in self._members.values()
        ]

    async def explain(self, request_id: str) -> object | None:
        """Return what the workers remember of the decisions for a request; None when none of them knows it.

        A client may give several requests one name, so more than one worker may know it.
        """
        number, members = next(self._questions), tuple(self._members.values())
        answers = self._answers[number] = asyncio.Queue()
        for member in members:
            member.asked.append(encode(Explain(number, request_id)))
            member.wake.set()
        pages: list[bytes | None] = []
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                while len(pages) < len(members):
                    pages.append(await answers.get())
        except TimeoutError:
            log.warning("workers_silent", asked=len(members), answered=len(pages))
        finally:
            del self._answers[number]
        known = [msgspec.json.decode(page) for page in pages if page is not None]
        return {"workers_asked": len(members), "workers_answered": len(pages), "known_by": known} if known else None

    def publish(self, snapshot: Snapshot) -> None:
        """Let every worker route by `snapshot`; a newer one replaces what was not sent yet."""
        self._frame = (snapshot.revision, encode(Publish(snapshot)))
        self._published_at = self._clock()
        self._wake_all()

    def drain(self, step: Literal["closing", "last"]) -> None:
        """Begin a step of the end; after `last` no connection is accepted any more and `run` returns in time."""
        self._drain = step
        if step == "last":
            for listener in self._listeners:
                listener.close()
        self._wake_all()

    async def run(self) -> None:
        """Keep all workers running until they have drained. Cancelled, it kills them."""
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self._listeners)):
                tasks.create_task(self._keep(index), name=f"worker-{index}")

    async def _keep(self, index: int) -> None:
        """Keep worker `index` running. The only layer that restarts."""
        failures = 0
        while not self._is_ending():
            began = self._clock()
            try:
                member = await self._start(index)
            except OSError as exc:
                # Out of memory, processes or descriptors: the other workers must live on, and this one comes later.
                log.error("worker_not_started", worker=index, reason=exc.strerror or str(exc))
            else:
                try:
                    await self._attend(member)
                finally:
                    await self._bury(member)
                if self._is_ending():
                    return
                metrics.WORKER_RESTARTS.inc()
                log.error("worker_died", worker=index, pid=member.process.pid, code=member.process.returncode)
            failures = 0 if self._clock() - began > _HEALTHY_SECONDS else failures + 1
            await asyncio.sleep(_RESTART_SECONDS[min(failures, len(_RESTART_SECONDS) - 1)])

    def _is_ending(self) -> bool:
        return self._drain == "last"

    async def _start(self, index: int) -> _Member:
        ours, theirs = socket.socketpair()
        listener = self._listeners[index]
        options = {
            "control-fd": theirs.fileno(),
            "listener-fd": listener.fileno(),
            "board-fd": self._board_fd,
            "index": index,
            "workers": len(self._listeners),
            "slots": self._slots,
            "prefix-fd": self._prefix_fd,
            "prefix-bytes": self._prefix_bytes,
            "ledger-fd": self._ledger_fd,
            "ledger-entries": self._ledger_entries,
            "health-fd": self._health_fd,
        }
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "matrixinfer.gateway.worker",
                    *(part for name, value in options.items() for part in (f"--{name}", str(value))),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(
                        theirs.fileno(),
                        listener.fileno(),
                        self._board_fd,
                        self._prefix_fd,
                        self._ledger_fd,
                        self._health_fd,
                    ),
                )
        except OSError:
            ours.close()
            raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        member = self._members[index] = _Member(index, process, reader, writer)
        log.info("worker_started", worker=index, pid=process.pid)
        return member

    async def _attend(self, member: _Member) -> None:
        """Talk with a worker until its process has ended."""
        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(self._listen(member)), tasks.create_task(self._tell(member))]
            await member.process.wait()
            for task in talking:
                task.cancel()

    async def _bury(self, member: _Member) -> None:
        if member.process.returncode is None:
            member.process.kill()
            await member.process.wait()
        member.writer.close()
        del self._members[member.index]
        self._board.clear(member.index)
        self._health.clear(member.index)
        self._traffic.forget(member.index)
        self._count_serving()

    async def _listen(self, member: _Member) -> None:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await read_from_worker(member.reader)
            except TimeoutError:
                log.error("worker_silent", worker=member.index, seconds=_SILENCE_SECONDS)
                member.process.kill()
                return
            except ValueError as exc:
                log.error("worker_unintelligible", worker=member.index, reason=str(exc))
                member.process.kill()
                return
            if message is None:
                return
            self._note(member, message)

    def _note(self, member: _Member, message: FromWorker) -> None:
        match message:
            case Serving():
                member.serving = True
                self._count_serving()
            case Acknowledged(revision):
                member.acknowledged = revision
                self._time_publishing()
            case Report(stats):
                self._traffic.report(member.index, stats)
            case Explained(number, page):
                if number in self._answers:
                    self._answers[number].put_nowait(page)
            case Wanted():
                self._wake(message)

    def _time_publishing(self) -> None:
        """Observe how long it took until every worker routes by the newest snapshot, once: a worker that comes in the
        place of another takes a snapshot that has long been published.
        """
        if self._published_at is not None and self._frame and self.acknowledged == self._frame[0]:
            metrics.PUBLISH_SECONDS.observe(self._clock() - self._published_at)
            self._published_at = None

    async def _tell(self, member: _Member) -> None:
        """Send what is new whenever something is. A worker that does not read for long is killed by `_listen`."""
        member.writer.write(encode(self._config))
        sent_revision, sent_step = 0, None
        while True:
            member.wake.clear()
            if self._frame is not None and self._frame[0] != sent_revision:
                sent_revision = self._frame[0]
                member.writer.write(self._frame[1])
            if self._drain is not None and self._drain != sent_step:
                sent_step = self._drain
                member.writer.write(encode(Drain(sent_step)))
            while member.asked:
                member.writer.write(member.asked.popleft())
            try:
                await member.writer.drain()
            except ConnectionError:
                # The process is ending; `_attend` waits for that.
                return
            await member.wake.wait()

    def _wake_all(self) -> None:
        for member in self._members.values():
            member.wake.set()

    def _count_serving(self) -> None:
        metrics.WORKERS_SERVING.set(sum(member.serving for member in self._members.values()))


def worker_count(wanted: int) -> int:
    """Return how many workers to run: `wanted`, or one for each CPU that the process may use."""
    return wanted or len(os.sched_getaffinity(0))
