"""Tables, goals, and the one line at the end."""

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Goal", "Report", "median", "say"]


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def median(values: Iterable[float]) -> float:
    """Return the median, 0 of nothing."""
    return statistics.median(list(values) or [0.0])


@dataclass(frozen=True, slots=True)
class Goal:
    """One number against its bound."""

    what: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ("≥" if self.at_least else "≤") if self.holds else ("<" if self.at_least else ">")
        return f"{self.what} {self.value:.3g} {sign} {self.bound:g}"


@dataclass
class Report:
    """What was found so far."""

    goals: list[Goal] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[Goal]:
        return [goal for goal in self.goals if not goal.holds]

    def goal(self, what: str, value: float, bound: float, *, at_least: bool = True) -> None:
        """Note a number that has a bound, and say it."""
        goal = Goal(what, value, bound, at_least)
        self.goals.append(goal)
        say(f"  {'held  ' if goal.holds else 'MISSED'} {goal}")

    def not_measured(self, what: str, why: str) -> None:
        """Note what could not be measured here."""
        self.open.append(f"{what}: {why}")
        say(f"  not measured: {what}: {why}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table as Markdown, aligned."""
        say(f"\n### {title}\n")
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            first, *rest = zip(cells, widths, strict=True)
            return f"| {first[0]:<{first[1]}} | {' | '.join(f'{cell:>{width}}' for cell, width in rest)} |"

        say(line(columns))
        say(f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|")
        for row in rows:
            say(line(row))
        say()

    def summary(self) -> None:
        """Print the last line."""
        for sentence in self.open:
            say(f"not measured: {sentence}")
        held = len(self.goals) - len(self.missed)
        say(f"\nbench-gateway: {held} of {len(self.goals)} goals held: {'; '.join(map(str, self.goals))}")
