"""What an inlet could not accept: answered, counted, and told to the log within bounds.

Who sends nonsense pays nothing for it, so it must cost little here too. Each refusal is counted, under a status that is
ours; of their lines only a few are written in a second, with no more of what the client made up than tells one cause
from another. The next line says how many there were without one.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from matrixinfer.gateway import errors
from matrixinfer.gateway.access import AccessLog, AccessRecord
from matrixinfer.gateway.stats import Series
from matrixinfer.gateway.wire.message import Headers, Refusal

__all__ = ["Refusals"]

_OUTCOME: Final = "not_accepted"
_EXPECTED: Final = (400, 408, 413, 431, 503)
_LINES_PER_SECOND: Final = 10
_PATH_LIMIT: Final = 128
_METHOD_LIMIT: Final = 16


class Refusals:
    """Those of one worker: called with each, returns its answer's headers and body."""

    def __init__(
        self,
        *,
        worker: int,
        series: Series,
        access: AccessLog,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        request_id: Callable[[Headers], str],
    ) -> None:
        """`series` counts what no route took; `request_id` names a request by its headers."""
        self._worker = worker
        self._series = series
        self._access = access
        self._now = now
        self._clock = clock
        self._request_id = request_id
        self._second = 0
        self._lines = 0
        self._left_out = 0
        for status in _EXPECTED:
            series.expect(status, _OUTCOME)

    def __call__(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """Account for one refusal, and put it into words."""
        error, request_id = errors.refused(refusal), self._request_id(refusal.headers)
        self._series.refused(error.status, _OUTCOME)
        if self._has_line():
            self._access.write(self._record(refusal, request_id))
            self._left_out = 0
        else:
            self._left_out += 1
        headers = [*error.headers, (b"x-request-id", request_id.encode())]
        return headers, errors.error_body(error, refusal.path, request_id)

    def _has_line(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= _LINES_PER_SECOND

    def _record(self, refusal: Refusal, request_id: str) -> AccessRecord:
        return AccessRecord(
            self._now(),
            request_id,
            refusal.method[:_METHOD_LIMIT],
            refusal.path[:_PATH_LIMIT].decode(errors="replace"),
            refusal.status,
            _OUTCOME,
            worker=self._worker,
            client=refusal.peer,
            failures=[refusal.message],
            lines_left_out=self._left_out,
        )
