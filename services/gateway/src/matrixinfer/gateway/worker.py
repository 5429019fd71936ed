"""One worker process: accepts, routes by the supervisor's snapshots, counts. Never talks to the API server.

Started as `python -m matrixinfer.gateway.worker` with inherited file descriptors: the supervisor's socket, the listener
and what all workers share (loads, prefixes, owners of stored objects, health). The listener belongs to the supervisor
too, so connections that wait while this process is restarted are not lost. When the supervisor goes away the worker
finishes its streams and ends.
"""

import argparse
import asyncio
import faulthandler
import gc
import itertools
import os
import random
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import uvloop

from matrixinfer.gateway import certificate
from matrixinfer.gateway.access import AccessLog
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.schedule.rung import Ladder, next_ladder
from matrixinfer.gateway.core.tracecontext import sampler
from matrixinfer.gateway.core.types import Server, Snapshot
from matrixinfer.gateway.export import SpanExporter
from matrixinfer.gateway.handler import Handler
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
    ToWorker,
    Wanted,
    encode,
    read_to_worker,
)
from matrixinfer.gateway.ledger import Ledger
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.stats import Stats
from matrixinfer.gateway.tracing import Tracer
from matrixinfer.gateway.wire.inlet import BACKLOG, Inlet
from matrixinfer.gateway.wire.pool import UpstreamPool, upstream_tls
from matrixinfer.gateway.wire.server import HttpInlet
from matrixinfer.service import logging
from matrixinfer.service.clock import monotonic, utcnow
from matrixinfer.service.logging import get_logger

if TYPE_CHECKING:
    from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet

__all__ = ["Worker", "main"]

log = get_logger("worker")

_REPORT_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_ACCESS_LOG_CLOSE_SECONDS = 2.0
_ARGUMENTS = (
    "control-fd",
    "listener-fd",
    "index",
    "workers",
    "slots",
    "board-fd",
    "health-fd",
    "ledger-fd",
    "ledger-entries",
    "prefix-fd",
    "prefix-bytes",
)
_EXPORT_CLOSE_SECONDS = 2.0


class Worker:
    """The composition root of a worker."""

    def __init__(
        self,
        *,
        index: int,
        config: Configure,
        board: LoadBoard,
        prefixes: PrefixIndex,
        ledger: Ledger,
        health: HealthBoard,
        listener: socket.socket,
        access: AccessLog,
    ) -> None:
        self._config = config
        self._listener = listener
        self._access = access
        self._stats = Stats()
        self._exporter, tracer = _tracing(index, config)
        self._pool = UpstreamPool(config.pool, upstream_tls(config.upstream_ca_file))
        self._handler = Handler(
            worker=index,
            pool=self._pool,
            board=board,
            row=board.row(index),
            prefixes=prefixes,
            ledger=ledger,
            health=health,
            stats=self._stats,
            access=access,
            defaults=config.traffic,
            now=utcnow,
            clock=monotonic,
            new_request_id=_request_ids(),
            wake=self._ask_for,
            asks_for_usage=config.stream_usage == "ask",
            tracer=tracer,
            decision_header=config.decision_header,
        )
        self._tls = None if config.tls is None else certificate.load(config.tls)
        context = None if self._tls is None else self._tls.context
        self._inlet: Inlet = _inlet_class(config.inlet_kind)(
            self._handler, self._handler.refuse, config.inlet, monotonic, context
        )
        self._stopping = asyncio.Event()
        self._has_snapshot = asyncio.Event()
        self._supervisor: asyncio.StreamWriter | None = None

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve until told to stop, then finish what runs, for at most the drain time."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)
        self._supervisor = writer
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self._listen_to_supervisor(reader, writer)),
                tasks.create_task(self._report_for_ever(writer)),
                tasks.create_task(self._climb_for_ever()),
                tasks.create_task(self._note_progress_for_ever()),
            ]
            if self._tls is not None and self._config.tls is not None:
                helpers.append(tasks.create_task(self._tls.watch(self._config.tls.reload_seconds)))
            try:
                await self._serve(writer)
            finally:
                for helper in helpers:
                    helper.cancel()
                self._send(writer, self._report())
                self._pool.close()
                if self._exporter is not None:
                    # A collector that is away must not hold the process, nor the supervisor's view of it, for long.
                    await asyncio.to_thread(self._exporter.close, _EXPORT_CLOSE_SECONDS)

    async def _serve(self, writer: asyncio.StreamWriter) -> None:
        await self._has_snapshot.wait()
        _collect_less_often()
        # From here on the kernel gives it connections. Said before, others would be believed to share them with it.
        self._listener.listen(BACKLOG)
        self._send(writer, Serving())
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._inlet.serve(self._listener, self._stopping))
            await self._stopping.wait()
            done, _ = await asyncio.wait((serving,), timeout=self._config.drain_seconds)
            if not done:
                log.warning("streams_cut", connections=self._inlet.open_connections)
                serving.cancel()

    def _signalled(self, number: signal.Signals) -> None:
        # A terminal sends SIGINT to the whole group; the supervisor decides what it means.
        if number is signal.SIGTERM:
            self._close()
            self._stop()

    async def _listen_to_supervisor(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (message := await read_to_worker(reader)) is not None:
            self._obey(message, writer)
        log.warning("supervisor_gone")
        self._close()
        self._stop()

    def _obey(self, message: ToWorker, writer: asyncio.StreamWriter) -> None:
        match message:
            case Publish(snapshot):
                self._install(snapshot)
                self._send(writer, Acknowledged(snapshot.revision))
            case Drain(step="closing"):
                self._close()
            case Drain():
                self._close()
                self._stop()
            case Explain(number, request_id):
                self._send(writer, Explained(number, self._handler.decisions.explain(request_id)))
            case Configure():
                log.warning("configured_twice")

    def _install(self, snapshot: Snapshot) -> None:
        self._handler.install(snapshot)
        self._pool.sweep(asyncio.get_running_loop().time(), self._handler.peers())
        self._has_snapshot.set()

    def _ask_for(self, server: Server) -> None:
        if self._supervisor is not None:
            self._send(self._supervisor, Wanted(server.namespace, server.name))

    def _close(self) -> None:
        self._handler.draining = True
        self._inlet.draining = True

    def _stop(self) -> None:
        self._stopping.set()
        # Without a snapshot there is nothing to serve and nothing to wait for.
        self._has_snapshot.set()

    async def _report_for_ever(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._pool.sweep(loop.time(), self._handler.peers())
            self._send(writer, self._report())
            try:
                await writer.drain()
            except ConnectionError:
                # The supervisor is gone; `_listen_to_supervisor` ends this worker when its streams have ended.
                return

    async def _note_progress_for_ever(self) -> None:
        while True:
            pause = self._handler.note_progress()
            await asyncio.sleep(pause)

    async def _climb_for_ever(self) -> None:
        """Measure how late the loop is and how busy the CPU, and give up as much of scheduling as that asks for."""
        ladder, used, before = Ladder(), time.process_time(), monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now, used_now = monotonic(), time.process_time()
            took = now - before
            ladder = next_ladder(ladder, took - _LOOK_SECONDS, (used_now - used) / took)
            self._handler.rung = ladder.rung
            used, before = used_now, now

    def _report(self) -> Report:
        return Report(
            self._stats.report(
                connections=self._inlet.open_connections,
                upstream_connections=self._pool.size,
                upstream_opened=self._pool.opened,
                access_log_dropped=self._access.dropped,
                spans_exported=self._exporter.exported if self._exporter else 0,
                spans_dropped=self._exporter.dropped if self._exporter else 0,
                waiting=self._handler.waiting,
            )
        )

    def _send(self, writer: asyncio.StreamWriter, message: FromWorker) -> None:
        if not writer.is_closing():
            writer.write(encode(message))


def _collect_less_often() -> None:
    """Keep the garbage collector away from what lives as long as the process, and from each handful of requests.

    Nearly everything that a request makes dies by its reference count; what is left for the collector are the cycles
    of exceptions, which can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _request_ids() -> Callable[[], str]:
    """Names for requests that came without one: drawn once per process, counted from there."""
    prefix, number = uuid.uuid4().hex[:20], itertools.count()
    return lambda: f"{prefix}{next(number):012x}"


def _tracing(index: int, config: Configure) -> tuple[SpanExporter | None, Tracer | None]:
    """Nothing at all where nobody collects: no thread, and not a branch of a request beyond asking for a tracer."""
    if not config.spans.endpoint:
        return None, None
    instance = {"matrixinfer.worker": str(index), "process.pid": str(os.getpid())}
    exporter = SpanExporter(config.spans, {**instance, **config.spans.resource})
    tracer = Tracer(
        sampler(config.sampler, config.sampler_ratio),
        exporter,
        random_bits=random.getrandbits,
        clock=monotonic,
        now_nanoseconds=time.time_ns,
    )
    return exporter, tracer


def _inlet_class(kind: Literal["httptools", "aiohttp"]) -> type[HttpInlet] | type["AiohttpInlet"]:
    if kind == "httptools":
        return HttpInlet
    # Here, because a worker that does not use it need not carry aiohttp (11 MiB).
    from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet

    return AiohttpInlet


async def _run(arguments: argparse.Namespace) -> None:
    control = socket.socket(fileno=arguments.control_fd)
    listener = socket.socket(fileno=arguments.listener_fd)
    listener.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=control)
    config = await read_to_worker(reader)
    if not isinstance(config, Configure):
        return
    logging.configure("gateway", config.log_level)
    access_fd = sys.stdout.fileno() if config.access_log else os.open(os.devnull, os.O_WRONLY)
    access = AccessLog(access_fd)
    ledger = Ledger(arguments.ledger_fd, arguments.workers, arguments.ledger_entries)
    board = LoadBoard(arguments.board_fd, arguments.workers, arguments.slots)
    health = HealthBoard(arguments.health_fd, arguments.workers, arguments.slots)
    prefixes = PrefixIndex(
        arguments.prefix_fd,
        worker=arguments.index,
        workers=arguments.workers,
        capacity=arguments.slots,
        table_bytes=arguments.prefix_bytes,
    )
    try:
        worker = Worker(
            index=arguments.index,
            config=config,
            board=board,
            prefixes=prefixes,
            ledger=ledger,
            health=health,
            listener=listener,
            access=access,
        )
        await worker.run(reader, writer)
        with suppress(ConnectionError):
            await writer.drain()
    finally:
        writer.close()
        access.close(_ACCESS_LOG_CLOSE_SECONDS)


def main() -> None:
    """Entry point of the process; the supervisor is the only caller."""
    parser = argparse.ArgumentParser(prog="matrixinfer-gateway-worker", description=__doc__)
    for name in _ARGUMENTS:
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(arguments))


if __name__ == "__main__":
    main()
