"""How many connections work at the same time: as many as help, fewer at once when the source asks for it. Pure.

Twice as many while each doubling helps, then additive increase while the rate grows with the width, a step back where
it does not, and half of it when the source pushes back (429, 503, silence). Where the processor is the limit no
connection helps, and each costs: what waits in its socket grows cold before it is read. The trap: rates of one source
wander by themselves, so a gain counts only from a few percent on, and after a step that did not help it is left alone
for a while.
"""

from dataclasses import dataclass

__all__ = ["Pace", "first_pace", "next_pace"]

_FEWEST_AT_FIRST = 4
_GAIN = 1.04
_REST_TICKS = 12
_PUSHED_TICKS = 6


@dataclass(frozen=True, slots=True)
class Pace:
    """The width in force, the rate that the last step is measured against, and ticks to leave it as it is."""

    width: int
    reference: float = 0.0
    step: int = 0
    rest: int = 0
    doubling: bool = False
    """True until the first step that did not help."""


def first_pace(cores: float, most: int) -> Pace:
    """Return where to begin: with a connection for each core, as each is busy with the bytes of one."""
    width = min(2 * cores, max(_FEWEST_AT_FIRST, cores), most)
    return Pace(max(1, int(width)), doubling=True)


def next_pace(pace: Pace, rate: float, *, pushed_back: bool, busy: bool, most: int) -> Pace:
    """Return the pace for the next tick, from the rate of the last one; `busy` when the processor is the limit."""
    if pushed_back:
        return Pace(max(1, min(pace.width // 2, most)), rest=_PUSHED_TICKS)
    if pace.width > most:
        return Pace(most, rate)
    if busy:
        return Pace(pace.width, rate, doubling=pace.doubling)
    if pace.rest:
        return Pace(pace.width, rate, rest=pace.rest - 1)
    if pace.step and rate < pace.reference * _GAIN:
        return Pace(max(1, pace.width - pace.step), rate, rest=_REST_TICKS)
    step = min(pace.width if pace.doubling else max(1, pace.width // 4), most - pace.width)
    return Pace(pace.width + step, rate, step=step, rest=0 if step else _REST_TICKS, doubling=pace.doubling)
