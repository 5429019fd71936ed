"""When load jumps: panic mode starts at a sign, lasts a while after the last one, and never takes replicas away."""

from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["PanicRule", "panic_until"]


@dataclass(frozen=True, slots=True)
class PanicRule:
    """`threshold_percent` of the present replicas being asked for is the sign; growth is `percent` in `period`."""

    percent: int
    period: timedelta
    threshold_percent: int
    hold: timedelta

    @property
    def is_on(self) -> bool:
        """False for a rule that could do nothing."""
        return self.percent > 0 and self.hold > timedelta(0)


def panic_until(
    rule: PanicRule | None, before: datetime | None, *, recommended: int, current: int, now: datetime
) -> datetime | None:
    """The end of panic mode as of now; `None` when it is off."""
    if rule is None or not rule.is_on:
        return None
    if current > 0 and recommended * 100 >= current * rule.threshold_percent:
        return now + rule.hold
    return before if before is not None and now <= before else None
