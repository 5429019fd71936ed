"""Which pods can be asked, and how they do: found by name, looked after while files are fetched. Blocking, for threads.

A peer is believed nothing but that it answers. One that does not, or breaks off, rests for a while; one that is slow,
refuses us, fails again and again or sent wrong bytes is dropped for as long as this process lives. The trap: a name
that cannot be resolved, or a pod that is gone without a word, must not hold anything up, so a look goes on beside
the work.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.rendezvous import ranked
from matrixinfer.downloader.core.signature import signature
from matrixinfer.downloader.wire.http import Answer, Client, RedirectRefused, WireError
from matrixinfer.service.logging import get_logger

__all__ = ["Peer", "PeerAccess", "Peers"]

log = get_logger("peers")

_AGENT = "matrixinfer-downloader"
_CONNECT_SECONDS = 1.0
_LOOK_SECONDS = 2.0
_STALE_SECONDS = 0.5
_RESOLVE_SECONDS = 5.0
_DOCUMENT_BYTES = 16 << 20
_FAILURES = 3
# Whom we look at, and with whom we share: more would cost more questions than they save bytes.
_MOST_KNOWN = 64
_MOST_USED = 16


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """How peers are found and asked; `own` is our own address, which is never asked."""

    names: tuple[str, ...]
    own: str
    port: int
    token: str
    patience_seconds: float = 10.0


@dataclass(slots=True, eq=False)
class Peer:
    """One pod, as it was seen last; changed under the lock of `Peers`."""

    address: str
    answers: bool = False
    fetching: bool = False
    """It fetches from the same origin just now."""
    count: int = -1
    moved_at: float = 0.0
    """When it was last seen to come on."""
    rests_until: float = 0.0
    busy_until: float = 0.0
    failures: int = 0
    dropped: bool = False
    under_way: int = 0
    """Requests of ours to it."""


class Peers:
    """The pods that may share one origin with us."""

    def __init__(
        self, access: PeerAccess, origin: str, monotonic: Callable[[], float], now: Callable[[], float]
    ) -> None:
        """`monotonic` measures patience; `now` is the time of day that signatures carry."""
        self._access = access
        self._origin = origin
        self._monotonic = monotonic
        self._now = now
        self._known: dict[str, Peer] = {}
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._looked_at = self._resolved_at = float("-inf")
        self._asking = Client(
            agent=_AGENT, connect_seconds=_CONNECT_SECONDS, read_seconds=_LOOK_SECONDS, is_direct=True
        )
        # Half of the patience: a body that stands still is given up before others lose theirs with us.
        self._carrying = Client(
            agent=_AGENT, connect_seconds=_CONNECT_SECONDS, read_seconds=access.patience_seconds / 2, is_direct=True
        )

    @property
    def own(self) -> str:
        """Our own name among them."""
        return _address(self._access.own, self._access.port)

    def look(self, *, wait: bool = False) -> None:
        """Look after the peers when that was not done of late: beside the work, or with `wait` for a moment first."""
        if self._monotonic() - self._looked_at >= _STALE_SECONDS and self._looking.acquire(blocking=False):
            looker = threading.Thread(target=self._look, name="look", daemon=True)
            looker.start()
            if wait:
                looker.join(_LOOK_SECONDS)

    def _look(self) -> None:
        try:
            if self._monotonic() - self._resolved_at >= _RESOLVE_SECONDS:
                self._resolve()
                self._resolved_at = self._monotonic()
            with self._lock:
                known = [peer for peer in self._known.values() if not peer.dropped]
            lookers = [threading.Thread(target=self._look_at, args=(peer,), name="look", daemon=True) for peer in known]
            for looker in lookers:
                looker.start()
            for looker in lookers:
                looker.join()
            self._looked_at = self._monotonic()
        finally:
            self._looking.release()

    def usable(self) -> list[Peer]:
        """The peers that may be asked now, the same ones for all who share an origin where there are many."""
        now = self._monotonic()
        with self._lock:
            found = {p.address: p for p in self._known.values() if p.answers and not p.dropped and p.rests_until <= now}
        return [found[address] for address in ranked(self._origin, found)[:_MOST_USED]]

    def ask(self, peer: Peer, path: str) -> bytes | None:
        """Return a document of a peer; None when it has none, or does not answer as it should."""
        try:
            with self._asking.exchange("GET", self._url(peer, path), self._signed(path)) as answer:
                if answer.status == 401:
                    self._refused(peer)
                body = answer.read(_DOCUMENT_BYTES)
                return body if answer.status == 200 else None
        except (WireError, RedirectRefused) as exc:
            self.failed(peer, str(exc))
            return None

    @contextmanager
    def bytes_of(self, peer: Peer, path: str, part: Part) -> Iterator[Answer]:
        """Ask for a range; raises WireError or RedirectRefused."""
        asked = f"bytes={part.offset}-{part.end - 1}"
        with self._lock:
            peer.under_way += 1
        try:
            with self._carrying.exchange("GET", self._url(peer, path), self._signed(path, asked)) as answer:
                yield answer
        finally:
            with self._lock:
                peer.under_way -= 1

    def busy(self, peer: Peer, seconds: float) -> None:
        """Note that it has too much to do for now."""
        peer.busy_until = self._monotonic() + seconds

    def is_busy(self, peer: Peer) -> bool:
        """True when it said so a moment ago."""
        return peer.busy_until > self._monotonic()

    def well(self, peer: Peer) -> None:
        """Note that it did what it should."""
        peer.failures = 0

    def failed(self, peer: Peer, reason: str) -> None:
        """Let it rest; drop it when it fails again and again."""
        if peer.rests_until > self._monotonic():
            # Several threads of ours met the same trouble.
            return
        peer.failures += 1
        if peer.failures >= _FAILURES:
            self.drop(peer, f"it failed {peer.failures} times in a row: {reason}")
            return
        peer.rests_until = self._monotonic() + self._access.patience_seconds
        log.info("peer_rests", peer=peer.address, reason=reason)

    def drop(self, peer: Peer, reason: str) -> None:
        """Ask it no more."""
        if not peer.dropped:
            peer.dropped = True
            log.warning("peer_dropped", peer=peer.address, reason=reason, action="going on with others and the origin")

    def _refused(self, peer: Peer) -> None:
        self.drop(peer, "it does not know our token, or one of the clocks is wrong")

    def abort(self) -> None:
        """Wake up whoever waits for a peer."""
        self._asking.abort()
        self._carrying.abort()

    def _resolve(self) -> None:
        found: set[str] = set()
        for name in self._access.names:
            host, port = _split(name, self._access.port)
            try:
                rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:
                # Not there yet, or not any more: for as long, there are no such peers.
                continue
            found.update(_address(str(row[4][0]), port) for row in rows)
        found.discard(self.own)
        chosen = ranked(self._origin, found)[:_MOST_KNOWN]
        with self._lock:
            self._known = {address: self._known.get(address) or Peer(address) for address in chosen}

    def _look_at(self, peer: Peer) -> None:
        path = f"/v1/origins/{self._origin}"
        try:
            with self._asking.exchange("GET", self._url(peer, path), self._signed(path)) as answer:
                body, status = answer.read(_DOCUMENT_BYTES), answer.status
            if status == 401:
                self._refused(peer)
            document = json.loads(body) if status == 200 else {}
            fetching, count = document.get("fetching") is True, int(document.get("count", 0))
        except (WireError, RedirectRefused, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            # A pod that is starting or going; nothing is held against it.
            peer.answers = False
            return
        if count != peer.count or not peer.answers:
            peer.moved_at = self._monotonic()
        peer.answers, peer.fetching, peer.count = status == 200, fetching, count

    def _url(self, peer: Peer, path: str) -> str:
        return f"http://{peer.address}{path}"

    def _signed(self, path: str, asked: str = "") -> dict[str, str]:
        header = {"Authorization": signature(self._access.token, path, asked, int(self._now()))}
        return {**header, "Range": asked} if asked else header


def _split(name: str, port: int) -> tuple[str, int]:
    host, separator, given = name.rpartition(":")
    return (host, int(given)) if separator and given.isdigit() and ":" not in host else (name, port)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
