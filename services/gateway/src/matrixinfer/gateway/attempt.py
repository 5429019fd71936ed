"""One attempt: a request is sent to one endpoint, and its answer relayed.

Owns what is in flight: the load board's row is entered and left here, and the requests that wait for a pod are known
by it. Whether a failed attempt is repeated is not decided here, with one exception: a kept connection that the engine
closed as it was used says nothing of the endpoint, so the attempt goes on over a fresh one, once.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

from matrixinfer.engines.catalog import ENGINES
from matrixinfer.gateway.board import Claim, LoadRow
from matrixinfer.gateway.choosing import Choice
from matrixinfer.gateway.core.form import form_boundary, is_multipart, with_form_model
from matrixinfer.gateway.core.hiddenusage import HiddenUsage, with_usage
from matrixinfer.gateway.core.load import progress
from matrixinfer.gateway.core.objects import IdFinder, keeper
from matrixinfer.gateway.core.retry import Failure, speaks_of_endpoint, status_is_transient
from matrixinfer.gateway.core.splice import with_model
from matrixinfer.gateway.core.surface import makes_object
from matrixinfer.gateway.core.types import Endpoint, Server
from matrixinfer.gateway.core.usage import Answer, usage_of
from matrixinfer.gateway.health import Health
from matrixinfer.gateway.ledger import LedgerPage
from matrixinfer.gateway.terms import Terms
from matrixinfer.gateway.trace import Trace
from matrixinfer.gateway.tracing import AttemptTimes, Tracer
from matrixinfer.gateway.wire.message import HOP_BY_HOP, Exchange, Request, authority, end_to_end, request_head
from matrixinfer.gateway.wire.pool import ConnectError, Peer, UpstreamPool
from matrixinfer.gateway.wire.relay import Outcome, Relay, is_event_stream
from matrixinfer.gateway.wire.upstream import UpstreamConnection

__all__ = ["Attempts"]

_ADD_USAGE_EVENT = frozenset(name.value for name, engine in ENGINES.items() if engine.adds_usage_event)
_TAKE_STREAM_OPTIONS = frozenset({b"/v1/chat/completions", b"/v1/completions"})

# The client's credentials are for the gateway, not for whoever runs a pod. Without Accept-Encoding the engine answers
# plainly. Framing, host and request id are written anew.
_NOT_FOR_ENGINES = HOP_BY_HOP | {
    b"accept-encoding",
    b"api-key",
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"x-api-key",
    b"x-goog-api-key",
    b"x-matrixinfer-explain",
    b"x-request-id",
}

_NOT_FOR_ENGINES_OF_TRACED = _NOT_FOR_ENGINES | {b"traceparent", b"tracestate"}

# Paths that an engine has under another name only.
_SPELLINGS: Mapping[str, Mapping[bytes, bytes]] = {
    name.value: {ours.encode(): theirs.encode() for ours, theirs in engine.spellings.items()}
    for name, engine in ENGINES.items()
}
_NO_SPELLINGS: Mapping[bytes, bytes] = {}

_GONE = Outcome(Failure.ENDPOINT_GONE, None, "the pod is gone", untouched=True)
_LATE = Outcome(Failure.TOTAL, None, "no connection in the time that the request may take", untouched=True)


class Attempts:
    """The attempts of one worker."""

    def __init__(
        self,
        *,
        pool: UpstreamPool,
        row: LoadRow,
        page: LedgerPage,
        health: Health,
        freed: Callable[[], None],
        clock: Callable[[], float],
        asks_for_usage: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        """`freed` is called when a request has ended.

        `asks_for_usage` lets engines count the streams of clients that did not ask, unseen by these.
        """
        self._tracer = tracer
        self._pool = pool
        self._page = page
        self._health = health
        self._freed = freed
        self._asks_for_usage = asks_for_usage
        self._row = row
        self._relays = 0
        self._clock = clock
        self._gone: frozenset[str] = frozenset()
        self._connecting: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)
        self._claims: dict[Relay, tuple[Claim, Choice, Trace]] = {}
        # Those of a few claims only: when the request was sent that is to prove its endpoint.
        self._trials: dict[Claim, float] = {}

    def end_those_of(self, gone: frozenset[str]) -> None:
        """End what waits for the pods of these uids, and whatever is about to: no byte can come from them.

        A pod that requests are counted on is named by every snapshot, so the newest one's are all there are.
        """
        self._gone = gone
        for uid in gone:
            for limit in self._connecting.get(uid, ()):
                if not limit.expired():
                    limit.reschedule(0.0)
        if gone:
            for relay in [relay for relay, (_, choice, _) in self._claims.items() if choice.endpoint.uid in gone]:
                relay.endpoint_gone()

    @property
    def running(self) -> int:
        """Requests that engines work on."""
        return len(self._claims)

    def note_progress(self) -> None:
        """Tell the board how far all answers have come. Called now and then, because the pieces themselves are many."""
        now = self._clock()
        for relay, (claim, choice, trace) in self._claims.items():
            come = progress(
                choice.burden,
                streams=trace.stream,
                pieces=relay.pieces,
                seconds=0.0 if trace.sent_at is None else now - trace.sent_at,
            )
            if come.is_read:
                claim.prefilled()
            claim.expect(come.decode_tokens)

    def enter(self, choice: Choice) -> Claim:
        """Count a request in, in the same moment in which it was decided on. `run` or `leave` must follow."""
        tried_at = self._health.sent(choice.endpoint)
        claim = self._row.enter(choice.endpoint.slot, choice.burden)
        if tried_at:
            self._trials[claim] = tried_at
        return claim

    def leave(self, choice: Choice, claim: Claim) -> None:
        """The request is not sent after all."""
        claim.end()
        choice.undo()
        self._health.over(choice.endpoint, self._trials.pop(claim, 0.0))

    async def run(
        self, exchange: Exchange, trace: Trace, choice: Choice, claim: Claim, terms: Terms, *, once: bool = False
    ) -> Outcome:
        """Ask one endpoint. The request was counted in with `claim`, until its answer has ended.

        `once` is for what must not be done twice: a kept connection may fail after the engine did it, so it gets a new
        one.
        """
        endpoint, health = choice.endpoint, self._health
        tried_at = self._trials.pop(claim, 0.0)
        outcome: Outcome | None = None

        def began(status: int) -> None:
            claim.prefilled()
            health.answers(endpoint, status, choice.server.policy, tried_at)

        try:
            trace.hides_usage = self._asks_for_usage and _may_ask_for_usage(exchange.request, choice.server, trace)
            outcome = await self._over(exchange, trace, choice, terms, claim, began, pooled=not once)
            if outcome.failure is Failure.STALE:
                trace.stale += 1
                trace.series.retry(Failure.STALE.value)
                outcome = await self._over(exchange, trace, choice, terms, claim, began, pooled=False)
        finally:
            claim.end()
            self._freed()
            trace.tripped = self._note_health(choice, outcome, exchange, tried_at)
            health.over(endpoint, tried_at)
        return outcome

    def _note_health(self, choice: Choice, outcome: Outcome | None, exchange: Exchange, tried_at: float) -> bool:
        """Tell what the end of an attempt says of the endpoint; how its answer began was told already.

        True when it was one failure too many.
        """
        health, endpoint, policy = self._health, choice.endpoint, choice.server.policy
        if outcome is None or outcome.failure is None or not speaks_of_endpoint(outcome.failure):
            return False
        if outcome.held is not None and not status_is_transient(outcome.held.status, bytes(outcome.held.body)):
            health.answers(endpoint, outcome.held.status, policy, tried_at)
            return False
        if exchange.begun:
            health.broke_off(endpoint)
            return False
        return health.failed(endpoint, policy, tried_at)

    async def _over(
        self,
        exchange: Exchange,
        trace: Trace,
        choice: Choice,
        terms: Terms,
        claim: Claim,
        began: Callable[[int], None],
        *,
        pooled: bool,
    ) -> Outcome:
        loop, clock, endpoint = asyncio.get_running_loop(), self._clock, choice.endpoint
        if endpoint.uid in self._gone:
            return _GONE
        peer = Peer.of(endpoint)
        before = clock()
        noted = self._tracer.attempt(trace.spans, endpoint, before) if self._tracer and trace.spans else None
        if noted is not None:
            trace.context = noted.context
        connection = self._pool.take(peer, loop.time()) if pooled else None
        reused = connection is not None
        if connection is None:
            try:
                made = await self._connect(endpoint, peer, terms.deadlines.ends_at)
            finally:
                now = clock()
                trace.connect_seconds = now - before
                trace.waited += trace.connect_seconds
                if noted is not None:
                    noted.ended = now
            if isinstance(made, Outcome):
                if noted is not None and made.failure is not None:
                    noted.failure = made.failure.value
                return made
            connection = made
        self._relays += 1
        relay = Relay(
            exchange,
            connection,
            terms.deadlines,
            trace.answer_headers,
            clock,
            loop,
            may_hold=trace.retries < terms.retry.attempts,
            began=began,
            opening=self._opening(endpoint) if makes_object(exchange.request.path) else None,
            observe_gap=trace.series.between_pieces.observe,
            phase=self._relays,
            hidden=HiddenUsage() if trace.hides_usage else None,
        )
        self._claims[relay] = claim, choice, trace
        sent = clock()
        try:
            # Rendered here and kept by nobody: a long prompt must not be held for as long as its answer streams.
            data = _outgoing(exchange.request, choice, trace)
            trace.sent_at = sent = clock()
            relay.start(data)
            del data
            outcome = await relay.outcome
        finally:
            relay.stop()
            del self._claims[relay]
            _note_answer(trace, relay, exchange)
            if trace.is_event_stream and relay.first_body_at is not None:
                self._health.first_token(endpoint, relay.first_body_at - sent)
            if noted is not None:
                _note_times(noted, relay, sent, clock(), reused=reused)
        trace.waited += clock() - sent if outcome.failure is not None else 0.0
        if reused and outcome.untouched and outcome.failure is Failure.RESET:
            return Outcome(Failure.STALE, None, outcome.detail, untouched=True)
        return outcome

    async def _connect(self, endpoint: Endpoint, peer: Peer, ends_at: float) -> UpstreamConnection | Outcome:
        """Open a connection, within the time of the request and the life of the pod."""
        # Behind a turn of the loop this is a task (`wire.running`), which a timeout needs to be in.
        await asyncio.sleep(0)
        if endpoint.uid in self._gone:
            return _GONE
        limits = self._connecting[endpoint.uid]
        try:
            async with asyncio.timeout_at(ends_at) as limit:
                limits.add(limit)
                connection = await self._pool.connect(peer)
        except ConnectError as exc:
            return Outcome(Failure.CONNECT, None, str(exc), untouched=True)
        except TimeoutError:
            return _GONE if endpoint.uid in self._gone else _LATE
        finally:
            limits.discard(limit)
            if not limits:
                self._connecting.pop(endpoint.uid, None)
        return connection

    def _opening(self, endpoint: Endpoint) -> Callable[[bytes], bool]:
        """Look for the id of the object that the answer is, and remember who keeps it before the client knows it."""
        finder, kept_by = IdFinder(), keeper(endpoint)

        def look(data: bytes) -> bool:
            is_over = finder.feed(data)
            if finder.object_id:
                self._page.remember(finder.object_id, kept_by)
            return is_over

        return look


def _note_answer(trace: Trace, relay: Relay, exchange: Exchange) -> None:
    if relay.status is not None:
        trace.status = relay.status
    trace.first_byte_at = relay.first_body_at
    trace.is_event_stream = is_event_stream(relay.content_type)
    # The outcome is cancelled when the client left, or this process ends; the engine was at work then, or about done.
    was_left = relay.outcome.cancelled()
    is_complete = relay.has_last_event if was_left else relay.outcome.done() and relay.outcome.result().failure is None
    if is_complete:
        trace.outcome = "ok" if relay.status is not None and relay.status < 400 else "engine_error"
    if (relay.status is None and not was_left) or (relay.status or 0) >= 400:
        return
    answer = Answer(
        exchange.request.path,
        relay.first_bytes,
        relay.last_bytes,
        relay.pieces,
        is_stream=trace.is_event_stream,
        is_complete=is_complete,
    )
    trace.usage = usage_of(answer, exchange.bytes_in)


def _note_times(noted: AttemptTimes, relay: Relay, sent: float, ended: float, *, reused: bool) -> None:
    noted.reused, noted.sent, noted.ended = reused, sent, ended
    noted.first_byte, noted.status = relay.first_body_at, relay.status
    if relay.outcome.cancelled():
        noted.failure = "" if relay.has_last_event else "client_gone"
    elif relay.outcome.done() and (failure := relay.outcome.result().failure) is not None:
        noted.failure = failure.value


def _may_ask_for_usage(request: Request, server: Server, trace: Trace) -> bool:
    return (
        trace.stream
        and not trace.has_stream_options
        and server.engine in _ADD_USAGE_EVENT
        and request.path in _TAKE_STREAM_OPTIONS
    )


def _outgoing(request: Request, choice: Choice, trace: Trace) -> bytes:
    server, endpoint = choice.server, choice.endpoint
    body = request.body
    if choice.model is not None:
        body = _with_model(request, choice.model)
    if trace.hides_usage:
        body = with_usage(body)
    headers = [(b"host", authority(endpoint.address, endpoint.port))]
    if trace.context is None:
        headers += end_to_end(request.headers, drop=_NOT_FOR_ENGINES)
    else:
        headers += end_to_end(request.headers, drop=_NOT_FOR_ENGINES_OF_TRACED)
        headers += trace.context_headers
    headers.append(trace.id_header)
    if body or request.method == "POST":
        headers.append((b"content-length", b"%d" % len(body)))
    return request_head(request.method, _spelled(request, server), headers) + body


def _with_model(request: Request, model: str) -> bytes:
    media = request.header(b"content-type") or b""
    if is_multipart(media):
        return with_form_model(request.body, form_boundary(media), model)
    return with_model(request.body, model)


def _spelled(request: Request, server: Server) -> bytes:
    """The target as this engine spells it."""
    other = _SPELLINGS.get(server.engine, _NO_SPELLINGS).get(request.path)
    if other is None:
        return request.target
    _, query, rest = request.target.partition(b"?")
    return other + query + rest
