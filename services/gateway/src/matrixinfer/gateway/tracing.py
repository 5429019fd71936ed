"""Traces of requests: who is traced, what an engine is told of it, and the spans when all is over.

Owns no request: `trace.spans` is the list that the parts of the gateway note their times in, and is None for a request
that nobody traces, which is all that tracing costs then. Spans leave over OTLP by a thread of `export`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from matrixinfer.gateway.core.spans import CLIENT, INTERNAL, SERVER, Attributes, Span, Status, attributes, operation
from matrixinfer.gateway.core.tracecontext import Sampler, TraceContext, parse
from matrixinfer.gateway.core.types import Endpoint, Server
from matrixinfer.gateway.core.usage import Usage
from matrixinfer.gateway.wire.message import Request, header

__all__ = ["AttemptTimes", "Outlet", "Spans", "Summary", "Tracer"]

_NANOSECONDS = 1_000_000_000


class Outlet(Protocol):
    """Where finished spans go."""

    def add(self, spans: list[Span]) -> None:
        """Take the spans of one request; never waits."""
        ...


@dataclass(slots=True)
class AttemptTimes:
    """One connection that an endpoint was asked over. Times by the handler's clock; None of what did not happen."""

    endpoint: Endpoint
    context: TraceContext
    began: float
    reused: bool = False
    sent: float | None = None
    first_byte: float | None = None
    ended: float = 0.0
    status: int | None = None
    failure: str = ""


@dataclass(slots=True)
class Spans:
    """What is noted of a request that is traced, and how others refer to it."""

    context: TraceContext
    parent: TraceContext | None
    state: str
    phases: list[tuple[str, float, float, Attributes]] = field(default_factory=list)
    """Name, begin and end of what the gateway did itself."""
    attempts: list[AttemptTimes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a traced request."""

    request: Request
    request_id: str
    status: int
    outcome: str
    model: str
    route: str
    server: Server | None
    stream: bool
    usage: Usage | None
    ended: float


class Tracer:
    """Begins and ends traces."""

    def __init__(
        self,
        keeps: Sampler,
        outlet: Outlet,
        *,
        random_bits: Callable[[int], int],
        clock: Callable[[], float],
        now_nanoseconds: Callable[[], int],
    ) -> None:
        """`keeps` decides which requests are traced; `clock` is the one that their times are noted by."""
        self._keeps = keeps
        self._outlet = outlet
        self._random_bits = random_bits
        self._clock = clock
        self._now_nanoseconds = now_nanoseconds

    def begin(self, request: Request) -> Spans | TraceContext | None:
        """Return where to note the times of a request.

        When it is not traced, return how engines shall hear of that; None when the caller has told them already.
        """
        parent = parse(header(request.headers, b"traceparent"))
        trace_id = parent.trace_id if parent else f"{self._random_bits(128) or 1:032x}"
        context = TraceContext(trace_id, self._new_span_id(), self._keeps(parent, trace_id))
        if not context.sampled:
            return context if parent is None or parent.sampled else None
        state = header(request.headers, b"tracestate") if parent else None
        return Spans(context, parent, state.decode("latin-1") if state else "")

    def attempt(self, spans: Spans, endpoint: Endpoint, began: float) -> AttemptTimes:
        """Note that an endpoint is asked; returns where to note how it goes."""
        context = TraceContext(spans.context.trace_id, self._new_span_id(), sampled=True)
        attempt = AttemptTimes(endpoint, context, began)
        spans.attempts.append(attempt)
        return attempt

    def end(self, spans: Spans, summary: Summary) -> None:
        """Hand the spans of a request to the outlet."""
        # Times were noted by a clock that knows no date.
        zero = self._now_nanoseconds() - round(self._clock() * _NANOSECONDS)
        maker = _Maker(spans, zero, self._new_span_id)
        made = [maker.root(summary)]
        made += [maker.child(name, began, ended, noted) for name, began, ended, noted in spans.phases]
        for number, attempt in enumerate(spans.attempts):
            made += maker.attempt(number, attempt, summary)
        self._outlet.add(made)

    def _new_span_id(self) -> str:
        return f"{self._random_bits(64) or 1:016x}"


class _Maker:
    """Makes the spans of one request."""

    def __init__(self, spans: Spans, zero: int, new_id: Callable[[], str]) -> None:
        self._spans = spans
        self._zero = zero
        self._new_id = new_id

    def root(self, summary: Summary) -> Span:
        """The request as its client sees it."""
        spans, request, usage = self._spans, summary.request, summary.usage
        path = request.path.decode(errors="replace")
        is_error = summary.status >= 500
        return self._span(
            spans.context.span_id,
            # A path that no route took is the client's invention; as a name it would be one of very many.
            f"{request.method} {path}" if summary.route else request.method,
            SERVER,
            request.received,
            summary.ended,
            spans.parent.span_id if spans.parent else "",
            {
                "http.request.method": request.method,
                "url.scheme": "http",
                "url.path": path,
                "client.address": request.peer,
                "http.response.status_code": summary.status,
                "error.type": (summary.outcome or str(summary.status)) if is_error else None,
                "gen_ai.operation.name": operation(path) if summary.model else None,
                "gen_ai.request.model": summary.model or None,
                "gen_ai.usage.input_tokens": usage.prompt if usage else None,
                "gen_ai.usage.output_tokens": usage.completion if usage else None,
                "gen_ai.usage.cache_read.input_tokens": usage.cached if usage else None,
                "matrixinfer.usage.is_estimate": usage.is_estimate if usage else None,
                "matrixinfer.request_id": summary.request_id,
                "matrixinfer.outcome": summary.outcome,
                "matrixinfer.route": summary.route or None,
                "matrixinfer.server": summary.server.name if summary.server else None,
                "matrixinfer.stream": summary.stream,
            },
            summary.outcome if is_error else "",
        )

    def child(self, name: str, began: float, ended: float, noted: Attributes, parent: str = "") -> Span:
        """A part of the request, or of an attempt."""
        return self._span(self._new_id(), name, INTERNAL, began, ended, parent or self._spans.context.span_id, noted)

    def attempt(self, number: int, attempt: AttemptTimes, summary: Summary) -> list[Span]:
        """One call of an engine and its phases."""
        endpoint, server, own_id = attempt.endpoint, summary.server, attempt.context.span_id
        name = operation(summary.request.path.decode(errors="replace"))
        failed = attempt.failure or (str(attempt.status) if (attempt.status or 0) >= 400 else "")
        spans = [
            self._span(
                own_id,
                f"{name} {summary.model}"[:256].rstrip(),
                CLIENT,
                attempt.began,
                attempt.ended,
                self._spans.context.span_id,
                {
                    "http.request.method": summary.request.method,
                    "http.request.resend_count": number or None,
                    "http.response.status_code": attempt.status,
                    "error.type": failed or None,
                    "gen_ai.operation.name": name,
                    "gen_ai.request.model": summary.model or None,
                    "gen_ai.provider.name": server.engine.lower() if server else None,
                    "server.address": endpoint.address,
                    "server.port": endpoint.port,
                    "k8s.pod.name": endpoint.pod,
                    "matrixinfer.connection.reused": attempt.reused,
                },
                failed,
            )
        ]
        if not attempt.reused:
            spans.append(self.child("connect", attempt.began, attempt.sent or attempt.ended, {}, own_id))
        if attempt.sent is not None:
            spans.append(self.child("first byte", attempt.sent, attempt.first_byte or attempt.ended, {}, own_id))
        if attempt.first_byte is not None:
            spans.append(self.child("stream", attempt.first_byte, attempt.ended, {}, own_id))
        return spans

    def _span(
        self,
        span_id: str,
        name: str,
        kind: int,
        began: float,
        ended: float,
        parent: str,
        noted: Attributes,
        error: str = "",
    ) -> Span:
        return Span(
            self._spans.context.trace_id,
            span_id,
            name,
            kind,
            self._nanoseconds(began),
            self._nanoseconds(max(began, ended)),
            parent,
            self._spans.state,
            attributes(noted),
            Status(2, error) if error else Status(),
        )

    def _nanoseconds(self, seconds: float) -> str:
        return str(self._zero + round(seconds * _NANOSECONDS))
