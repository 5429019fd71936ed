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

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from matrixinfer.gateway.core.types import Endpoint, SessionAffinity

__all__ = ["SessionHomes", "session_of"]

_CHOICES: Final = 3
"""The first, and who takes over when it cannot."""
_SESSIONS_KNOWN: Final = 4096


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


class SessionHomes:
    """Where sessions belong among some endpoints; those asked for lately are remembered, because they come again."""

    __slots__ = ("_known", "_seeds")

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._seeds = [xxh3_64_intdigest(endpoint.uid.encode()) for endpoint in endpoints]
        self._known: dict[int, tuple[int, ...]] = {}

    def of(self, session: str) -> tuple[int, ...]:
        """Return the positions of the few endpoints that a session belongs to, best first."""
        text = session.encode()
        # Not the text itself, which is a client's and may be long.
        key = xxh3_128_intdigest(text)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _SESSIONS_KNOWN:
                self._known.clear()
            found = self._known[key] = self._best(text)
        return found

    def _best(self, session: bytes) -> tuple[int, ...]:
        ranks = [(xxh3_64_intdigest(session, seed), position) for position, seed in enumerate(self._seeds)]
        return tuple(position for _, position in nlargest(_CHOICES, ranks))
