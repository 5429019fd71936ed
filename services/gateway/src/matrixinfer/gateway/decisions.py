"""The newest decisions of a worker, kept so that somebody may ask why a request went where it went.

A record holds references to what the decision was made from, so keeping one costs next to nothing; explaining,
replaying and encoding happen when somebody asks. Bounded in number and, because each candidate of a decision holds a
few numbers, in candidates. The trap: an answer that is worked out from the loads of now would be a guess, so only what
was recorded is looked at.
"""

from collections import deque
from datetime import datetime

import msgspec

from matrixinfer.gateway.core.schedule.framework import Decision
from matrixinfer.gateway.core.schedule.record import Explanation, Recorded, explain, replay

__all__ = ["DecisionBook", "Noted", "Page"]

_DECISIONS = 1024
_CANDIDATES = 64 * 1024
_TOLD = 16


class Noted(msgspec.Struct, frozen=True, gc=False):
    """One decision and what became of it: the pod that the attempt went to."""

    at: datetime
    route: str
    rule: str
    server: str
    pod: str
    recorded: Recorded


class _Replay(msgspec.Struct, frozen=True):
    pod: str
    same: bool


class _Told(msgspec.Struct, frozen=True):
    at: datetime
    route: str
    rule: str
    server: str
    pod: str
    decision: Explanation
    replay: _Replay


class Page(msgspec.Struct, frozen=True):
    """All decisions of one request, in order: more than one when it was sent again."""

    request_id: str
    worker: int
    attempts: tuple[_Told, ...]


class DecisionBook:
    """Remembers the newest decisions."""

    def __init__(self, worker: int, *, decisions: int = _DECISIONS, candidates: int = _CANDIDATES) -> None:
        """Keep at most so many decisions, and so many candidates over all of them."""
        self._worker = worker
        self._most = decisions
        self._candidates = candidates
        self._held = 0
        self._notes: deque[Noted] = deque()

    def note(self, noted: Noted) -> None:
        """Remember a decision, and forget the oldest ones that there is no more room for."""
        notes = self._notes
        notes.append(noted)
        self._held += len(noted.recorded.view.endpoints)
        while len(notes) > self._most or (self._held > self._candidates and len(notes) > 1):
            self._held -= len(notes.popleft().recorded.view.endpoints)

    def explain(self, request_id: str) -> bytes | None:
        """Return the story of a request as JSON; None when it is not remembered."""
        # Nearly nobody asks: a look at all of them is cheaper than an index for each.
        notes = [noted for noted in self._notes if noted.recorded.request_id == request_id]
        if not notes:
            return None
        # A client may give all of its requests one name.
        told = tuple(_told(noted) for noted in notes[-_TOLD:])
        return msgspec.json.encode(Page(request_id, self._worker, told))


def _told(noted: Noted) -> _Told:
    again = replay(noted.recorded)
    pod = again.endpoint.pod if isinstance(again, Decision) else ""
    story = explain(noted.recorded)
    return _Told(noted.at, noted.route, noted.rule, noted.server, noted.pod, story, _Replay(pod, pod == noted.pod))
