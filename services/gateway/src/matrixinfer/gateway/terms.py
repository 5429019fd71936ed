"""The terms a request is served on, its deadlines and retries: the route's word, then the server's, then our own."""

from dataclasses import dataclass, field

import msgspec

from matrixinfer.gateway.core.breaker import BreakerPolicy
from matrixinfer.gateway.core.budget import BudgetLimits
from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.retry import RetryPolicy
from matrixinfer.gateway.core.types import TrafficPolicy
from matrixinfer.gateway.wire.relay import Deadlines

__all__ = ["Agreed", "Terms", "TrafficDefaults", "agreed"]


@dataclass(frozen=True, slots=True)
class TrafficDefaults:
    """What holds where neither route nor server says anything. Times in seconds."""

    total_seconds: float = 3600.0
    first_byte_seconds: float = 600.0
    idle_seconds: float = 60.0
    retry_attempts: int = 2
    retry_interval_seconds: float = 0.025
    retry_budget: BudgetLimits = field(default_factory=BudgetLimits)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    queue: QueueLimits = field(default_factory=QueueLimits)


class Terms(msgspec.Struct, frozen=True, gc=False):
    """Deadlines and retries of one request."""

    deadlines: Deadlines
    retry: RetryPolicy


class Agreed(msgspec.Struct, frozen=True, gc=False):
    """What holds for every request of a route to a server. Times in seconds."""

    total_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    retry: RetryPolicy

    def since(self, began: float, asked_seconds: float | None = None) -> Terms:
        """Return the terms of a request that began at loop time `began`, with its own idea of how long it may take."""
        total = self.total_seconds
        if asked_seconds is not None and asked_seconds < total:
            total = asked_seconds
        return Terms(Deadlines(self.first_byte_seconds, self.idle_seconds, began + total), self.retry)


def agreed(route: TrafficPolicy, server: TrafficPolicy, own: TrafficDefaults) -> Agreed:
    """Return what a route and a server agree on."""
    return Agreed(
        _first(route.total_seconds, server.total_seconds, own.total_seconds),
        _first(route.first_byte_seconds, server.first_byte_seconds, own.first_byte_seconds),
        _first(route.idle_seconds, server.idle_seconds, own.idle_seconds),
        RetryPolicy(
            own.retry_attempts if server.retry_attempts is None else server.retry_attempts,
            _first(server.retry_interval_seconds, own.retry_interval_seconds),
        ),
    )


def _first(*values: float | None) -> float:
    for value in values:
        if value is not None:
            return value
    raise ValueError("none of them is set")
