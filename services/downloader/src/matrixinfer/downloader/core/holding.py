"""Who holds a folder, and may it be taken over? Pure.

A holder is a generation: a number that only grows, and that nobody has twice, because generation n + 1 begins by making
a folder of that name, which succeeds for one process only, on every file system. It is also the fencing token. A
holder shows that it lives by counting; whoever waits compares two counts over its own monotonic clock, so no two
clocks are ever compared. Where the waiter can tell for sure (the same kernel and mount, where locks work) it need not
wait. The trap: a holder that was stopped for longer than the patience of others must notice, before it publishes,
that a later generation exists.
"""

from dataclasses import dataclass

__all__ = ["Holder", "Observation", "Seen", "judge", "observe"]


@dataclass(frozen=True, slots=True)
class Holder:
    """The latest generation as it was read: its number, what it counts, who it is, and whether it gave up."""

    generation: int
    count: int
    pod: str = ""
    released: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A holder, and since when, on the waiter's clock, it has looked exactly so."""

    holder: Holder
    since: float


@dataclass(frozen=True, slots=True)
class Observation:
    """A look at the folder: the latest holder, and whether its process is known to live or to be dead."""

    holder: Holder | None
    alive: bool | None


def observe(before: Seen | None, holder: Holder, now: float) -> Seen:
    """Return what was seen, with the time of the last change."""
    return before if before is not None and before.holder == holder else Seen(holder, now)


def judge(observation: Observation, seen: Seen | None, now: float, *, patience_seconds: float) -> int | None:
    """Return the generation to begin now, or None while the holder must be taken for alive."""
    holder = observation.holder
    if holder is None:
        return 1
    dead = observation.alive is False
    stands_still = observation.alive is None and seen is not None and now - seen.since >= patience_seconds
    return holder.generation + 1 if holder.released or dead or stands_still else None
