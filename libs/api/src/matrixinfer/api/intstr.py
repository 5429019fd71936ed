"""Counts that may be written as a percentage of something."""

import re
from typing import Final

__all__ = ["PERCENT_PATTERN", "resolve"]

PERCENT_PATTERN: Final = r"^[0-9]+%$"
"""How a percentage is written."""

_PERCENT: Final = re.compile(r"([0-9]+)%")


def resolve(value: int | str, total: int, *, round_up: bool) -> int:
    """Return `value` as a count: a percentage is taken of `total` and rounded up or down.

    Raises:
        ValueError: a string that is not a percentage.
    """
    if isinstance(value, int):
        return value
    match = _PERCENT.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is neither a number nor a percentage; write for example 1 or '25%'")
    scaled = int(match[1]) * total
    return -(-scaled // 100) if round_up else scaled // 100
