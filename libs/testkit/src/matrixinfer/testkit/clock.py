"""Time for tests: a clock that moves only when told to."""

from datetime import UTC, datetime, timedelta

__all__ = ["EPOCH", "ManualClock", "rfc3339"]

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""Where a `ManualClock` starts unless told otherwise."""


def rfc3339(moment: datetime) -> str:
    """Return the form of `metav1.Time`: whole seconds, UTC, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ManualClock:
    """A clock to call for the time and to `advance` by hand."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._now = start

    def __call__(self) -> datetime:
        """The present moment."""
        return self._now

    def advance(self, seconds: float) -> datetime:
        """Move on by `seconds` and return the new moment."""
        self._now += timedelta(seconds=seconds)
        return self._now
