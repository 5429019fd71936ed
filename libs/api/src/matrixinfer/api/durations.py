"""Go's duration syntax (`1m30s`) to `timedelta` and back.

The grammar is the one of Go's `time.ParseDuration`: an optional sign, then one or more decimal numbers each with a
unit; a bare `0` is allowed. The trap: a `timedelta` holds microseconds, so nanoseconds are rounded to the nearest.
"""

import re
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

__all__ = ["PATTERN", "format", "parse"]

PATTERN: Final = r"^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$"
"""The grammar as a regular expression, for schemas."""

_WHOLE: Final = re.compile(PATTERN)
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_LARGEST: Final = 2**63 - 1


def parse(text: str) -> timedelta:
    """Return the duration that `text` names.

    Raises:
        ValueError: `text` is not in Go's syntax, or is longer than Go can hold (about 292 years).
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration; write for example '30s', '1m30s' or '500ms'")
    total = sum((Decimal(number) * _NANOSECONDS[unit] for number, unit in _PART.findall(text)), Decimal(0))
    if total > _LARGEST:
        raise ValueError(f"{text!r} is longer than 292 years")
    microseconds = int((total / 1000).to_integral_value(ROUND_HALF_EVEN))
    return timedelta(microseconds=-microseconds if text.startswith("-") else microseconds)


# The name of the module qualifies it: `durations.format`.
def format(value: timedelta) -> str:  # noqa: A001
    """Return Go's canonical form: `1m30s`, `250ms`, `0s`."""
    microseconds = value // timedelta(microseconds=1)
    sign, microseconds = ("-", -microseconds) if microseconds < 0 else ("", microseconds)
    if microseconds == 0:
        return "0s"
    if microseconds < 1_000:
        return f"{sign}{microseconds}µs"
    if microseconds < 1_000_000:
        return f"{sign}{_trimmed(microseconds, 1_000)}ms"
    minutes, rest = divmod(microseconds, 60_000_000)
    seconds = f"{_trimmed(rest, 1_000_000)}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else f"{sign}{seconds}"


def _trimmed(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    digits = str(fraction).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
