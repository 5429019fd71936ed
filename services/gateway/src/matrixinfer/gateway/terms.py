"""The terms a request is served on, its deadlines and retries: the route's word, then the server's, then our own."""

from dataclasses import dataclass, field

import msgspec

from matrixinfer.gateway.core.breaker import BreakerPolicy
from matrixinfer.gateway.core.budget import BudgetLimits
from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.retry import RetryPolicy
from matrixinfer.gateway.core.types import TrafficPolicy
from matrixinfer.gateway.wire.relay import Deadlines

__all__ = ["Terms", "TrafficDefaults", "terms"]


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


class Terms(msgspec.Struct, frozen=True):
    """Deadlines and retries of one request."""

    deadlines: Deadlines
    retry: RetryPolicy


def terms(
    route: TrafficPolicy, server: TrafficPolicy, own: TrafficDefaults, began: float, asked_seconds: float | None = None
) -> Terms:
    """Return the terms of a request that began at loop time `began` and has its own idea of how long it may take."""
    total = _first(route.total_seconds, server.total_seconds, own.total_seconds)
    if asked_seconds is not None:
        total = min(total, asked_seconds)
    return Terms(
        Deadlines(
            _first(route.first_byte_seconds, server.first_byte_seconds, own.first_byte_seconds),
            _first(route.idle_seconds, server.idle_seconds, own.idle_seconds),
            began + total,
        ),
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
