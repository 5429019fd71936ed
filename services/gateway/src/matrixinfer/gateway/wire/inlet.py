"""What every inlet is: limits towards clients, and the seam between an inlet and the worker that runs it.

An inlet owns connections, framing, limits and deadlines towards clients, and knows nothing of models. There are two:
`server.HttpInlet` on httptools, and `aiohttp_inlet.AiohttpInlet`. One suite of honest and hostile clients runs against
both, so that either can stand in for the other.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from matrixinfer.gateway.wire.message import Exchange, Headers, Refusal

__all__ = ["Answerer", "Inlet", "InletLimits", "Refuser", "body_allowance"]

# A body may take longer than its allowance when it keeps coming at this rate.
_BODY_BYTES_PER_SECOND = 16 * 1024


@dataclass(frozen=True, slots=True)
class InletLimits:
    """What one client may use. Sizes in bytes, times in seconds."""

    head_bytes: int = 64 * 1024
    head_fields: int = 128
    """Header lines: each costs memory beyond its bytes."""
    body_bytes: int = 64 * 1024 * 1024
    buffered_bytes: int = 512 * 1024 * 1024
    """All bodies held by one worker together, from their first byte until their answers begin."""
    connections: int = 20_000
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    write_stall_seconds: float = 60.0
    write_buffer_bytes: int = 256 * 1024


Answerer: TypeAlias = Callable[[Exchange], Awaitable[None]]
"""Answers one exchange. Must not raise; is cancelled when the client leaves."""

Refuser: TypeAlias = Callable[[Refusal], tuple[Headers, bytes]]
"""Turns a refusal into headers and body."""


class Inlet(Protocol):
    """Takes requests from clients."""

    draining: bool
    """Set to answer with `Connection: close` from now on."""

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        ...

    async def serve(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        """Accept until `stopping`, then close idle connections, let busy ones finish, and return when all are closed.

        Cancellation cuts what is left.
        """
        ...


def body_allowance(size: int) -> float:
    """Seconds by which a body of this size may take longer."""
    return size / _BODY_BYTES_PER_SECOND
