"""Kubernetes quantities (`500m`, `2Gi`, `1e3`) as exact decimal numbers."""

import re
from decimal import Decimal
from typing import Final

__all__ = ["PATTERN", "format_bytes", "parse"]

PATTERN: Final = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
"""The grammar as the API server publishes it, for schemas."""

_SHAPE: Final = re.compile(r"(?P<number>[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?P<suffix>.*)", re.DOTALL)
_EXPONENT: Final = re.compile(r"[eE]([-+]?[0-9]{1,3})")
_SUFFIXES: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(1000),
    **{prefix: Decimal(1000) ** power for power, prefix in enumerate("MGTPE", start=2)},
    **{f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)},
}
_STEP: Final = 1024
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def parse(value: int | str) -> Decimal:
    """Return the number that a quantity stands for: `500m` is 0.5, `1Ki` is 1024.

    Raises:
        ValueError: the text is not a quantity.
    """
    if isinstance(value, int):
        return Decimal(value)
    match = _SHAPE.fullmatch(value)
    if match is None:
        raise ValueError(_refusal(value))
    suffix = match["suffix"]
    number = Decimal(match["number"])
    if suffix in _SUFFIXES:
        return number * _SUFFIXES[suffix]
    exponent = _EXPONENT.fullmatch(suffix)
    if exponent is None:
        raise ValueError(_refusal(value))
    return number.scaleb(int(exponent[1]))


def format_bytes(count: int) -> str:
    """Return a byte count for people: `0 B`, `94.2 MiB`."""
    size = float(count)
    for unit in _UNITS:
        if size < _STEP or unit == _UNITS[-1]:
            return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
        size /= _STEP
    raise AssertionError("the last unit always returns")


def _refusal(value: str) -> str:
    return f"{value!r} is not a quantity; write for example 2, '500m' or '1Gi'"
