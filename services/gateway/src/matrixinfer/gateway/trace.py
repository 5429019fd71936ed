"""What is known of one request while it is served; in the end its line of the access log."""

from datetime import datetime

import msgspec

from matrixinfer.gateway.access import AccessRecord, DecisionRecord
from matrixinfer.gateway.core.tracecontext import TraceContext
from matrixinfer.gateway.core.types import Endpoint, Server
from matrixinfer.gateway.core.usage import Usage
from matrixinfer.gateway.placing import Placement
from matrixinfer.gateway.stats import Series
from matrixinfer.gateway.tracing import Spans
from matrixinfer.gateway.wire.message import Exchange, Headers

__all__ = ["Trace"]

# Names of the routing table are shorter; what a client makes up may be as long as its request.
_TEXT_LIMIT = 512


class Trace(msgspec.Struct):
    """Filled in step by step by whoever knows; clock times are those of the handler's clock."""

    request_id: str
    lobby: Series
    """Counts it in flight, from when its route is known."""
    series: Series
    """Counts what became of it: that of its newest attempt's server, once there is one."""
    status: int = 0
    outcome: str = ""
    model: str = ""
    route: str = ""
    stream: bool = False
    tells_decision: bool = False
    """The client is told where its request went, and why."""
    has_stream_options: bool = False
    hides_usage: bool = False
    """The engine was asked to count the stream, and the client shall not see it."""
    server: Server | None = None
    endpoint: Endpoint | None = None
    placed: Placement | None = None
    """The newest decision; below, where its table led to it."""
    rule: str = ""
    target: str = ""
    revision: int = 0
    retries: int = 0
    stale: int = 0
    tripped: bool = False
    """Its newest attempt was the failure that took the endpoint out."""
    failures: list[str] = []
    routed: bool = False
    waited: float = 0.0
    """Time spent on anything but the gateway's own work, before the request was sent the last time."""
    sent_at: float | None = None
    connect_seconds: float | None = None
    first_byte_at: float | None = None
    queued_seconds: float | None = None
    """What it waited for room, when it had to."""
    usage: Usage | None = None
    spans: Spans | None = None
    """Where times are noted for a distributed trace; None when the request is not traced."""
    context: TraceContext | None = None
    """How the engine shall refer to the distributed trace; None leaves what the client said."""
    is_event_stream: bool = False
    """What the answer is, whatever the request asked for."""

    @property
    def id_header(self) -> tuple[bytes, bytes]:
        """The header that names the request, to engines and to clients."""
        return b"x-request-id", self.request_id.encode()

    @property
    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that every answer has."""
        if self.tells_decision and (decision := self.decision) is not None and self.endpoint is not None:
            told = decision.header(self.endpoint.pod, self.retries + 1)
            return [self.id_header, (b"x-matrixinfer-decision", told)]
        return [self.id_header]

    @property
    def decision(self) -> DecisionRecord | None:
        """What the newest decision is told as; made by who tells it."""
        placed = self.placed
        if placed is None:
            return None
        decision, rung = placed.decision, placed.rung
        best = max(decision.scores)
        return DecisionRecord(
            self.revision,
            self.rule,
            self.target,
            len(decision.candidates),
            decision.scores.count(best),
            round(best, 4),
            {removal.filter: len(removal.positions) for removal in decision.removals},
            placed.view.prompt_tokens,
            placed.cached_tokens,
            rung.label if rung else "",
        )

    @property
    def context_headers(self) -> Headers:
        """What tells the engine of the distributed trace, instead of what the client said."""
        if self.context is None:
            return ()
        state = self.spans.state.encode("latin-1") if self.spans else b""
        return [(b"traceparent", self.context.header), *([(b"tracestate", state)] if state else [])]

    def follow(self, begun: Spans | TraceContext | None) -> None:
        """Take part in a distributed trace, as far as the tracer wants."""
        if isinstance(begun, Spans):
            self.spans, self.context = begun, begun.context
        else:
            self.context = begun

    def overhead_seconds(self, received: float) -> float | None:
        """What the gateway itself took of a request that was complete at `received`; None when none was sent on."""
        return None if self.sent_at is None else max(0.0, self.sent_at - received - self.waited)

    def seconds_per_token(self, ended: float) -> float | None:
        """The pace of a stream that ended at `ended`; None of what has no pace."""
        usage, began = self.usage, self.first_byte_at
        if usage is None or began is None or not self.stream or usage.completion < 2:
            return None
        return max(0.0, ended - began) / (usage.completion - 1)

    def record(self, exchange: Exchange, *, worker: int, time: datetime, total_seconds: float) -> AccessRecord:
        """Return the line that tells of the request."""
        request, server, endpoint, usage = exchange.request, self.server, self.endpoint, self.usage
        return AccessRecord(
            time,
            self.request_id,
            request.method,
            request.path[:_TEXT_LIMIT].decode(errors="replace"),
            self.status,
            self.outcome,
            worker=worker,
            client=request.peer,
            model=self.model[:_TEXT_LIMIT],
            route=self.route,
            server=server.name if server else "",
            pod=endpoint.pod if endpoint else "",
            endpoint=f"{endpoint.address}:{endpoint.port}" if endpoint else "",
            stream=self.stream,
            retries=self.retries,
            stale_connections=self.stale,
            failures=self.failures,
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            total_ms=_milliseconds(total_seconds),
            overhead_ms=_milliseconds(self.overhead_seconds(request.received)),
            queue_ms=_milliseconds(self.queued_seconds),
            connect_ms=_milliseconds(self.connect_seconds),
            first_byte_ms=_milliseconds(None if self.first_byte_at is None else self.first_byte_at - request.received),
            prompt_tokens=usage.prompt if usage else -1,
            completion_tokens=usage.completion if usage else -1,
            cached_tokens=usage.cached if usage else -1,
            tokens_estimated=usage is not None and usage.is_estimate,
            trace_id=self.spans.context.trace_id if self.spans else "",
            decision=self.decision,
        )


def _milliseconds(seconds: float | None) -> float:
    return -1.0 if seconds is None else round(seconds * 1000, 3)
