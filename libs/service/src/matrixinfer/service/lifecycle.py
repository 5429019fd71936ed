"""One process from start to exit code: loop, logs, admin port, signals, drain.

`run` is the last line of every `main()`. It owns the event loop (uvloop), what a signal means, and the exit code;
the service owns what it does until `lifecycle.stopping` is set. The order at the end is fixed: readiness turns
red, `stopping` is set, the service finishes its work, the admin port closes last. The trap: work that
ignores `stopping` must not hold the pod for ever, so it is cancelled after `drain_seconds`, and the exit code says so.
"""

import asyncio
import faulthandler
import gc
import os
import platform
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import NoReturn, TypeVar

import uvloop
from prometheus_client import REGISTRY

from matrixinfer.service import logging, metrics
from matrixinfer.service.build import build_version
from matrixinfer.service.clock import monotonic
from matrixinfer.service.exits import Exit, ExitCode
from matrixinfer.service.health import Check, Checks
from matrixinfer.service.logging import get_logger
from matrixinfer.service.pages import Lookup, MetricsPage, Page, task_page
from matrixinfer.service.settings import ServiceSettings, SettingsError, load

__all__ = ["Lifecycle", "run", "run_from_environment", "serve"]

log = get_logger("lifecycle")

# What cancelled work gets to clean up before the process goes anyway.
_CANCEL_SECONDS = 5.0


class Lifecycle:
    """What a service is given to live in a process: when to stop, and how to say that it is ready."""

    def __init__(self, service: str, settings: ServiceSettings) -> None:
        self.service = service
        self.settings = settings
        self.stopping = asyncio.Event()
        """Set once, when the process shall end: take nothing new, finish what runs, return from main."""
        self.admin_port: int | None = None
        """The admin port in use; None when there is none."""
        self.live = Checks()
        self.ready = Checks(when_empty="no readiness check was registered yet")
        self.pages: dict[str, Page] = {
            "settings": lambda: settings.model_dump(mode="json"),
            "tasks": task_page,
            "readiness": lambda: self.ready.ask().lines,
        }
        self.lookups: dict[str, Lookup] = {}

    def ready_when(self, name: str, check: Check) -> None:
        """Make readiness depend on `check` (True, or False or a sentence saying what is missing).

        Without any check the process is not ready. Register all of them before the first await of main.
        """
        self.ready.add(name, check)

    def alive_when(self, name: str, check: Check) -> None:
        """Make liveness depend on `check`: only for states that nothing but a restart can mend."""
        self.live.add(name, check)

    def debug_page(self, name: str, page: Page) -> None:
        """Show what `page` returns, as JSON, under /debug/`name`."""
        self.pages[name] = page

    def debug_lookup(self, name: str, lookup: Lookup) -> None:
        """Show what `lookup` finds, as JSON, under /debug/`name`/whatever-is-asked; None is a 404."""
        self.lookups[name] = lookup

    def stop(self, reason: str) -> None:
        """Begin the end: readiness turns red and `stopping` is set. Repeated calls change nothing."""
        if self.stopping.is_set():
            return
        log.info("stopping", reason=reason)
        # First in the page, so that whoever looks sees why before anything else.
        self.ready.add("stopping", lambda: reason)
        self.stopping.set()

    async def stops_within(self, seconds: float) -> bool:
        """Wait `seconds`, or less when the process shall stop; True when it shall. The pause of every periodic task."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True


def run(
    service: str,
    settings: ServiceSettings,
    main: Callable[[Lifecycle], Awaitable[None]],
    *,
    metrics_page: MetricsPage | None = None,
    secrets: Iterable[str] = (),
    admin_required: bool = True,
    admin_after_seconds: float = 0.0,
) -> NoReturn:
    """Run `main` until it returns or the process is told to stop, then exit; never returns (raises SystemExit).

    `metrics_page` replaces the default registry's page (a multi-process service). `secrets` are masked in every log
    line. With `admin_required=False` a taken admin port is logged and lived without; with `admin_after_seconds` a
    process that ends sooner never opens it. Exit codes: `ExitCode`, or the code of the `Exit` that main raised.
    """
    logging.configure(service, settings.log_level, secrets=secrets)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    nofile = _raise_file_limit()
    metrics.publish_build_info(service, REGISTRY)
    log.info(
        "service_started", version=build_version(), python=platform.python_version(), pid=os.getpid(), nofile=nofile
    )
    began = monotonic()
    # What was loaded stays loaded: no collection need look at it again.
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(
            serve(
                Lifecycle(service, settings),
                main,
                metrics_page=metrics_page or partial(metrics.render, REGISTRY),
                admin_required=admin_required,
                admin_after_seconds=admin_after_seconds,
            )
        )
    log.info("service_stopped", code=code, seconds=round(monotonic() - began, 3))
    sys.exit(code)


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def run_from_environment(
    service: str,
    settings_type: type[SettingsT],
    main: Callable[[Lifecycle, SettingsT], Awaitable[None]],
    *,
    metrics_page: MetricsPage | None = None,
) -> NoReturn:
    """Read the settings, then `run`; settings that cannot work are one log line and exit code 2."""
    try:
        settings = load(settings_type)
    except SettingsError as exc:
        logging.configure(service)
        log.error("settings_refused", reason=str(exc))
        sys.exit(ExitCode.MISCONFIGURED)
    run(service, settings, lambda lifecycle: main(lifecycle, settings), metrics_page=metrics_page)


async def serve(
    lifecycle: Lifecycle,
    main: Callable[[Lifecycle], Awaitable[None]],
    *,
    metrics_page: MetricsPage,
    admin_required: bool = True,
    admin_after_seconds: float = 0.0,
) -> int:
    """The part of `run` inside the loop: admin port, signals, main, drain. Returns the exit code."""
    admin = partial(_admin, lifecycle, metrics_page, required=admin_required)
    try:
        # Signals first: whoever sees the admin port may already send one.
        async with _signals(lifecycle) as second_signal, _later(admin_after_seconds, admin):
            return await _run_main(lifecycle, main, second_signal)
    except Exception as exc:
        # The last stop of every error: one log line, and the exit code.
        wanted = _exit_in(exc)
        if wanted is None:
            log.error("crashed", exc_info=exc)
            return ExitCode.CRASHED
        tell = log.error if wanted.code else log.info
        tell("exit", code=int(wanted.code), reason=wanted.reason)
        return wanted.code


async def _run_main(
    lifecycle: Lifecycle, main: Callable[[Lifecycle], Awaitable[None]], second_signal: asyncio.Event
) -> int:
    # Three waits raced against each other, all ended below: a task group cannot give one of them less time.
    work = asyncio.ensure_future(main(lifecycle))
    stopping = asyncio.ensure_future(lifecycle.stopping.wait())
    hurry = asyncio.ensure_future(second_signal.wait())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            drain = lifecycle.settings.drain_seconds
            await asyncio.wait((work, hurry), timeout=drain, return_when=asyncio.FIRST_COMPLETED)
        if work.cancelled():
            raise Exit(ExitCode.CRASHED, "the service's main task was cancelled from inside")
        if work.done():
            work.result()
            return ExitCode.OK
    finally:
        cut = not work.done()
        for task in (stopping, hurry, work):
            task.cancel()
        await asyncio.wait((stopping, hurry, work), timeout=_CANCEL_SECONDS)
        if cut and work.done() and not work.cancelled() and (error := work.exception()):
            log.warning("cleanup_failed", exc_info=error)
    log.warning("drain_cut_short", drain_seconds=lifecycle.settings.drain_seconds, hurried=second_signal.is_set())
    return ExitCode.DRAIN_TIMEOUT


@asynccontextmanager
async def _later(seconds: float, what: Callable[[], AbstractAsyncContextManager[None]]) -> AsyncIterator[None]:
    """Hold `what` from now on, or beside what goes on meanwhile from so many seconds on."""
    if not seconds:
        async with what():
            yield
        return

    async def held() -> None:
        await asyncio.sleep(seconds)
        async with what():
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(held(), name="admin")
        try:
            yield
        finally:
            holding.cancel()


@asynccontextmanager
async def _admin(lifecycle: Lifecycle, page: MetricsPage, *, required: bool) -> AsyncIterator[None]:
    # Loaded here because its HTTP library takes a third of the time that a short process takes to start.
    from matrixinfer.service.admin import AdminServer

    host, port = lifecycle.settings.admin_host, lifecycle.settings.admin_port
    server = AdminServer(
        live=lifecycle.live, ready=lifecycle.ready, metrics=page, pages=lifecycle.pages, lookups=lifecycle.lookups
    )
    try:
        runner, lifecycle.admin_port = await server.start(host, port)
    except OSError as exc:
        if required:
            raise Exit(ExitCode.MISCONFIGURED, f"the admin port {host}:{port} cannot be used: {exc.strerror}") from exc
        log.warning("admin_port_unavailable", host=host, port=port, reason=exc.strerror)
        yield
        return
    log.info("admin_listening", host=host, port=lifecycle.admin_port)
    try:
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _signals(lifecycle: Lifecycle) -> AsyncIterator[asyncio.Event]:
    loop = asyncio.get_running_loop()
    again = asyncio.Event()

    def received(name: str) -> None:
        if lifecycle.stopping.is_set():
            again.set()
        lifecycle.stop(name)

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, received, number.name)
    try:
        yield again
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _exit_in(exc: BaseException) -> Exit | None:
    """The first Exit inside a group of errors: a task group wraps what its tasks raise."""
    if isinstance(exc, Exit):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return next((found for inner in exc.exceptions if (found := _exit_in(inner))), None)
    return None


def _raise_file_limit() -> int:
    """Allow as many open files as the container may have: the soft limit is often 1024, far too low for streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
