"""One request from its bytes to its answer: read, route, choose, relay, repeat where that helps, account.

Owns the order of things; every decision is a pure function of `core`, every byte moves in `wire`. There is no await
between reading the table and counting the request in, so the decision is about the loads that it saw. This is the
only layer that retries.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from matrixinfer.gateway import errors
from matrixinfer.gateway.access import AccessLog, AccessRecord, DecisionRecord
from matrixinfer.gateway.board import LoadBoard, LoadRow, gather
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.peek import BodyError, Peek, peek
from matrixinfer.gateway.core.retry import Failure, RetryPolicy, may_retry, status_is_transient
from matrixinfer.gateway.core.schedule.framework import Decision, Profile, Refused, View, decide
from matrixinfer.gateway.core.schedule.profiles import LEAST_LOADED
from matrixinfer.gateway.core.splice import with_model
from matrixinfer.gateway.core.split import choose_target, draw
from matrixinfer.gateway.core.surface import Surface, surface
from matrixinfer.gateway.core.table import Pool, RouteEntry, Table
from matrixinfer.gateway.core.types import Endpoint, Rule, Server, Snapshot, Target, TrafficPolicy
from matrixinfer.gateway.errors import GatewayError
from matrixinfer.gateway.models import model_page, models_page
from matrixinfer.gateway.stats import UNKNOWN_MODEL, Stats
from matrixinfer.gateway.wire.message import Exchange, Headers, Request, end_to_end, request_head
from matrixinfer.gateway.wire.pool import ConnectError, Peer, UpstreamPool
from matrixinfer.gateway.wire.relay import Deadlines, Held, Outcome, Relay
from matrixinfer.service.logging import get_logger

__all__ = ["Handler", "TrafficDefaults"]

log = get_logger("handler")

_JSON = (b"content-type", b"application/json")
_EVENT_STREAM = b"text/event-stream"
_CLIENT_GONE_STATUS = 499
_REQUEST_ID_LIMIT = 128

# The client's credentials are for the gateway, not for whoever runs a pod. Without Accept-Encoding the engine answers
# plainly. Framing, host and request id are written anew.
_NOT_FOR_ENGINES = frozenset(
    {
        b"accept-encoding",
        b"authorization",
        b"content-length",
        b"cookie",
        b"expect",
        b"host",
        b"x-api-key",
        b"x-request-id",
    }
)


@dataclass(frozen=True, slots=True)
class TrafficDefaults:
    """What holds where neither route nor server says anything. Times in seconds."""

    total_seconds: float = 3600.0
    first_byte_seconds: float = 600.0
    idle_seconds: float = 60.0
    retry_attempts: int = 2
    retry_interval_seconds: float = 0.025


@dataclass(slots=True)
class _Trace:
    """What is known of one request so far; becomes its access-log line."""

    request_id: str
    status: int = 0
    outcome: str = ""
    model: str = ""
    route: str = ""
    stream: bool = False
    server: Server | None = None
    endpoint: Endpoint | None = None
    decision: DecisionRecord | None = None
    retries: int = 0
    stale: int = 0
    failures: list[str] = field(default_factory=list)
    routed: bool = False
    waited: float = 0.0
    """Time spent on anything but the gateway's own work, before the request was sent the last time."""
    sent_at: float | None = None
    connect_seconds: float | None = None
    first_byte_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Choice:
    """Where an attempt goes."""

    entry: RouteEntry
    server: Server
    endpoint: Endpoint
    decision: Decision
    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class _Limits:
    """Deadlines and retries of one request: the route's word, then the server's, then the gateway's."""

    deadlines: Deadlines
    retry: RetryPolicy


class Handler:
    """Answers exchanges. One per worker."""

    def __init__(
        self,
        *,
        worker: int,
        pool: UpstreamPool,
        board: LoadBoard,
        row: LoadRow,
        stats: Stats,
        access: AccessLog,
        defaults: TrafficDefaults,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        new_request_id: Callable[[], str],
        profile: Profile = LEAST_LOADED,
    ) -> None:
        self._worker = worker
        self._pool = pool
        self._board = board
        self._row = row
        self._stats = stats
        self._access = access
        self._defaults = defaults
        self._now = now
        # Not the loop's clock, which stands still during a tick and counts whole milliseconds.
        self._clock = clock
        self._new_request_id = new_request_id
        self._profile = profile
        self._in_flight: defaultdict[str, set[Relay]] = defaultdict(set)
        self.draining = False
        """Set to answer /readyz with 503."""
        self.install(Snapshot(0))

    def install(self, snapshot: Snapshot) -> None:
        """Route by `snapshot` from now on, and end what waits for pods that are gone."""
        table = Table(snapshot)
        # Everything that is read per request is derived here, once per revision.
        self._table = table
        self._gathers = {id(pool): gather(pool.slots) for pool in table.pools}
        self._models = models_page(table.listings)
        self._by_name = {listing.name: listing for listing in table.listings}
        for uid in table.gone & self._in_flight.keys():
            for relay in tuple(self._in_flight[uid]):
                relay.endpoint_gone()

    @property
    def revision(self) -> int:
        """Revision of the table in force."""
        return self._table.revision

    def peers(self) -> set[Peer]:
        """Every endpoint of the table."""
        return {Peer.of(endpoint) for pool in self._table.pools for endpoint in pool.server.endpoints}

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one exchange, whatever happens, and account for it."""
        request = exchange.request
        trace = _Trace(self._request_id(request))
        try:
            await self._answer(exchange, trace)
        except GatewayError as error:
            trace.outcome = trace.outcome or error.code or "refused"
            self._refuse(exchange, trace, error)
        except asyncio.CancelledError:
            trace.outcome = "client_stalled" if exchange.stalled else "client_gone" if exchange.gone else "cut"
            trace.status = _CLIENT_GONE_STATUS
            raise
        # The edge of one request: a fault of ours must cost this request only, and must be seen.
        except Exception:
            log.exception("request_failed", request_id=trace.request_id)
            trace.outcome = "internal_error"
            self._refuse(exchange, trace, errors.internal())
        finally:
            self._account(exchange, trace)

    # -- what is asked --------------------------------------------------------------------------------------------

    async def _answer(self, exchange: Exchange, trace: _Trace) -> None:
        request = exchange.request
        kind = surface(request.path)
        if kind is Surface.INFERENCE:
            _require_method(request, "POST")
            await self._infer(exchange, trace)
            return
        if kind is Surface.MALFORMED:
            raise GatewayError(400, "The path is malformed.")
        if kind is Surface.NOTHING:
            raise errors.not_found(request.path.decode(errors="replace"))
        _require_method(request, "GET")
        self._answer_locally(exchange, trace, kind)

    def _answer_locally(self, exchange: Exchange, trace: _Trace, kind: Surface) -> None:
        status, body = 200, b'{"message":"ok"}'
        if kind is Surface.MODELS:
            body = self._models
        elif kind is Surface.MODEL:
            name = exchange.request.path[len(b"/v1/models/") :].decode(errors="replace")
            listing = self._by_name.get(name)
            if listing is None:
                raise errors.model_not_found(name)
            body = model_page(listing)
        elif kind is Surface.READY and (self.draining or not self.revision):
            status, body = 503, b'{"message":"not ready"}'
        trace.status, trace.outcome = status, "ok"
        exchange.begin(status, [_JSON, _id_header(trace)], len(body))
        exchange.write(body)
        exchange.finish()

    # -- inference ------------------------------------------------------------------------------------------------

    async def _infer(self, exchange: Exchange, trace: _Trace) -> None:
        request = exchange.request
        wanted = _peek(request)
        trace.model, trace.stream = wanted.model, wanted.stream
        ask = Ask(wanted.model, request.path.decode(errors="replace"), _header_texts(request.headers))
        tried: set[str] = set()
        began = asyncio.get_running_loop().time()
        while True:
            choice = self._choose(ask, trace, frozenset(tried))
            limits = self._limits(choice, began)
            outcome = await self._attempt(exchange, trace, choice, limits)
            if outcome.failure is None:
                return
            trace.failures.append(f"{choice.endpoint.pod}: {outcome.failure.value} {outcome.detail}".rstrip())
            if not self._shall_retry(exchange, outcome, trace, limits):
                self._end_badly(exchange, trace, outcome)
                return
            tried.add(choice.endpoint.uid)
            trace.retries += 1
            self._stats.retry(trace.model, outcome.failure.value)
            await self._pause(trace, limits.retry.interval_seconds)

    def _choose(self, ask: Ask, trace: _Trace, tried: frozenset[str]) -> _Choice:
        """Route and schedule by the newest table, in one go: nothing may change in between."""
        table = self._table
        entry = table.entries.get(ask.model)
        if entry is None:
            raise errors.model_not_found(ask.model)
        if not trace.routed:
            trace.routed, trace.route = True, f"{entry.route.namespace}/{entry.route.name}"
            self._stats.begin(trace.model)
        rule = entry.rule_for(ask)
        if rule is None:
            raise errors.no_rule(ask.model)
        pool, target = self._target(table, rule, trace, tried)
        if pool is None or target is None:
            raise errors.no_endpoints(ask.model)
        decision = self._schedule(pool, trace.request_id, tried)
        if isinstance(decision, Refused):
            raise errors.overloaded(ask.model)
        record = _decision_record(table.revision, rule, target, decision)
        trace.server, trace.endpoint, trace.decision = pool.server, decision.endpoint, record
        return _Choice(entry, pool.server, decision.endpoint, decision, record)

    def _target(
        self, table: Table, rule: Rule, trace: _Trace, tried: frozenset[str]
    ) -> tuple[Pool | None, Target | None]:
        number = draw(trace.request_id, "target")

        def has_untried(target: Target) -> bool:
            pool = table.pool(target)
            return pool is not None and any(pool.server.endpoints[i].uid not in tried for i in pool.ready)

        target = choose_target(rule, number, has_untried) if tried else None
        target = target or choose_target(rule, number, table.can_serve)
        return (None, None) if target is None else (table.pool(target), target)

    def _schedule(self, pool: Pool, request_id: str, tried: frozenset[str]) -> Decision | Refused:
        pick = self._gathers[id(pool)]
        endpoints = pool.server.endpoints
        view = View(
            [endpoints[i] for i in pool.ready],
            self._board.requests(pick),
            self._board.request_bytes(pick),
            tried,
            pool.server.policy.max_in_flight_per_endpoint,
        )
        return decide(self._profile, view, partial(draw, request_id))

    def _limits(self, choice: _Choice, began: float) -> _Limits:
        route, server, own = choice.entry.route.policy, choice.server.policy, self._defaults
        total = _first(route.total_seconds, server.total_seconds, own.total_seconds)
        return _Limits(
            Deadlines(
                _first(route.first_byte_seconds, server.first_byte_seconds, own.first_byte_seconds),
                _first(route.idle_seconds, server.idle_seconds, own.idle_seconds),
                began + total,
            ),
            _retry_policy(server, own),
        )

    # -- one attempt ----------------------------------------------------------------------------------------------

    async def _attempt(self, exchange: Exchange, trace: _Trace, choice: _Choice, limits: _Limits) -> Outcome:
        """Ask one endpoint. The request is counted in from this very moment until its answer has ended."""
        endpoint, size = choice.endpoint, len(exchange.request.body)
        self._row.enter(endpoint.slot, size)
        try:
            data = _outgoing(exchange.request, choice, trace)
            peer = Peer.of(endpoint)
            outcome = await self._exchange_with(exchange, trace, endpoint, peer, limits, data, pooled=True)
            if outcome.failure is Failure.STALE:
                # The engine closed a kept connection as we used it: says nothing of the endpoint. Once, on a fresh one.
                trace.stale += 1
                self._stats.retry(trace.model, Failure.STALE.value)
                outcome = await self._exchange_with(exchange, trace, endpoint, peer, limits, data, pooled=False)
        finally:
            self._row.leave(endpoint.slot, size)
        return outcome

    async def _exchange_with(
        self,
        exchange: Exchange,
        trace: _Trace,
        endpoint: Endpoint,
        peer: Peer,
        limits: _Limits,
        data: bytes,
        *,
        pooled: bool,
    ) -> Outcome:
        loop, clock = asyncio.get_running_loop(), self._clock
        before = clock()
        connection = self._pool.take(peer, loop.time()) if pooled else None
        reused = connection is not None
        if connection is None:
            try:
                connection = await self._pool.connect(peer)
            except ConnectError as exc:
                return Outcome(Failure.CONNECT, None, str(exc), untouched=True)
            finally:
                trace.connect_seconds = clock() - before
                trace.waited += trace.connect_seconds
        relay = Relay(
            exchange,
            connection,
            limits.deadlines,
            [_id_header(trace)],
            clock,
            may_hold=trace.retries < limits.retry.attempts,
        )
        relays = self._in_flight[endpoint.uid]
        relays.add(relay)
        trace.sent_at = clock()
        try:
            relay.start(data)
            outcome = await relay.outcome
        finally:
            relay.stop()
            relays.discard(relay)
            if not relays:
                self._in_flight.pop(endpoint.uid, None)
            self._note_answer(trace, relay)
        if reused and outcome.untouched and outcome.failure is Failure.RESET:
            return Outcome(Failure.STALE, None, outcome.detail, untouched=True)
        trace.waited += clock() - trace.sent_at if outcome.failure is not None else 0.0
        return outcome

    def _note_answer(self, trace: _Trace, relay: Relay) -> None:
        if relay.status is not None:
            trace.status = relay.status
        trace.first_byte_at = relay.first_body_at
        if relay.outcome.done() and not relay.outcome.cancelled() and relay.outcome.result().failure is None:
            trace.outcome = "ok" if relay.status is not None and relay.status < 400 else "engine_error"

    # -- when it fails --------------------------------------------------------------------------------------------

    def _shall_retry(self, exchange: Exchange, outcome: Outcome, trace: _Trace, limits: _Limits) -> bool:
        if exchange.begun or outcome.failure is None:
            return False
        if asyncio.get_running_loop().time() >= limits.deadlines.ends_at:
            return False
        held = outcome.held
        transient = held is not None and status_is_transient(held.status, bytes(held.body))
        # A pooled connection that fails twice in a row is an endpoint that fails.
        failure = Failure.RESET if outcome.failure is Failure.STALE else outcome.failure
        return may_retry(failure, trace.retries, limits.retry, transient=transient)

    async def _pause(self, trace: _Trace, seconds: float) -> None:
        if seconds > 0:
            trace.waited += seconds
            await asyncio.sleep(seconds)

    def _end_badly(self, exchange: Exchange, trace: _Trace, outcome: Outcome) -> None:
        if outcome.held is not None:
            trace.outcome = "engine_error"
            _pass_on(exchange, outcome.held)
            return
        failure = outcome.failure or Failure.RESET
        error = errors.upstream_failed(failure)
        trace.outcome = failure.value
        if not exchange.begun:
            raise error
        if trace.stream:
            exchange.write(errors.error_event(error))
        exchange.cut()

    def _refuse(self, exchange: Exchange, trace: _Trace, error: GatewayError) -> None:
        if exchange.begun:
            exchange.cut()
            return
        body = errors.error_body(error)
        trace.status = error.status
        exchange.begin(error.status, [*error.headers, _id_header(trace)], len(body))
        exchange.write(body)
        exchange.finish()

    # -- accounting -----------------------------------------------------------------------------------------------

    def _request_id(self, request: Request) -> str:
        given = request.header(b"x-request-id")
        # Visible ASCII only: it goes into a header, a log line and the engine's own ids.
        if given and len(given) <= _REQUEST_ID_LIMIT and all(0x21 <= c <= 0x7E for c in given):
            return given.decode()
        return self._new_request_id()

    def _account(self, exchange: Exchange, trace: _Trace) -> None:
        request = exchange.request
        total = self._clock() - request.received
        model = trace.model if trace.routed else UNKNOWN_MODEL
        if not trace.routed:
            self._stats.begin(model)
        self._stats.end(model, trace.status, total, client_gone=exchange.gone)
        if trace.first_byte_at is not None and trace.status < 400:
            self._stats.first_token(model, trace.first_byte_at - request.received)
        overhead = None if trace.sent_at is None else max(0.0, trace.sent_at - request.received - trace.waited)
        if overhead is not None:
            self._stats.overhead(model, overhead)
        server, endpoint = trace.server, trace.endpoint
        self._access.write(
            AccessRecord(
                self._now(),
                trace.request_id,
                request.method,
                request.path.decode(errors="replace"),
                trace.status,
                trace.outcome,
                worker=self._worker,
                client=request.peer,
                model=trace.model,
                route=trace.route,
                server=server.name if server else "",
                pod=endpoint.pod if endpoint else "",
                endpoint=f"{endpoint.address}:{endpoint.port}" if endpoint else "",
                stream=trace.stream,
                retries=trace.retries,
                stale_connections=trace.stale,
                failures=trace.failures,
                bytes_in=len(request.body),
                bytes_out=exchange.bytes_out,
                total_ms=_milliseconds(total),
                overhead_ms=_milliseconds(overhead),
                connect_ms=_milliseconds(trace.connect_seconds),
                first_byte_ms=_milliseconds(
                    None if trace.first_byte_at is None else trace.first_byte_at - request.received
                ),
                decision=trace.decision,
            )
        )


def _require_method(request: Request, method: str) -> None:
    if request.method != method:
        raise errors.method_not_allowed(request.method, method)


def _peek(request: Request) -> Peek:
    media = (request.header(b"content-type") or b"").split(b";", 1)[0].strip().lower()
    if media.startswith(b"multipart/"):
        raise errors.unsupported_media(media.decode(errors="replace"))
    try:
        return peek(request.body)
    except BodyError as exc:
        raise errors.bad_body(str(exc), exc.param) from exc


def _header_texts(headers: Headers) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1"), value.decode("utf-8", "replace")
        # A header that came twice means the list of both.
        texts[key] = f"{texts[key]}, {text}" if key in texts else text
    return texts


def _id_header(trace: _Trace) -> tuple[bytes, bytes]:
    return b"x-request-id", trace.request_id.encode()


def _outgoing(request: Request, choice: _Choice, trace: _Trace) -> bytes:
    server, endpoint = choice.server, choice.endpoint
    body = request.body
    if server.model is not None and not choice.entry.is_adapter and server.model != trace.model:
        body = with_model(body, server.model)
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    headers = [
        (b"host", f"{host}:{endpoint.port}".encode()),
        *end_to_end(request.headers, drop=_NOT_FOR_ENGINES),
        _id_header(trace),
        (b"content-length", b"%d" % len(body)),
    ]
    return request_head(request.method, request.target, headers) + body


def _pass_on(exchange: Exchange, held: Held) -> None:
    exchange.begin(held.status, held.headers, len(held.body))
    exchange.write(bytes(held.body))
    exchange.finish()


def _retry_policy(policy: TrafficPolicy, own: TrafficDefaults) -> RetryPolicy:
    return RetryPolicy(
        own.retry_attempts if policy.retry_attempts is None else policy.retry_attempts,
        own.retry_interval_seconds if policy.retry_interval_seconds is None else policy.retry_interval_seconds,
    )


def _decision_record(revision: int, rule: Rule, target: Target, decision: Decision) -> DecisionRecord:
    best = max(decision.scores)
    return DecisionRecord(
        revision,
        rule.name,
        target.name,
        len(decision.candidates),
        decision.scores.count(best),
        round(best, 4),
        {removal.filter: len(removal.positions) for removal in decision.removals},
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _milliseconds(seconds: float | None) -> float:
    return -1.0 if seconds is None else round(seconds * 1000, 3)
