"""May this failed attempt be repeated? Only before the first byte is out, and only where a repeat can help.

The rule; others carry it out. `handler` sends an inference request to another endpoint: that changes nothing, so a
repeat costs work and not correctness, and how much of it `budget` bounds. Below it `attempt` replaces, once and on the
same endpoint, a kept connection that died as it was used. A call that changes a stored object is sent once, over a
connection of its own. Nothing else on the way of a request sends it again.
"""

from enum import StrEnum

import msgspec

__all__ = ["HELD_STATUSES", "Failure", "RetryPolicy", "may_retry", "speaks_of_endpoint", "status_is_transient"]


class Failure(StrEnum):
    """Why an attempt gave no answer. The values are label values of metrics and of the access log."""

    CONNECT = "connect"
    STALE = "stale_connection"
    RESET = "reset"
    PROTOCOL = "bad_response"
    ENDPOINT_GONE = "endpoint_gone"
    FIRST_BYTE = "first_byte_timeout"
    IDLE = "idle_timeout"
    TOTAL = "total_timeout"
    STATUS = "status"


class RetryPolicy(msgspec.Struct, frozen=True, gc=False):
    """How often a request may go to another endpoint, and the pause before one is asked a second time."""

    attempts: int
    interval_seconds: float


HELD_STATUSES = frozenset({500, 502, 503, 504})
"""Engine answers that are kept back until it is clear whether they are an endpoint that is going away."""

_RETRYABLE = frozenset({Failure.CONNECT, Failure.STALE, Failure.RESET, Failure.PROTOCOL, Failure.ENDPOINT_GONE})

_NOBODYS = frozenset({Failure.TOTAL, Failure.ENDPOINT_GONE})

# What vLLM answers with status 500 once it was told to stop: another endpoint will do.
_SHUTTING_DOWN = b"cannot schedule new futures after shutdown"


def status_is_transient(status: int, body: bytes = b"") -> bool:
    """Whether an engine's error says that this endpoint cannot, rather than that this request must not.

    502 and 503 do; 500 only with the words of an engine that shuts down; 504 is an answer that was waited for.
    """
    return status in (502, 503) or (status == 500 and _SHUTTING_DOWN in body)


def speaks_of_endpoint(failure: Failure) -> bool:
    """Whether a failure is the endpoint's: not the end of the time a request had, nor that of a pod that was deleted.

    Of `Failure.STATUS` only that of a status which is transient.
    """
    return failure not in _NOBODYS


def may_retry(
    failure: Failure, retries_done: int, policy: RetryPolicy, remaining_seconds: float, *, transient: bool = False
) -> bool:
    """Whether another endpoint may be asked, in the time that the request has left after the pause.

    `transient` qualifies `Failure.STATUS`. Time-outs are not repeated.
    """
    if retries_done >= policy.attempts or policy.interval_seconds >= remaining_seconds:
        return False
    return failure in _RETRYABLE or (failure is Failure.STATUS and transient)
