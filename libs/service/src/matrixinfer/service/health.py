"""Which claims make a process alive and ready, and the page that shows them. No I/O.

Owns the set of named checks. A check is synchronous, cheap and reads memory only: probes come every few seconds.
The trap: a process that has not yet said what readiness means is not ready, so an empty set answers no.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Check", "Checks", "Verdict"]

Check: TypeAlias = Callable[[], bool | str]
"""True when the claim holds; False, or a sentence that says what is missing, when it does not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all claims hold, and one line per claim."""

    ok: bool
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as the body of an answer."""
        return "\n".join(self.lines) + "\n"


class Checks:
    """Named claims, asked in the order they were added."""

    def __init__(self, *, when_empty: str | None = None) -> None:
        """`when_empty` is what is missing while no claim was made yet; None lets the empty set hold."""
        self._checks: dict[str, Check] = {}
        self._when_empty = when_empty

    def add(self, name: str, check: Check) -> None:
        """Add a claim; a second one of the same name takes the first one's place."""
        self._checks[name] = check

    def ask(self) -> Verdict:
        """Ask every claim. One that raises does not hold: a probe must get an answer, whatever is broken."""
        if not self._checks and self._when_empty is not None:
            return Verdict(ok=False, lines=(f"[-] starting: {self._when_empty}",))
        answers = {name: _answer(check) for name, check in self._checks.items()}
        lines = tuple(f"[+] {n}" if a is True else f"[-] {n}: {a or 'not yet'}" for n, a in answers.items())
        return Verdict(ok=all(a is True for a in answers.values()), lines=lines or ("[+] running",))


def _answer(check: Check) -> bool | str:
    try:
        return check()
    # A broken check is an answer, whatever its type: the probe shows it.
    except Exception as exc:  # noqa: BLE001
        return f"the check failed: {exc!r}"
