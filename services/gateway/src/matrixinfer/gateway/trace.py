"""What is known of one request while it is served; in the end its line of the access log."""

from datetime import datetime

import msgspec

from matrixinfer.gateway.access import LINE_BEGIN, AccessRecord, DecisionRecord
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
_NOT_COUNTED = Usage(-1, -1, -1)
_SCORE_STEPS = 10_000


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
            int(best * _SCORE_STEPS + 0.5) / _SCORE_STEPS,
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
        if self.sent_at is None:
            return None
        own = self.sent_at - received - self.waited
        return own if own > 0.0 else 0.0

    def seconds_per_token(self, ended: float) -> float | None:
        """The pace of a stream that ended at `ended`; None of what has no pace."""
        usage, began = self.usage, self.first_byte_at
        if usage is None or began is None or not self.stream or usage.completion < 2:
            return None
        return max(0.0, ended - began) / (usage.completion - 1)

    def record(self, exchange: Exchange, *, worker: int, time: datetime, total_seconds: float) -> AccessRecord:
        """Return the line that tells of the request."""
        request, server, endpoint, usage = exchange.request, self.server, self.endpoint, self.usage or _NOT_COUNTED
        received, first_byte_at = request.received, self.first_byte_at
        overhead = self.overhead_seconds(received)
        # By position: with so many fields names cost three times as much.
        return AccessRecord(
            time,
            self.request_id,
            request.method,
            request.path[:_TEXT_LIMIT].decode(errors="replace"),
            self.status,
            self.outcome,
            *LINE_BEGIN,
            worker,
            request.peer,
            self.model[:_TEXT_LIMIT],
            self.route,
            server.name if server is not None else "",
            endpoint.pod if endpoint is not None else "",
            f"{endpoint.address}:{endpoint.port}" if endpoint is not None else "",
            self.stream,
            self.retries,
            self.stale,
            self.failures,
            exchange.bytes_in,
            exchange.bytes_out,
            _milliseconds(total_seconds),
            -1.0 if overhead is None else _milliseconds(overhead),
            -1.0 if self.queued_seconds is None else _milliseconds(self.queued_seconds),
            -1.0 if self.connect_seconds is None else _milliseconds(self.connect_seconds),
            -1.0 if first_byte_at is None else _milliseconds(first_byte_at - received),
            usage.prompt,
            usage.completion,
            usage.cached,
            usage.is_estimate,
            self.spans.context.trace_id if self.spans is not None else "",
            self.decision,
        )


def _milliseconds(seconds: float) -> float:
    # To the microsecond. `round` does it through a text, which costs more than all else in a line.
    return int(seconds * 1_000_000 + 0.5) / 1000
