"""What is known of one request while it is served; in the end its line of the access log."""

from dataclasses import dataclass, field
from datetime import datetime

from matrixinfer.gateway.access import AccessRecord, DecisionRecord
from matrixinfer.gateway.core.types import Endpoint, Server
from matrixinfer.gateway.wire.message import Exchange

__all__ = ["Trace"]


@dataclass(slots=True)
class Trace:
    """Filled in step by step by whoever knows; clock times are those of the handler's clock."""

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
    is_event_stream: bool = False
    """What the answer is, whatever the request asked for."""

    @property
    def id_header(self) -> tuple[bytes, bytes]:
        """The header that names the request, to engines and to clients."""
        return b"x-request-id", self.request_id.encode()

    def overhead_seconds(self, received: float) -> float | None:
        """What the gateway itself took of a request that was complete at `received`; None when none was sent on."""
        return None if self.sent_at is None else max(0.0, self.sent_at - received - self.waited)

    def record(self, exchange: Exchange, *, worker: int, time: datetime, total_seconds: float) -> AccessRecord:
        """Return the line that tells of the request."""
        request, server, endpoint = exchange.request, self.server, self.endpoint
        return AccessRecord(
            time,
            self.request_id,
            request.method,
            request.path.decode(errors="replace"),
            self.status,
            self.outcome,
            worker=worker,
            client=request.peer,
            model=self.model,
            route=self.route,
            server=server.name if server else "",
            pod=endpoint.pod if endpoint else "",
            endpoint=f"{endpoint.address}:{endpoint.port}" if endpoint else "",
            stream=self.stream,
            retries=self.retries,
            stale_connections=self.stale,
            failures=self.failures,
            bytes_in=len(request.body),
            bytes_out=exchange.bytes_out,
            total_ms=_milliseconds(total_seconds),
            overhead_ms=_milliseconds(self.overhead_seconds(request.received)),
            connect_ms=_milliseconds(self.connect_seconds),
            first_byte_ms=_milliseconds(None if self.first_byte_at is None else self.first_byte_at - request.received),
            decision=self.decision,
        )


def _milliseconds(seconds: float | None) -> float:
    return -1.0 if seconds is None else round(seconds * 1000, 3)
