"""Objects that an engine makes and keeps: who keeps one, and how a new one is noticed. Pure.

Only responses are kept by engines. The id of a new one is read from the first bytes of the answer that made it: plain
answers and streams both name the response near their beginning, as a member of the body or of the first event. The
trap: output items and tools have ids too, so the prefix that every engine gives to responses is part of what is looked
for; text of the model cannot be mistaken for it, its quotes are escaped.
"""

import re
from typing import NewType

from xxhash import xxh3_64_intdigest

from matrixinfer.gateway.core.types import Endpoint

__all__ = ["IdFinder", "Keeper", "keeper"]

Keeper = NewType("Keeper", int)
"""The endpoint that keeps an object, as one number that is the same in every worker; never 0."""

_LOOK_BYTES = 16 * 1024
_ID = re.compile(rb'"id"[ \t\r\n]*+:[ \t\r\n]*+"(resp_[!#-\[\]-~]{1,256})"')


def keeper(endpoint: Endpoint) -> Keeper:
    """Return the number of an endpoint: a pod and the port that answers."""
    return Keeper(xxh3_64_intdigest(f"{endpoint.uid}:{endpoint.port}".encode()) or 1)


class IdFinder:
    """Looks at an answer piece by piece until it knows, or until it is clear that there is nothing to know."""

    __slots__ = ("_seen", "object_id")

    def __init__(self) -> None:
        self._seen = b""
        self.object_id = ""
        """The id, once it was found."""

    def feed(self, data: bytes) -> bool:
        """Look at the next piece; True when no more is wanted."""
        self._seen += data[: _LOOK_BYTES - len(self._seen)]
        found = _ID.search(self._seen)
        if found is not None:
            self.object_id = found[1].decode()
        return found is not None or len(self._seen) >= _LOOK_BYTES
