"""Where the turns of one conversation go: to the same endpoint, as long as it is there and can.

Nothing is remembered. Every endpoint has a rank for every session, a hash of both, and the highest wins (rendezvous
hashing): all workers and all gateways agree without a word, a pod that goes moves only its own sessions, a new one
takes its share and no more. So there is nothing that could expire, and `ttl` has nothing to say. The trap: one busy
session, or many that fall on one pod, must not queue there while others idle, so it is a wish that the load can
overrule (`schedule.filters.session`).
"""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Final

from xxhash import xxh3_64_intdigest

from matrixinfer.gateway.core.types import Endpoint, SessionAffinity

__all__ = ["preferred", "session_of"]

_CHOICES: Final = 3
"""The first, and who takes over when it cannot."""


def session_of(affinity: SessionAffinity | None, headers: Mapping[str, str]) -> str:
    """Return the identity of a request's conversation; empty when it has none. Header names are lower case."""
    if affinity is None:
        return ""
    if not affinity.is_cookie:
        return headers.get(affinity.name.lower(), "")
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == affinity.name:
            return value
    return ""


def preferred(session: str, endpoints: Sequence[Endpoint]) -> tuple[int, ...]:
    """Return the positions of the few endpoints that a session belongs to, best first."""
    key = session.encode()
    ranks = [xxh3_64_intdigest(key, xxh3_64_intdigest(endpoint.uid.encode())) for endpoint in endpoints]
    return tuple(nlargest(_CHOICES, range(len(ranks)), key=ranks.__getitem__))
