"""Composition root: which source a URI gets, who watches the progress, and how the end is told.

The only place that knows concrete classes. Told to stop, it first asks the worker threads to, then cancels. The
client libraries of the sources are imported when their source is: each takes most of a second to load.
"""

import asyncio
import faulthandler
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, assert_never

from prometheus_client import REGISTRY

from matrixinfer.downloader import termination
from matrixinfer.downloader.archive import export_layout, export_model, import_model
from matrixinfer.downloader.blocking import in_thread
from matrixinfer.downloader.cli import Arguments, ExportArguments, FetchArguments, ImportArguments, ServeArguments
from matrixinfer.downloader.core.deal import process_count
from matrixinfer.downloader.core.manifest import Ready
from matrixinfer.downloader.core.report import Recorded, Report, sentence
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.uri import (
    Bucket,
    Claim,
    Folder,
    HubRepo,
    Location,
    ScopeRepo,
    WebFolder,
    parse,
    without_credentials,
)
from matrixinfer.downloader.cores import usable_cores
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.lock import kernel
from matrixinfer.downloader.metrics import ProgressCollector
from matrixinfer.downloader.progress import Phase, View
from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.downloader.sources.file import local_source
from matrixinfer.downloader.sources.hubfiles import HubAccess, HubFiles
from matrixinfer.downloader.sources.modelscope import ModelScopeSource
from matrixinfer.downloader.sources.pvc import claim_source
from matrixinfer.downloader.sources.s3 import S3Access, S3Source
from matrixinfer.downloader.sources.source import Source
from matrixinfer.downloader.sources.web import WebAccess
from matrixinfer.downloader.sources.website import WebsiteSource
from matrixinfer.downloader.versions import VersionLinks
from matrixinfer.downloader.wire.credentials import Credentials, Found, credentials
from matrixinfer.downloader.worker import work
from matrixinfer.downloader.workers import Job, Workers, fork_workers
from matrixinfer.service import logging
from matrixinfer.service.clock import monotonic, utcnow
from matrixinfer.service.exits import Exit
from matrixinfer.service.lifecycle import Lifecycle
from matrixinfer.service.logging import get_logger

if TYPE_CHECKING:
    from matrixinfer.downloader.report import StatusReporter

__all__ = ["main", "open_source", "ready_workers"]

log = get_logger("app")

# What the threads get to notice that they shall stop before their results are given up.
_STOP_SECONDS = 5.0
_LAST_WORD_SECONDS = 3.0


async def main(lifecycle: Lifecycle, settings: DownloaderSettings, arguments: Arguments, workers: Workers) -> None:
    """Do what the arguments say; raises Exit with the code of the cause when that cannot be done."""
    if isinstance(arguments, FetchArguments):
        await _fetch_once(lifecycle, settings, arguments, workers)
        return
    if isinstance(arguments, ServeArguments):
        await _serve(lifecycle, settings, arguments)
        return
    lifecycle.ready_when("running", lambda: True)
    try:
        ready = await in_thread(partial(_carry, arguments), name="archive")
    except DownloadError as exc:
        raise Exit(exc.exit_code, f"{exc.cause}: {exc.message}") from exc
    log.info("model_carried", source=ready.source, digest=ready.digest, bytes=ready.total_bytes)


def _carry(arguments: ExportArguments | ImportArguments) -> Ready:
    if isinstance(arguments, ExportArguments):
        export = export_layout if arguments.form == "oci" else export_model
        return export(arguments.model, arguments.archive)
    return import_model(arguments.archive, arguments.cache, arguments.output)


async def _serve(lifecycle: Lifecycle, settings: DownloaderSettings, arguments: ServeArguments) -> None:
    lifecycle.ready_when("running", lambda: True)
    token = settings.peer_token.get_secret_value()
    if not token:
        # The pod is not held up by a Secret that is missing: its model comes from the origin.
        log.warning("nothing_served", reason="there is no token; set MATRIXINFER_DOWNLOADER_PEER_TOKEN from a Secret")
        await lifecycle.stopping.wait()
        return
    # Loaded here because only this command needs a server.
    from matrixinfer.downloader.peers.holdings import Holdings
    from matrixinfer.downloader.peers.serve import ServeLimits, serving

    limits = ServeLimits(settings.serve_connections, settings.serve_bytes_per_second, settings.serve_seconds)
    host, port = settings.serve_host, settings.peer_port
    try:
        async with serving(Holdings(arguments.cache), token, limits, host, port, lambda: utcnow().timestamp()) as bound:
            log.info("serving", host=host, port=bound, cache=str(arguments.cache))
            await lifecycle.stopping.wait()
    except OSError as exc:
        # Nor by a port that is taken: a sidecar that ends again and again would make the engine's pod unready.
        reason = f"{host}:{port} cannot be used: {exc.strerror}; set MATRIXINFER_DOWNLOADER_PEER_PORT to a free port"
        log.error("nothing_served", reason=reason)
        await lifecycle.stopping.wait()


async def _fetch_once(
    lifecycle: Lifecycle, settings: DownloaderSettings, arguments: FetchArguments, workers: Workers
) -> None:
    pod = settings.pod_name or os.uname().nodename
    tools = Tools(pod=pod, now=utcnow, monotonic=monotonic, node=kernel(), workers=workers)
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
    view = tools.progress.view()
    termination.write(settings.termination_log, termination.success_message(ready, view.peer_bytes))
    log.info(
        "model_ready",
        source=ready.source,
        revision=ready.resolved_revision,
        digest=ready.digest,
        files=len(ready.files),
        bytes=ready.total_bytes,
        fetched_bytes=view.fetched_bytes,
        peer_bytes=view.peer_bytes,
    )


def ready_workers(settings: DownloaderSettings, arguments: Arguments) -> Workers:
    """Fork the processes that may share the work; only before anything starts a thread."""
    if not isinstance(arguments, FetchArguments) or settings.offline or settings.peers:
        return Workers()
    try:
        location = parse(arguments.source)
    except DownloadError:
        # Refused when its turn has come.
        return Workers()
    count = process_count(usable_cores(), settings.connections, settings.processes)
    begin = partial(_begin, settings, location)
    return fork_workers(count, lambda parent: work(parent, begin, monotonic))


def _begin(settings: DownloaderSettings, location: Location, job: Job, keys: Credentials) -> Source:
    """What a worker does first: it speaks as its parent does, and has a source of its own."""
    logging.configure("downloader", settings.log_level, secrets=settings.secrets)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if isinstance(location, HubRepo):
        # Not the whole source: it takes most of a second to load what lists.
        return HubFiles(HubRepo(location.repo, job.revision), _hub_access(settings))
    return open_source(location, settings, recorded_revision=job.revision, lent=keys)


def open_source(
    location: Location, settings: DownloaderSettings, *, recorded_revision: str, lent: Credentials | None = None
) -> Source:
    """Return the source that a location means; the revision this version was recorded with goes before any other.

    `lent` are keys that somebody else looks for, in place of looking for them here.
    """
    if settings.offline and not isinstance(location, Claim | Folder):
        raise DownloadError(
            Cause.UNREACHABLE, "this process is told to stay offline, and the model is not in the cache; import it"
        )
    match location:
        case HubRepo():
            return _hub(location, settings, recorded_revision)
        case ScopeRepo():
            token = settings.ms_token.get_secret_value()
            repo = ScopeRepo(location.repo, location.revision or settings.ms_revision)
            access = _web_access(settings, {"Cookie": f"m_session_id={token}"} if token else {})
            return ModelScopeSource(repo, settings.ms_endpoint, access)
        case WebFolder():
            token = settings.http_token.get_secret_value()
            return WebsiteSource(location, _web_access(settings, {"Authorization": f"Bearer {token}"} if token else {}))
        case Bucket():
            return _bucket(location, settings, lent)
        case Claim():
            return claim_source(location, settings.claims_dir)
        case Folder():
            return local_source(location)
        case _:
            assert_never(location)


def _open_shared(
    location: Location, settings: DownloaderSettings, recorded: Recorded, request: Request, tools: Tools
) -> Source:
    """Return the source that a location means, with the peers that share it where that is switched on."""
    source = open_source(location, settings, recorded_revision=recorded.revision)
    names = tuple(name.strip() for name in settings.peers.split(",") if name.strip())
    if not names or isinstance(location, Claim | Folder):
        return source
    token = settings.peer_token.get_secret_value()
    if not token or request.cache is None:
        missing = "--cache is not given" if token else "MATRIXINFER_DOWNLOADER_PEER_TOKEN is not set"
        log.warning("peers_not_asked", reason=f"{missing}; all comes from the origin")
        return source
    # Loaded here because sharing is off unless somebody asks for it.
    from matrixinfer.downloader.peers.directory import PeerAccess, Peers
    from matrixinfer.downloader.peers.swarm import Swarm, SwarmLimits

    patience, slowest = settings.peer_patience_seconds, settings.peer_slowest_bytes_per_second
    access = PeerAccess(names, settings.pod_ip, settings.peer_port, token, patience)
    return Swarm(
        source,
        Peers(access, request.origin_key, monotonic, lambda: utcnow().timestamp()),
        request,
        SwarmLimits(settings.part_bytes, patience, slowest, any_checksum=settings.peer_checksums == "any"),
        took=tools.progress.from_peer,
        monotonic=monotonic,
    )


async def _fetch(lifecycle: Lifecycle, settings: DownloaderSettings, arguments: FetchArguments, tools: Tools) -> Ready:
    async with _reporter(settings, arguments) as reporter:
        recorded = await reporter.recorded() if reporter else Recorded()
        if reporter and arguments.cache:
            await _forget(arguments, reporter)
        try:
            ready = await _watched(lifecycle, settings, arguments, tools, reporter, recorded)
        except DownloadError as exc:
            # A pod that has to go is no fault of the version: others, or its successor, speak for it.
            if reporter and exc.cause is not Cause.CANCELLED:
                await reporter.outcome(_report(tools, error=exc), seconds=_outcome_seconds(lifecycle, settings))
            raise
        if reporter:
            await reporter.outcome(_report(tools), seconds=_outcome_seconds(lifecycle, settings))
        return ready


async def _forget(arguments: FetchArguments, reporter: "StatusReporter") -> None:
    """Remove the links of versions that exist no more: what nothing else refers to may then go when room is needed."""
    if arguments.cache is None:
        return
    links = VersionLinks(arguments.cache, arguments.namespace)
    names = [name for name in await in_thread(links.names, name="links") if name != arguments.model_version]
    for name in await reporter.gone(names):
        await in_thread(partial(links.remove, name), name="links")
        log.info("links_removed", version=name, reason="the ModelVersion exists no more")


async def _watched(
    lifecycle: Lifecycle,
    settings: DownloaderSettings,
    arguments: FetchArguments,
    tools: Tools,
    reporter: "StatusReporter | None",
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
        buffer_bytes=settings.buffer_bytes,
        read_seconds=settings.read_seconds,
        slowest_bytes_per_second=settings.slowest_bytes_per_second,
        connections=settings.connections,
        tries=settings.tries,
        longest_wait_seconds=settings.longest_wait_seconds,
        listing_seconds=settings.listing_seconds,
        lock_wait_seconds=settings.lock_wait_seconds,
        lock_patience_seconds=settings.lock_patience_seconds,
        reserve_bytes=settings.reserve_bytes,
        high_water_percent=settings.high_water_percent,
    )
    opened = partial(_open_shared, location, settings, recorded, request, tools)
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


async def _observe(settings: DownloaderSettings, tools: Tools, reporter: "StatusReporter | None") -> None:
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
        peer_bytes=view.peer_bytes,
        bytes_per_second=0 if error or view.digest else view.bytes_per_second,
        digest="" if error else view.digest,
        cause=str(error.cause) if error else "",
        message=error.message if error else "",
    )


def _outcome_seconds(lifecycle: Lifecycle, settings: DownloaderSettings) -> float:
    longest = settings.outcome_seconds
    return min(longest, _LAST_WORD_SECONDS) if lifecycle.stopping.is_set() else longest


@asynccontextmanager
async def _reporter(settings: DownloaderSettings, arguments: FetchArguments) -> AsyncIterator["StatusReporter | None"]:
    if not arguments.model_version or settings.offline:
        yield None
        return
    # Loaded here because the API's client takes a second and 60 MB, and only a version has a status.
    from matrixinfer.downloader.report import open_reporter

    async with open_reporter(settings, arguments.model_version, arguments.namespace) as reporter:
        yield reporter


def _hub(location: HubRepo, settings: DownloaderSettings, recorded_revision: str) -> Source:
    # Loaded here because it takes most of a second, and only this source needs it.
    from matrixinfer.downloader.sources.huggingface import HubSource

    revision = recorded_revision or location.revision or settings.hf_revision
    return HubSource(HubRepo(location.repo, revision), _hub_access(settings))


def _hub_access(settings: DownloaderSettings) -> HubAccess:
    return HubAccess(
        endpoint=settings.hf_endpoint,
        token=settings.hf_token.get_secret_value(),
        connect_seconds=settings.connect_seconds,
        read_seconds=settings.read_seconds,
        ca_bundle=settings.ca_bundle,
        redirect_hosts=settings.redirect_hosts,
    )


def _web_access(settings: DownloaderSettings, headers: Mapping[str, str]) -> WebAccess:
    return WebAccess(
        headers=headers,
        ca_bundle=settings.ca_bundle,
        connect_seconds=settings.connect_seconds,
        read_seconds=settings.read_seconds,
        redirect_hosts=settings.redirect_hosts,
    )


def _bucket(location: Bucket, settings: DownloaderSettings, lent: Credentials | None) -> Source:
    given = credentials(
        settings.access_key.get_secret_value(),
        settings.secret_key.get_secret_value(),
        settings.session_token.get_secret_value(),
        anonymous=settings.anonymous,
        region=settings.region,
    )
    return S3Source(
        location,
        S3Access(
            credentials=lent if lent and isinstance(given, Found) else given,
            endpoint=settings.endpoint,
            region=settings.region,
            addressing=settings.addressing,
            ca_bundle=settings.ca_bundle,
            connect_seconds=settings.connect_seconds,
            read_seconds=settings.read_seconds,
        ),
    )
