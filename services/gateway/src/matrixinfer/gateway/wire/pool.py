"""Connections to engines, kept for the next request.

Newest first, so that a burst's surplus ages and is closed. Owns no decision about which endpoint. The trap: engines
close idle connections after a few seconds (uvicorn: 5), so ours expire sooner, by the engine's own word when it gives
one.
"""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from matrixinfer.gateway.core.types import Endpoint
from matrixinfer.gateway.wire.upstream import UpstreamConnection

__all__ = ["ConnectError", "Peer", "PoolLimits", "UpstreamPool", "upstream_tls"]

# The engine's promise ends when it closes, not when we stop using: leave room for a request on its way.
_PROMISE_MARGIN_SECONDS = 1.0


class ConnectError(Exception):
    """No connection to the endpoint could be made; the text says why."""


def upstream_tls(ca_file: str | None) -> ssl.SSLContext:
    """Pods have no names to verify: without a CA of their own the traffic is encrypted only."""
    context = ssl.create_default_context(cafile=ca_file)
    context.check_hostname = False
    if ca_file is None:
        context.verify_mode = ssl.CERT_NONE
    return context


class Peer(msgspec.Struct, frozen=True, gc=False):
    """Where an engine listens."""

    address: str
    port: int
    tls: bool = False

    @staticmethod
    def of(endpoint: Endpoint) -> "Peer":
        """The peer of an endpoint."""
        return Peer(endpoint.address, endpoint.port, endpoint.tls)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How connections are made and how long they are kept."""

    connect_seconds: float = 2.0
    idle_seconds: float = 4.0
    idle_per_peer: int = 256


class UpstreamPool:
    """The connections of one worker."""

    def __init__(self, limits: PoolLimits, tls: ssl.SSLContext) -> None:
        """`tls` is used for endpoints that ask for it."""
        self._limits = limits
        self._tls = tls
        self._idle: dict[Peer, list[UpstreamConnection]] = {}
        self._peers: dict[UpstreamConnection, Peer] = {}
        self.opened = 0
        """Connections made so far."""

    @property
    def size(self) -> int:
        """Connections that are open, idle or in use."""
        return len(self._peers)

    def take(self, peer: Peer, now: float) -> UpstreamConnection | None:
        """Return an idle connection that should still be good; None when there is none."""
        idle = self._idle.get(peer)
        while idle:
            connection = idle.pop()
            if connection.is_open and now - connection.idle_since < self._idle_limit(connection):
                return connection
            connection.close()
        return None

    async def connect(self, peer: Peer) -> UpstreamConnection:
        """Open a connection. Raises ConnectError, at the latest after the connect deadline."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self._released),
                    peer.address,
                    peer.port,
                    ssl=self._tls if peer.tls else None,
                )
        except TimeoutError as exc:
            raise ConnectError(f"no connection within {self._limits.connect_seconds:g} s") from exc
        except OSError as exc:
            raise ConnectError(exc.strerror or str(exc)) from exc
        self._peers[connection] = peer
        self.opened += 1
        if not connection.is_open:
            # Closed between the handshake and here.
            self._peers.pop(connection, None)
            raise ConnectError("the connection was closed at once")
        return connection

    def sweep(self, now: float, wanted: Iterable[Peer]) -> None:
        """Close what has been idle for too long, and every idle connection to a peer that is not `wanted` any more."""
        keep = set(wanted)
        for peer, idle in tuple(self._idle.items()):
            old = [c for c in idle if peer not in keep or now - c.idle_since >= self._idle_limit(c)]
            self._idle[peer] = [c for c in idle if c not in old]
            if not self._idle[peer]:
                del self._idle[peer]
            for connection in old:
                connection.close()

    def close(self) -> None:
        """Close everything."""
        self._idle.clear()
        for connection in tuple(self._peers):
            connection.abort()

    def _idle_limit(self, connection: UpstreamConnection) -> float:
        if connection.idle_limit is None:
            return self._limits.idle_seconds
        return min(self._limits.idle_seconds, connection.idle_limit - _PROMISE_MARGIN_SECONDS)

    def _released(self, connection: UpstreamConnection, reusable: bool) -> None:
        peer = self._peers.get(connection)
        if peer is None:
            return
        idle = self._idle.setdefault(peer, [])
        if reusable and len(idle) < self._limits.idle_per_peer:
            connection.idle_since = asyncio.get_running_loop().time()
            idle.append(connection)
            return
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(peer, None)
        self._peers.pop(connection, None)
        connection.close()
