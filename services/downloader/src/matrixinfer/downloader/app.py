"""Composition root: which source a URI gets, who watches the progress, and how the end is told.

The only place that knows concrete classes. Told to stop, it first asks the worker threads to, then cancels. The
client libraries of the sources are imported when their source is: each takes most of a second to load.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import assert_never

from prometheus_client import REGISTRY

from matrixinfer.downloader import termination
from matrixinfer.downloader.cli import FetchArguments
from matrixinfer.downloader.core.manifest import Ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.status import Report, sentence
from matrixinfer.downloader.core.uri import Bucket, Claim, Folder, HubRepo, Location, parse, without_credentials
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.fetch import Limits, Tools, fetch
from matrixinfer.downloader.metrics import ProgressCollector
from matrixinfer.downloader.progress import Phase, View
from matrixinfer.downloader.report import FIELD_MANAGER, Recorded, StatusReporter, kubeconfig_of_token
from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.downloader.sources.file import local_source
from matrixinfer.downloader.sources.pvc import claim_source
from matrixinfer.downloader.sources.source import Source
from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import KubeError
from matrixinfer.kube.resource import Key
from matrixinfer.service.clock import monotonic, utcnow
from matrixinfer.service.exits import Exit
from matrixinfer.service.lifecycle import Lifecycle
from matrixinfer.service.logging import get_logger

__all__ = ["main", "open_source"]

log = get_logger("app")

# What the threads get to notice that they shall stop before their results are given up.
_STOP_SECONDS = 5.0
_OUTCOME_SECONDS = 15.0
_LAST_WORD_SECONDS = 3.0


async def main(lifecycle: Lifecycle, settings: DownloaderSettings, arguments: FetchArguments) -> None:
    """Fetch once; returns when READY is there, raises Exit with the code of the cause when it will not be."""
    tools = Tools(pod=settings.pod_name or os.uname().nodename, now=utcnow, monotonic=monotonic)
    REGISTRY.register(ProgressCollector(tools.progress))
    lifecycle.ready_when("running", lambda: True)
    lifecycle.debug_page("progress", tools.progress.view)
    try:
        ready = await _fetch(lifecycle, settings, arguments, tools)
    except DownloadError as exc:
        termination.write(
            settings.termination_log, termination.failure_message(without_credentials(arguments.source), exc)
        )
        raise Exit(exc.exit_code, f"{exc.cause}: {exc.message}") from exc
    termination.write(settings.termination_log, termination.success_message(ready))
    log.info(
        "model_ready",
        source=ready.source,
        revision=ready.resolved_revision,
        digest=ready.digest,
        files=len(ready.files),
        bytes=ready.total_bytes,
        fetched_bytes=tools.progress.view().fetched_bytes,
    )


def open_source(location: Location, settings: DownloaderSettings, *, recorded_revision: str) -> Source:
    """Return the source that a location means; the revision this version was recorded with goes before any other."""
    match location:
        case HubRepo():
            return _hub(location, settings, recorded_revision)
        case Bucket():
            return _bucket(location, settings)
        case Claim():
            return claim_source(location, settings.claims_dir)
        case Folder():
            return local_source(location)
        case _:
            assert_never(location)


async def _fetch(lifecycle: Lifecycle, settings: DownloaderSettings, arguments: FetchArguments, tools: Tools) -> Ready:
    async with _reporter(settings, arguments) as reporter:
        recorded = await reporter.recorded() if reporter else Recorded()
        try:
            ready = await _watched(lifecycle, settings, arguments, tools, reporter, recorded)
        except DownloadError as exc:
            # A pod that has to go is no fault of the version: others, or its successor, speak for it.
            if reporter and exc.cause is not Cause.CANCELLED:
                await reporter.outcome(_report(tools, error=exc), seconds=_outcome_seconds(lifecycle))
            raise
        if reporter:
            await reporter.outcome(_report(tools), seconds=_outcome_seconds(lifecycle))
        return ready


async def _watched(
    lifecycle: Lifecycle,
    settings: DownloaderSettings,
    arguments: FetchArguments,
    tools: Tools,
    reporter: StatusReporter | None,
    recorded: Recorded,
) -> Ready:
    """Fetch, while one task shows the progress and one waits for the signal to stop."""
    location = parse(arguments.source)
    request = Request(
        source=arguments.source,
        output=arguments.output,
        include=arguments.include,
        exclude=arguments.exclude,
        expected_digest=recorded.digest,
        cache=arguments.cache,
    )
    limits = Limits(
        part_bytes=settings.part_bytes,
        connections=settings.connections,
        tries=settings.tries,
        longest_wait_seconds=settings.longest_wait_seconds,
        listing_seconds=settings.listing_seconds,
        lock_wait_seconds=settings.lock_wait_seconds,
        reserve_bytes=settings.reserve_bytes,
    )
    opened = partial(open_source, location, settings, recorded_revision=recorded.revision)
    outcome: Ready | DownloadError
    async with asyncio.TaskGroup() as helpers:
        observer = helpers.create_task(_observe(settings, tools, reporter))
        try:
            async with asyncio.timeout(None) as scope:
                stopper = helpers.create_task(_stop(lifecycle, tools, scope))
                outcome = await fetch(request, opened, limits, tools)
        except DownloadError as exc:
            outcome = exc
        except TimeoutError:
            outcome = DownloadError(Cause.CANCELLED, "told to stop while a source or a volume did not answer")
        observer.cancel()
        stopper.cancel()
    if isinstance(outcome, DownloadError):
        raise outcome
    return outcome


async def _stop(lifecycle: Lifecycle, tools: Tools, scope: asyncio.Timeout) -> None:
    await lifecycle.stopping.wait()
    tools.stop.set()
    scope.reschedule(asyncio.get_running_loop().time() + _STOP_SECONDS)


async def _observe(settings: DownloaderSettings, tools: Tools, reporter: StatusReporter | None) -> None:
    logged = monotonic()
    while True:
        await asyncio.sleep(settings.report_seconds)
        view = tools.progress.sample(monotonic())
        if monotonic() - logged >= settings.log_seconds:
            logged = monotonic()
            _log(view, tools)
        if reporter and view.phase is Phase.DOWNLOADING:
            await reporter.progress(_report(tools))


def _log(view: View, tools: Tools) -> None:
    if view.phase is Phase.WAITING:
        log.info("waiting", waits_for=view.waits_for)
    else:
        log.info("progress", phase=view.phase, at=sentence(_report(tools)), files=view.done_files, retries=view.retries)


def _report(tools: Tools, error: DownloadError | None = None) -> Report:
    view = tools.progress.view()
    return Report(
        pod=tools.pod,
        revision=view.revision,
        total_bytes=view.total_bytes,
        file_count=view.file_count,
        done_bytes=view.done_bytes,
        bytes_per_second=0 if error or view.digest else view.bytes_per_second,
        digest="" if error else view.digest,
        cause=str(error.cause) if error else "",
        message=error.message if error else "",
    )


def _outcome_seconds(lifecycle: Lifecycle) -> float:
    return _LAST_WORD_SECONDS if lifecycle.stopping.is_set() else _OUTCOME_SECONDS


@asynccontextmanager
async def _reporter(settings: DownloaderSettings, arguments: FetchArguments) -> AsyncIterator[StatusReporter | None]:
    """The way to the ModelVersion, or None: without one, without credentials, or when they cannot be used."""
    async with AsyncExitStack() as stack:
        client = await _client(settings, arguments, stack)
        if client is None:
            yield None
            return
        namespace = arguments.namespace or _namespace(settings)
        yield StatusReporter(client, Key(namespace, arguments.model_version), utcnow)


async def _client(settings: DownloaderSettings, arguments: FetchArguments, stack: AsyncExitStack) -> Client | None:
    if not arguments.model_version:
        return None
    try:
        kubeconfig = _kubeconfig(settings, stack)
        if kubeconfig is None:
            log.info("not_reporting", reason="no service account is mounted and no kubeconfig is given")
            return None
        return await stack.enter_async_context(await Client.connect(kubeconfig, user_agent=FIELD_MANAGER))
    except (KubeError, OSError) as exc:
        log.warning("not_reporting", reason=str(exc))
        return None


def _kubeconfig(settings: DownloaderSettings, stack: AsyncExitStack) -> Path | None:
    if settings.api_host and (settings.service_account_dir / "token").is_file():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matrixinfer-")))
        made = folder / "kubeconfig"
        made.write_text(kubeconfig_of_token(settings.service_account_dir, settings.api_host, settings.api_port))
        return made
    return settings.kubeconfig


def _namespace(settings: DownloaderSettings) -> str:
    try:
        return (settings.service_account_dir / "namespace").read_text().strip()
    except OSError:
        return settings.namespace


def _hub(location: HubRepo, settings: DownloaderSettings, recorded_revision: str) -> Source:
    # Loaded here because it takes most of a second, and only this source needs it.
    from matrixinfer.downloader.sources.huggingface import HubAccess, HubSource

    revision = recorded_revision or location.revision or settings.hf_revision
    return HubSource(
        HubRepo(location.repo, revision),
        HubAccess(
            endpoint=settings.hf_endpoint,
            token=settings.hf_token.get_secret_value(),
            connect_seconds=settings.connect_seconds,
            read_seconds=settings.read_seconds,
            connections=settings.connections + 1,
        ),
    )


def _bucket(location: Bucket, settings: DownloaderSettings) -> Source:
    # Loaded here because it takes most of a second, and only this source needs it.
    from matrixinfer.downloader.sources.s3 import S3Access, S3Source

    return S3Source(
        location,
        S3Access(
            endpoint=settings.endpoint,
            region=settings.region,
            access_key=settings.access_key.get_secret_value(),
            secret_key=settings.secret_key.get_secret_value(),
            session_token=settings.session_token.get_secret_value(),
            anonymous=settings.anonymous,
            ca_bundle=settings.ca_bundle,
            connect_seconds=settings.connect_seconds,
            read_seconds=settings.read_seconds,
            connections=settings.connections + 1,
        ),
    )
