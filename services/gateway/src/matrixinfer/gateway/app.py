"""The supervisor, put together: watch, publish, keep workers, write status, drain.

The only place that knows all concrete classes. Traffic outlives everything else here: a lost API server, a lost lease
or a failing status writer never touches a worker.
"""

import asyncio
import random
from collections import Counter

import msgspec

from matrixinfer.gateway import certificate, metrics
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.comparing import Comparison
from matrixinfer.gateway.core.slots import SlotBook
from matrixinfer.gateway.feeds.kube import ClusterView, SnapshotFeed
from matrixinfer.gateway.feeds.metrics import EngineFeed
from matrixinfer.gateway.figures import TrafficFigures
from matrixinfer.gateway.fleet import Fleet, listeners, worker_count
from matrixinfer.gateway.health import HealthBoard
from matrixinfer.gateway.ipc import Configure
from matrixinfer.gateway.ledger import Ledger
from matrixinfer.gateway.metrics import EngineReports, Traffic
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.reconcilers import FIELD_MANAGER
from matrixinfer.gateway.settings import GatewaySettings
from matrixinfer.gateway.shares import Shares
from matrixinfer.gateway.statuswriter import StatusWriter
from matrixinfer.gateway.waking import Waker
from matrixinfer.gateway.wire.pool import PoolLimits, UpstreamPool, upstream_tls
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.service.clock import monotonic, utcnow
from matrixinfer.service.exits import Exit, ExitCode
from matrixinfer.service.lifecycle import Lifecycle
from matrixinfer.service.logging import get_logger
from matrixinfer.service.tls import CertificateError, ReloadingContext

__all__ = ["main"]

log = get_logger("app")

_RECLAIM_SECONDS = 1.0
_COMPARE_SECONDS = 1.0
# What is left of the drain time for stopping in order, after the workers had theirs.
_STOP_SECONDS = 3.0
# So often is a workload asked for while it has no pod: its annotation stays younger than any idle window.
_WAKE_UP_SECONDS = 10.0


async def main(lifecycle: Lifecycle, settings: GatewaySettings) -> None:
    """Run the gateway until told to stop."""
    tls = _certificate(settings)
    count = worker_count(settings.workers)
    try:
        sockets = listeners(settings.host, settings.port, count, lost_seconds=settings.write_stall_seconds)
    except OSError as exc:
        address = f"{settings.host}:{settings.port}"
        raise Exit(ExitCode.MISCONFIGURED, f"the address {address} cannot be used: {exc.strerror}") from exc
    waker = Waker(every_seconds=_WAKE_UP_SECONDS, clock=monotonic, now=utcnow)
    fleet = Fleet(
        listeners=sockets,
        board_fd=LoadBoard.create(count, settings.endpoint_slots),
        slots=settings.endpoint_slots,
        prefix_fd=PrefixIndex.create(
            workers=count, capacity=settings.endpoint_slots, table_bytes=settings.prefix_table_bytes
        ),
        prefix_bytes=settings.prefix_table_bytes,
        ledger_fd=Ledger.create(count, settings.ledger_entries),
        ledger_entries=settings.ledger_entries,
        health_fd=HealthBoard.create(count, settings.endpoint_slots),
        config=_configuration(settings),
        traffic=Traffic(),
        clock=monotonic,
        wake=waker.hear,
    )
    lifecycle.ready_when("workers", lambda: fleet.is_serving)
    lifecycle.debug_page("workers", fleet.describe)
    lifecycle.debug_lookup("explain", fleet.explain)
    log.info(
        "listening", host=settings.host, port=sockets[0].getsockname()[1], workers=count, tls=settings.tls is not None
    )
    async with await Client.connect(settings.kubeconfig, user_agent=FIELD_MANAGER) as client:
        cache = Cache(client)
        view = ClusterView(cache, settings.watch_namespace or None)
        lifecycle.ready_when("caches", lambda: cache.synced or f"not listed yet: {', '.join(cache.unsynced)}")
        await _serve(lifecycle, settings, fleet, client, cache, view, tls, waker)


async def _serve(
    lifecycle: Lifecycle,
    settings: GatewaySettings,
    fleet: Fleet,
    client: Client,
    cache: Cache,
    view: ClusterView,
    tls: ReloadingContext | None,
    waker: Waker,
) -> None:
    slots = SlotBook(settings.endpoint_slots)
    engines = _engine_feed(settings, fleet.board)
    EngineReports(engines.ages)
    comparison = Comparison(fleet.health, settings.traffic_defaults.breaker, settings.outlier_policy, monotonic)
    feed = SnapshotFeed(view, slots, settings.gather_seconds, engines.adapters_of)
    engines.on_adapters(feed.look_again)
    lifecycle.debug_page("engines", engines.describe)
    lifecycle.debug_page("snapshot", lambda: msgspec.to_builtins(feed.current))
    async with asyncio.TaskGroup() as tasks:
        helpers = [
            tasks.create_task(cache.run(), name="cache"),
            tasks.create_task(_publish(cache, feed, engines, comparison, fleet), name="publish"),
            tasks.create_task(_reclaim(cache, feed, engines, comparison, fleet, slots), name="reclaim"),
            tasks.create_task(engines.run(), name="engines"),
            tasks.create_task(waker.run(client, view), name="waking"),
            tasks.create_task(_compare(feed, comparison), name="compare"),
        ]
        if tls is not None:
            helpers.append(tasks.create_task(_watch_certificate(tls, settings.tls_reload_seconds), name="certificate"))
        if settings.write_status:
            shares = Shares(client, settings.namespace, settings.pod_name or FIELD_MANAGER, monotonic)
            figures = TrafficFigures(fleet.traffic, view.routes, monotonic, others=shares.others)
            writer = StatusWriter(client, cache, view, _election(settings), figures)
            telling = shares.run(lambda: figures.own, lambda: writer.leading)
            helpers.append(tasks.create_task(telling, name="shares"))
            lifecycle.debug_page("status-writer", lambda: {"leading": writer.leading})
            helpers.append(tasks.create_task(figures.run(writer.look_at), name="figures"))
            helpers.append(tasks.create_task(writer.run(lifecycle.stopping), name="status"))
        workers = tasks.create_task(fleet.run(), name="fleet")
        await lifecycle.stopping.wait()
        # Readiness is red. Requests still come until every load balancer has heard of it: serve them.
        fleet.drain("closing")
        await asyncio.sleep(settings.settle_seconds)
        fleet.drain("last")
        await asyncio.wait((workers,))
        for helper in helpers:
            helper.cancel()


def _certificate(settings: GatewaySettings) -> ReloadingContext | None:
    try:
        return None if settings.tls is None else certificate.load(settings.tls)
    except CertificateError as exc:
        raise Exit(ExitCode.MISCONFIGURED, f"TLS for clients cannot be had: {exc}") from exc


async def _watch_certificate(tls: ReloadingContext, every_seconds: float) -> None:
    """Say when the certificate expires; the workers look at its files themselves."""
    while True:
        metrics.CERTIFICATE_EXPIRY.set(tls.not_after.timestamp())
        await asyncio.sleep(every_seconds)
        await asyncio.to_thread(tls.reload_if_changed)


def _configuration(settings: GatewaySettings) -> Configure:
    return Configure(
        log_level=settings.log_level,
        inlet=settings.inlet_limits,
        pool=settings.pool_limits,
        traffic=settings.traffic_defaults,
        access_log=settings.access_log,
        upstream_ca_file=str(settings.upstream_ca_file) if settings.upstream_ca_file else None,
        stream_usage=settings.stream_usage,
        inlet_kind=settings.inlet,
        tls=settings.tls,
        decision_header=settings.decision_header,
        spans=settings.export_settings,
        sampler=settings.otel_sampler,
        sampler_ratio=settings.otel_sampler_ratio,
        drain_seconds=max(0.0, settings.drain_seconds - settings.settle_seconds - _STOP_SECONDS),
    )


def _engine_feed(settings: GatewaySettings, board: LoadBoard) -> EngineFeed:
    # A pool of its own: nobody else talks to engines in this process.
    limits = PoolLimits(settings.scrape_deadline_seconds, settings.upstream_idle_seconds, idle_per_peer=1)
    ca_file = str(settings.upstream_ca_file) if settings.upstream_ca_file else None
    return EngineFeed(
        cells=board.engine_cells(),
        is_idle=board.is_idle,
        pool=UpstreamPool(limits, upstream_tls(ca_file)),
        pace=settings.pace,
        deadline_seconds=settings.scrape_deadline_seconds,
        clock=monotonic,
        draw=random.random,
    )


def _election(settings: GatewaySettings) -> ElectionSettings:
    return ElectionSettings(
        name=FIELD_MANAGER, namespace=settings.namespace, identity=settings.pod_name or "matrixinfer-gateway"
    )


async def _publish(cache: Cache, feed: SnapshotFeed, engines: EngineFeed, comparison: Comparison, fleet: Fleet) -> None:
    """Send every new snapshot to the workers, the first one when everything was listed."""
    await cache.wait_synced()
    feed.settle()
    _send(feed, engines, comparison, fleet)
    while True:
        await feed.next()
        _send(feed, engines, comparison, fleet)


async def _reclaim(
    cache: Cache, feed: SnapshotFeed, engines: EngineFeed, comparison: Comparison, fleet: Fleet, slots: SlotBook
) -> None:
    """Free the slots of pods that nobody waits for any more."""
    await cache.wait_synced()
    while True:
        await asyncio.sleep(_RECLAIM_SECONDS)
        if slots.reclaim(fleet.acknowledged, fleet.board.is_idle) and feed.settle():
            _send(feed, engines, comparison, fleet)


async def _compare(feed: SnapshotFeed, comparison: Comparison) -> None:
    """Leave out the endpoints that are far worse than their peers."""
    while True:
        await asyncio.sleep(_COMPARE_SECONDS)
        try:
            comparison.look(feed.current)
        # The edge of one look: a fault of ours must cost neither the next look nor any traffic, and must be seen.
        except Exception:
            log.exception("comparison_failed")


def _send(feed: SnapshotFeed, engines: EngineFeed, comparison: Comparison, fleet: Fleet) -> None:
    snapshot = feed.current
    # First of all: no worker may read the numbers of the pod that had a slot before.
    engines.follow(snapshot)
    comparison.follow(snapshot)
    fleet.publish(snapshot)
    metrics.REVISION.set(snapshot.revision)
    states = Counter(endpoint.state for server in snapshot.servers for endpoint in server.endpoints)
    for state in metrics.ENDPOINT_STATES:
        metrics.ENDPOINTS.labels(state).set(states[state])
