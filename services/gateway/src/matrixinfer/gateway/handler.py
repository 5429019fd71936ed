"""One request from its bytes to its answer: read, route, choose, relay, repeat where that helps, account.

Owns the order of things; every decision is a pure function of `core`, every byte moves in `wire`. There is no await
between reading the table and counting the request in, so the decision is about the loads that it saw. Only this layer
goes to another endpoint; below it, a kept connection that turns out to be dead is replaced once.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from math import inf
from typing import Any, Literal

import msgspec

from matrixinfer.gateway import errors
from matrixinfer.gateway.access import AccessLog
from matrixinfer.gateway.attempt import Attempts
from matrixinfer.gateway.board import LoadBoard, LoadRow
from matrixinfer.gateway.choosing import Choice, Chooser, Full, Load
from matrixinfer.gateway.core.form import form_boundary, is_multipart, peek_form
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.objects import Keeper
from matrixinfer.gateway.core.peek import BodyError, Peek, peek
from matrixinfer.gateway.core.prompt import NOTHING, Prompt, read_body
from matrixinfer.gateway.core.retry import Failure, RetryPolicy, may_retry, status_is_transient
from matrixinfer.gateway.core.schedule.record import Recorded
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.spans import Attributes
from matrixinfer.gateway.core.surface import (
    Surface,
    allowed_methods,
    is_generation,
    listed_model,
    stored_object,
    surface,
)
from matrixinfer.gateway.core.table import Table
from matrixinfer.gateway.core.types import Server, Snapshot
from matrixinfer.gateway.decisions import DecisionBook, Noted
from matrixinfer.gateway.errors import GatewayError
from matrixinfer.gateway.health import Health, HealthBoard
from matrixinfer.gateway.ledger import Ledger
from matrixinfer.gateway.models import ModelPages
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.refusing import Refusals
from matrixinfer.gateway.stats import UNKNOWN_MODEL, Stats
from matrixinfer.gateway.terms import Terms, TrafficDefaults, agreed
from matrixinfer.gateway.trace import Trace
from matrixinfer.gateway.tracing import Summary, Tracer
from matrixinfer.gateway.waiting import Placed, Waiting
from matrixinfer.gateway.ways import Way, Ways
from matrixinfer.gateway.wire.message import Exchange, Headers, Request, header
from matrixinfer.gateway.wire.pool import Peer, UpstreamPool
from matrixinfer.gateway.wire.relay import Held, Outcome
from matrixinfer.service.logging import get_logger

__all__ = ["Handler"]

log = get_logger("handler")

_JSON = (b"content-type", b"application/json")
_TRACED = frozenset({Surface.INFERENCE, Surface.STORED})
_NO_RETRY = RetryPolicy(0, 0.0)
_NOBODY: frozenset[str] = frozenset()
_CLIENT_GONE_STATUS = 499
_PROMPT_LIMIT_BYTES = 8 * 2**20
"""Reading the prompt of a larger body would hold up everybody else."""
_REQUEST_ID_LIMIT = 128
_PRIORITY_LIMIT = 1000
# Often enough for a scheduler, and never more than a few percent of the time, however many answers stream.
_PROGRESS_SECONDS = 0.2
_PROGRESS_SECONDS_EACH = 50e-6


class Handler:
    """Answers exchanges. One per worker."""

    def __init__(
        self,
        *,
        worker: int,
        pool: UpstreamPool,
        board: LoadBoard,
        row: LoadRow,
        prefixes: PrefixIndex,
        ledger: Ledger,
        health: HealthBoard,
        stats: Stats,
        access: AccessLog,
        defaults: TrafficDefaults,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        new_request_id: Callable[[], str],
        wake: Callable[[Server], None],
        asks_for_usage: bool = True,
        tracer: Tracer | None = None,
        decision_header: Literal["asked", "always", "never"] = "asked",
    ) -> None:
        self.decisions = DecisionBook(worker)
        """The newest decisions, for whoever asks."""
        self._decision_header = decision_header
        self._tracer = tracer
        self._worker = worker
        self._board = board
        self._prefixes = prefixes
        self._ledger = ledger
        self._stats = stats
        self._unrouted = stats.series(UNKNOWN_MODEL, UNKNOWN_MODEL)
        self._access = access
        self._defaults = defaults
        self._now = now
        # Not the loop's clock, which stands still during a tick and counts whole milliseconds.
        self._clock = clock
        self._new_request_id = new_request_id
        self._health = Health(health, health.row(worker), defaults.breaker, clock)
        self._waiting = Waiting(
            defaults.queue,
            has_room=lambda server: self._chooser.has_room(server),
            give_back=lambda placed: self._attempts.leave(placed.choice, placed.claim),
            wake=wake,
        )
        self._attempts = Attempts(
            pool=pool,
            row=row,
            page=ledger.page(worker),
            health=self._health,
            freed=self._waiting.release_soon,
            clock=clock,
            asks_for_usage=asks_for_usage,
            tracer=tracer,
        )
        self.refuse = Refusals(
            worker=worker,
            series=self._unrouted,
            access=access,
            now=now,
            clock=clock,
            request_id=lambda headers: self._request_id(header(headers, b"x-request-id")),
        )
        """Answers what the inlet could not accept."""
        self._ways = Ways(stats, defaults)
        self.rung = Rung.FULL
        """How much of scheduling there is time for; set by whoever measures."""
        self.draining = False
        """Set to answer /readyz with 503."""
        self.install(Snapshot(0))

    def install(self, snapshot: Snapshot) -> None:
        """Route by `snapshot` from now on, and end what waits for pods that are gone."""
        table = Table(snapshot)
        # Everything that is read per request is derived here, once per revision.
        self._health.install(endpoint for server in snapshot.servers for endpoint in server.endpoints)
        self._chooser = Chooser(table, self._board, self._prefixes, self._health, self._clock)
        self._models = ModelPages(table.listings)
        self._stats.expect(table.series_keys())
        self._ways.begin_anew(snapshot.servers)
        self._attempts.end_those_of(table.gone)
        if self._waiting.lines:
            self._waiting.release(rerouted=True)

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return self._waiting.size

    def note_progress(self) -> float:
        """Keep the load board true while answers stream; returns the seconds until it wants to be called again."""
        self._attempts.note_progress()
        return _PROGRESS_SECONDS + self._attempts.running * _PROGRESS_SECONDS_EACH

    @property
    def revision(self) -> int:
        """Revision of the table in force."""
        return self._chooser.table.revision

    def peers(self) -> set[Peer]:
        """Every endpoint of the table."""
        return {Peer.of(endpoint) for pool in self._chooser.table.pools for endpoint in pool.server.endpoints}

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one exchange, whatever happens, and account for it."""
        request = exchange.request
        trace = Trace(self._request_id(request.header(b"x-request-id")), self._unrouted, self._unrouted)
        try:
            going = self._answer(exchange, trace)
            if going is not None:
                await going
        except GatewayError as error:
            trace.outcome = trace.outcome or error.code or "refused"
            self._refuse(exchange, trace, error)
        except asyncio.CancelledError:
            if trace.outcome != "ok":
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

    def _answer(self, exchange: Exchange, trace: Trace) -> Coroutine[Any, Any, None] | None:
        """Answer what needs no endpoint; returns what answers all else."""
        request = exchange.request
        kind = surface(request.path)
        if kind is Surface.MALFORMED:
            raise GatewayError(400, "The path is malformed.")
        if kind is Surface.NOTHING:
            raise errors.not_found(request.path.decode(errors="replace"))
        if self._tracer is not None and kind in _TRACED:
            trace.follow(self._tracer.begin(request))
        allowed = allowed_methods(kind)
        if request.method == "OPTIONS":
            self._answer_options(exchange, trace, allowed)
        elif request.method not in allowed:
            raise errors.method_not_allowed(request.method, allowed)
        elif kind is Surface.INFERENCE:
            return self._infer(exchange, trace)
        elif kind is Surface.STORED:
            return self._ask_keeper(exchange, trace)
        else:
            self._answer_locally(exchange, trace, kind)
        return None

    def _answer_options(self, exchange: Exchange, trace: Trace, allowed: Sequence[str]) -> None:
        trace.status, trace.outcome = 204, "ok"
        exchange.begin(204, [errors.allow_header(allowed), trace.id_header], None)
        exchange.finish()

    def _answer_locally(self, exchange: Exchange, trace: Trace, kind: Surface) -> None:
        status, body = 200, b'{"message":"ok"}'
        # The one thing that every client of Anthropic's sends and no other does.
        anthropic = exchange.request.header(b"anthropic-version") is not None
        if kind is Surface.MODELS:
            body = self._models.all(anthropic=anthropic)
        elif kind is Surface.MODEL:
            name = listed_model(exchange.request.path)
            found = self._models.one(name, anthropic=anthropic)
            if found is None:
                raise errors.model_not_found(name)
            body = found
        elif kind is Surface.READY and (self.draining or not self.revision):
            status, body = 503, b'{"message":"not ready"}'
        trace.status, trace.outcome = status, "ok"
        _answer_with(exchange, status, [_JSON, trace.id_header], body)

    # -- stored objects -------------------------------------------------------------------------------------------

    async def _ask_keeper(self, exchange: Exchange, trace: Trace) -> None:
        """Pass the call on to the one endpoint that can answer. Other than GET it changes something, and is sent once:
        a second answer (404 for what is deleted already) would hide what the first one said.
        """
        object_id = stored_object(exchange.request.path)
        kept_by = self._ledger.find(object_id)
        if kept_by is None:
            raise errors.object_unknown(object_id)
        choice = self._chooser.keeper_of(object_id, kept_by, trace)
        claim = self._attempts.enter(choice)
        began = asyncio.get_running_loop().time()
        terms = agreed(choice.policy, choice.server.policy, self._defaults)
        unrepeated = msgspec.structs.replace(terms, retry=_NO_RETRY).since(began, _asked_seconds(exchange.request))
        once = exchange.request.method != "GET"
        outcome = await self._attempts.run(exchange, trace, choice, claim, unrepeated, once=once)
        if outcome.failure is not None:
            self._end_badly(exchange, trace, outcome)

    # -- inference ------------------------------------------------------------------------------------------------

    async def _infer(self, exchange: Exchange, trace: Trace) -> None:
        request = exchange.request
        wanted, prompt = self._read(request)
        trace.model, trace.stream, trace.has_stream_options = wanted.model, wanted.stream, wanted.has_stream_options
        ask = Ask(wanted.model, request.path.decode(errors="replace"), _HeaderTexts(request.headers))
        trace.tells_decision = self._decision_header == "always" or (
            self._decision_header == "asked" and request.header(b"x-matrixinfer-explain") is not None
        )
        kept_by = self._ledger.find(wanted.previous) if wanted.previous else None
        load = Load(len(request.body), prompt)
        tried = _NOBODY
        began = asyncio.get_running_loop().time()
        asked = _asked_seconds(request)
        while True:
            choice = self._choose(ask, trace, load, tried, kept_by)
            if isinstance(choice, Choice) and not (self._waiting.lines and self._waiting.has_line(choice.server)):
                claim = self._attempts.enter(choice)
            else:
                full = self._behind(choice) if isinstance(choice, Choice) else choice
                again = partial(self._place, ask, trace, load, tried, kept_by)
                choice, claim = await self._wait(full, again, ask, exchange, trace, began, asked)
            way = self._way(trace, choice)
            if not tried:
                way.budget.request(self._clock())
            terms = way.agreed.since(began, asked)
            self._note_decision(trace, choice)
            outcome = await self._attempts.run(exchange, trace, choice, claim, terms)
            if outcome.failure is None:
                return
            if outcome.untouched or outcome.failure is Failure.ENDPOINT_GONE or _is_transient(outcome):
                choice.undo()
            trace.failures.append(f"{choice.endpoint.pod}: {outcome.failure.value} {outcome.detail}".rstrip())
            if not self._shall_retry(exchange, outcome, trace, terms) or not self._can_afford(choice, outcome, trace):
                self._end_badly(exchange, trace, outcome)
                return
            tried |= {choice.endpoint.uid}
            trace.retries += 1
            trace.series.retry(outcome.failure.value)
            await self._pause(trace, terms.retry.interval_seconds)

    def _read(self, request: Request) -> tuple[Peek, Prompt]:
        """Read what is asked, and the prompt, where the path has one that engines keep and there is time for it."""
        coding = request.header(b"content-encoding")
        if coding is not None and coding.strip().lower() != b"identity":
            raise errors.unsupported_coding(coding.decode(errors="replace"))
        media, body = request.header(b"content-type") or b"", request.body
        try:
            if is_multipart(media):
                return peek_form(body, form_boundary(media)), NOTHING
            if self.rung <= Rung.SHORT_PREFIX and len(body) <= _PROMPT_LIMIT_BYTES and is_generation(request.path):
                return read_body(body)
            return peek(body), NOTHING
        except BodyError as exc:
            raise errors.bad_body(str(exc), exc.param) from exc

    def _choose(
        self, ask: Ask, trace: Trace, load: Load, tried: frozenset[str], kept_by: Keeper | None
    ) -> Choice | Full:
        """Route and schedule by the newest table."""
        chooser = self._chooser
        entry = chooser.entry(trace)
        if not trace.routed:
            trace.routed, trace.route = True, f"{entry.route.namespace}/{entry.route.name}"
            trace.lobby = trace.series = self._stats.series(trace.model, trace.route)
            trace.lobby.begin()
        began = self._clock() if trace.spans is not None else 0.0
        choice = chooser.choose(entry, ask, trace, load, tried=tried, kept_by=kept_by, rung=self.rung)
        if isinstance(choice, Choice):
            if trace.spans is not None:
                trace.spans.phases.append(("schedule", began, self._clock(), _noted(chooser.table.revision, choice)))
            trace.series = self._way(trace, choice).series
        return choice

    def _way(self, trace: Trace, choice: Choice) -> Way:
        return self._ways.of(trace.model, trace.route, choice.policy, choice.server)

    def _place(
        self, ask: Ask, trace: Trace, load: Load, tried: frozenset[str], kept_by: Keeper | None
    ) -> Placed | Full:
        choice = self._choose(ask, trace, load, tried, kept_by)
        return Placed(choice, self._attempts.enter(choice)) if isinstance(choice, Choice) else choice

    def _behind(self, choice: Choice) -> Full:
        """There is room, but others wait for it already."""
        choice.undo()
        return Full(choice.server, choice.priority, is_empty=False)

    async def _wait(
        self,
        full: Full,
        again: Callable[[], Placed | Full],
        ask: Ask,
        exchange: Exchange,
        trace: Trace,
        began: float,
        asked: float | None,
    ) -> Placed:
        request, before = exchange.request, self._clock()
        entry = self._chooser.entry(trace)
        terms = agreed(entry.route.policy, full.server.policy, self._defaults).since(began, asked)
        try:
            return await self._waiting.wait(
                full,
                again,
                model=trace.model,
                size=len(request.body),
                priority=_asked_priority(ask),
                arrived=request.received,
                ends_at=terms.deadlines.ends_at,
            )
        finally:
            waited = self._clock() - before
            trace.waited += waited
            trace.queued_seconds = (trace.queued_seconds or 0.0) + waited
            if trace.spans is not None:
                trace.spans.phases.append(("wait", before, before + waited, {}))

    def _note_decision(self, trace: Trace, choice: Choice) -> None:
        """Count and remember a decision that is acted on: one that was taken back is none."""
        placed = choice.placement
        if placed is not None:
            trace.series.placed(placed.rung.label, placed.cached_tokens, choice.burden.prefill_tokens)
            recorded = Recorded.of(trace.request_id, trace.revision, placed.profile, placed.view, placed.rung)
            server, pod = choice.server.name, choice.endpoint.pod
            self.decisions.note(Noted(self._now(), trace.route, trace.rule, server, pod, recorded))

    # -- when it fails --------------------------------------------------------------------------------------------

    def _shall_retry(self, exchange: Exchange, outcome: Outcome, trace: Trace, terms: Terms) -> bool:
        if exchange.begun or outcome.failure is None:
            return False
        remaining = terms.deadlines.ends_at - asyncio.get_running_loop().time()
        # A pooled connection that fails twice in a row is an endpoint that fails.
        failure = Failure.RESET if outcome.failure is Failure.STALE else outcome.failure
        return may_retry(failure, trace.retries, terms.retry, remaining, transient=_is_transient(outcome))

    def _can_afford(self, choice: Choice, outcome: Outcome, trace: Trace) -> bool:
        """Whether sending the request again multiplies no overload.

        What was in flight on an endpoint that takes nothing any more fails once, and costs nothing; nor does a
        request that could not even be sent.
        """
        if outcome.failure is Failure.CONNECT:
            return True
        chooser = self._chooser
        is_last = not chooser.is_offered(choice) or (chooser.is_left_out(choice) and not trace.tripped)
        if is_last or self._way(trace, choice).budget.spend(self._clock()):
            return True
        trace.failures.append("the retry budget is spent")
        return False

    async def _pause(self, trace: Trace, seconds: float) -> None:
        if seconds > 0:
            trace.waited += seconds
            await asyncio.sleep(seconds)

    def _end_badly(self, exchange: Exchange, trace: Trace, outcome: Outcome) -> None:
        if outcome.held is not None:
            trace.outcome = "engine_error"
            _pass_on(exchange, outcome.held)
            return
        failure = outcome.failure or Failure.RESET
        error = errors.upstream_failed(failure)
        trace.outcome = failure.value
        if not exchange.begun:
            raise error
        if trace.is_event_stream:
            exchange.write(errors.error_event(error, exchange.request.path, trace.request_id))
        exchange.cut()

    def _refuse(self, exchange: Exchange, trace: Trace, error: GatewayError) -> None:
        if exchange.begun:
            exchange.cut()
            return
        body = errors.error_body(error, exchange.request.path, trace.request_id)
        trace.status = error.status
        _answer_with(exchange, error.status, [*error.headers, *trace.answer_headers], body)

    # -- accounting -----------------------------------------------------------------------------------------------

    def _request_id(self, given: bytes | None) -> str:
        # Visible ASCII only: it goes into a header, a log line and the engine's own ids.
        if given and len(given) <= _REQUEST_ID_LIMIT and all(0x21 <= c <= 0x7E for c in given):
            return given.decode()
        return self._new_request_id()

    def _account(self, exchange: Exchange, trace: Trace) -> None:
        received, now, series = exchange.request.received, self._clock(), trace.series
        if trace.routed:
            trace.lobby.leave()
        left = exchange.gone and trace.outcome != "ok"
        series.end(trace.status, trace.outcome, now - received, client_gone=left)
        if trace.first_byte_at is not None and trace.status < 400:
            series.first_token.observe(trace.first_byte_at - received)
        if trace.usage is not None:
            series.used(trace.usage)
        if (pace := trace.seconds_per_token(now)) is not None:
            series.per_token.observe(pace)
        if trace.queued_seconds is not None:
            series.queue.observe(trace.queued_seconds)
        if (overhead := trace.overhead_seconds(received)) is not None:
            series.overhead.observe(overhead)
        if self._tracer is not None and trace.spans is not None:
            self._tracer.end(trace.spans, _summary(exchange.request, trace, now))
        self._access.write(trace.record(exchange, worker=self._worker, time=self._now(), total_seconds=now - received))


def _asked_priority(ask: Ask) -> int:
    """The client's word on its requests among those of its route: higher goes first; nonsense is no priority."""
    try:
        return max(-_PRIORITY_LIMIT, min(_PRIORITY_LIMIT, int(ask.headers.get("x-request-priority", ""))))
    except ValueError:
        return 0


def _asked_seconds(request: Request) -> float | None:
    """How long the client is going to wait for its answer; nonsense is no limit."""
    asked = request.header(b"x-request-timeout")
    if asked is None:
        return None
    try:
        seconds = float(asked)
    except ValueError:
        return None
    return seconds if 0 < seconds < inf else None


def _answer_with(exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
    exchange.begin(status, headers, len(body))
    # The answer to HEAD has the length of a body and none.
    if exchange.request.method != "HEAD":
        exchange.write(body)
    exchange.finish()


class _HeaderTexts(Mapping[str, str]):
    """Headers as rules read them, made when the first rule does: most look at none."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    @cached_property
    def _texts(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for name, value in self._headers:
            key, text = name.decode("latin-1"), value.decode("utf-8", "replace")
            # A header that came twice means the list of both.
            texts[key] = f"{texts[key]}, {text}" if key in texts else text
        return texts

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def _noted(revision: int, choice: Choice) -> Attributes:
    """What a trace holds of a decision; the whole of it is on the page that explains a request."""
    return {
        "matrixinfer.revision": revision,
        "matrixinfer.server": choice.server.name,
        "k8s.pod.name": choice.endpoint.pod,
    }


def _summary(request: Request, trace: Trace, ended: float) -> Summary:
    return Summary(
        request,
        trace.request_id,
        trace.status,
        trace.outcome,
        trace.model,
        trace.route,
        trace.server,
        trace.stream,
        trace.usage,
        ended,
    )


def _is_transient(outcome: Outcome) -> bool:
    held = outcome.held
    return held is not None and status_is_transient(held.status, bytes(held.body))


def _pass_on(exchange: Exchange, held: Held) -> None:
    exchange.begin(held.status, held.headers, len(held.body))
    exchange.write(bytes(held.body))
    exchange.finish()
