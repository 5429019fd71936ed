"""How much of scheduling a worker can afford now: a ladder, and the rule by which it is gone down and up.

A worker whose loop is late makes every stream of its clients late, so it does less per decision before that: first it
looks at the beginning of prompts only, then not at prompts at all, then it draws two endpoints and takes the one with
fewer requests. Down at once, up one step at a time after a calm while, so that it does not swing. Pure; the worker
measures and asks.
"""

from enum import IntEnum
from typing import Final

import msgspec

__all__ = ["Ladder", "Rung", "next_ladder"]


class Rung(IntEnum):
    """What is still done, from everything to the least."""

    FULL = 0
    SHORT_PREFIX = 1
    NO_PREFIX = 2
    TWO_RANDOM = 3

    @property
    def label(self) -> str:
        """The name in metrics, logs and explanations."""
        return _LABELS[self]


_LABELS: Final = {rung: rung.name.lower().replace("_", "-") for rung in Rung}
_LATE_SECONDS: Final = (0.02, 0.05, 0.15)
"""Lag of the loop that leads to the first, second and third rung below."""
_BUSY_SHARE: Final = 0.9
"""Share of a CPU that leads to the first one: a busy worker whose loop is in time saves only what costs most."""
_CALM: Final = 0.7
"""Below this part of what led down it goes up again …"""
_CALM_LOOKS: Final = 8
"""… after so many looks in a row."""


class Ladder(msgspec.Struct, frozen=True):
    """Where a worker stands, and for how many looks it has been calm."""

    rung: Rung = Rung.FULL
    calm: int = 0


def next_ladder(ladder: Ladder, lag_seconds: float, cpu_share: float) -> Ladder:
    """Return where to stand, from how late the loop was and how much of a CPU was used since the last look."""
    wanted = _wanted(lag_seconds, cpu_share, 1.0)
    if wanted > ladder.rung:
        return Ladder(wanted)
    if ladder.rung is Rung.FULL or _wanted(lag_seconds, cpu_share, _CALM) >= ladder.rung:
        return Ladder(ladder.rung)
    if ladder.calm + 1 < _CALM_LOOKS:
        return Ladder(ladder.rung, ladder.calm + 1)
    return Ladder(Rung(ladder.rung - 1))


def _wanted(lag_seconds: float, cpu_share: float, part: float) -> Rung:
    late = sum(lag_seconds > bound * part for bound in _LATE_SECONDS)
    return Rung(max(late, int(cpu_share > _BUSY_SHARE * part)))
