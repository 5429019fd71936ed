"""What every inlet is: limits towards clients, and the seam between an inlet and the worker that runs it.

An inlet owns connections, framing, limits and deadlines towards clients, and knows nothing of models. There are two:
`server.HttpInlet` on httptools, and `aiohttp_inlet.AiohttpInlet`. One suite of honest and hostile clients runs against
both, so that either can stand in for the other.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from matrixinfer.gateway.wire.message import Exchange, Headers, Refusal, response_head

__all__ = [
    "BACKLOG",
    "CONTINUE",
    "LINGER_SECONDS",
    "REFUSED_AT_A_TIME",
    "Answerer",
    "BaseInlet",
    "Inlet",
    "InletLimits",
    "Refuser",
    "body_allowance",
]

BACKLOG: Final = 4096
"""Connections that wait to be accepted."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER_SECONDS: Final = 1.0
"""How long a connection is read on after its last answer, so that the client gets it before a reset."""
REFUSED_AT_A_TIME: Final = 256
"""So many connections beyond the limit are told why; the rest is reset."""
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


Answerer: TypeAlias = Callable[[Exchange], Coroutine[Any, Any, None]]
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


class Connection(Protocol):
    """What an inlet asks of its connections."""

    def close_when_idle(self) -> None:
        """Close now, or when the answer that is being made is out."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


ConnectionT = TypeVar("ConnectionT", bound=Connection)


class BaseInlet(Generic[ConnectionT]):
    """What both inlets do alike: listen on sockets that they are given until drained, and count connections."""

    def __init__(
        self,
        handler: Answerer,
        refuser: Refuser,
        limits: InletLimits,
        clock: Callable[[], float],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`clock` stamps requests with the time at which they were complete; with `tls`, TLS is all that is spoken."""
        self.clock = clock
        self.handler = handler
        self.refuser = refuser
        self.limits = limits
        self.draining = False
        self.buffered_bytes = 0
        self.connections: set[ConnectionT] = set()
        self._tls = tls
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self.connections)

    async def listen(
        self, connect: Callable[[], asyncio.Protocol], listener: socket.socket, stopping: asyncio.Event
    ) -> None:
        """Serve each client by what `connect` makes, until `stopping` and the last of them; see Inlet.serve."""
        server = await asyncio.get_running_loop().create_server(
            connect,
            sock=listener,
            backlog=BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self.limits.handshake_seconds if self._tls else None,
            # Closing includes sending what is left to a client that is slow.
            ssl_shutdown_timeout=self.limits.write_stall_seconds if self._tls else None,
        )
        try:
            await stopping.wait()
            server.close()
            self.draining = True
            for connection in tuple(self.connections):
                connection.close_when_idle()
            await self._empty.wait()
        finally:
            server.close()
            for connection in tuple(self.connections):
                connection.abort()

    def joined(self, connection: ConnectionT) -> None:
        """Count a new connection."""
        self.connections.add(connection)
        self._empty.clear()

    def left(self, connection: ConnectionT) -> None:
        """Count a connection that was closed."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def refusal(self, refusal: Refusal) -> bytes:
        """Render the answer to what is no request, the last one of its connection."""
        headers, body = self.refuser(refusal)
        framing = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        head = response_head(refusal.status, [*headers, *framing])
        return head if refusal.method == "HEAD" else head + body


def body_allowance(size: int) -> float:
    """Seconds by which a body of this size may take longer."""
    return size / _BODY_BYTES_PER_SECOND
