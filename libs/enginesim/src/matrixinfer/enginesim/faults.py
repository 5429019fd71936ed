"""Faults on demand: what to break, for which paths, how many times.

Owns: the list of faults and their countdown. Refuses: chance. A fault that shall happen three times happens to the
next three requests, so every test that uses one is repeatable.

| kind      | what happens to a matching request                                    | fields             |
|-----------|------------------------------------------------------------------------|--------------------|
| error     | answered with `status` and an OpenAI error object                      | status             |
| refuse    | the connection is closed before a byte of the answer                   |                    |
| hang      | never answered                                                         |                    |
| delay     | starts `seconds` later                                                 | seconds            |
| cut       | the connection is torn down after `after` chunks of the stream         | after              |
| stall     | the stream goes quiet after `after` chunks, the connection stays open  | after              |
| unhealthy | (any request) `GET /health` answers 503                                |                    |
| dead      | (any request) `GET /health` answers 503 and every other request 500    |                    |
| slow      | (any request) every step takes `factor` times as long                  | factor             |
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

import orjson

__all__ = ["Fault", "FaultBoard", "FaultKind", "faults_from"]


class FaultKind(StrEnum):
    """The kinds of the table above."""

    ERROR = "error"
    REFUSE = "refuse"
    HANG = "hang"
    DELAY = "delay"
    CUT = "cut"
    STALL = "stall"
    UNHEALTHY = "unhealthy"
    DEAD = "dead"
    SLOW = "slow"


_STATES: Final = frozenset({FaultKind.UNHEALTHY, FaultKind.DEAD, FaultKind.SLOW})


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `times` counts down, `None` lasts until the faults are cleared."""

    kind: FaultKind
    times: int | None = None
    path: str = "/v1/*"
    status: int = 500
    seconds: float = 1.0
    after: int = 1
    factor: float = 10.0


def faults_from(value: object) -> list[Fault]:
    """Read one fault or a list of them from decoded JSON. Raises `ValueError` naming what is wrong."""
    items = value if isinstance(value, list) else [value]
    return [_fault(item) for item in items]


def _fault(item: object) -> Fault:
    if not isinstance(item, Mapping):
        raise ValueError("a fault is a JSON object with a kind")
    try:
        return Fault(**{**item, "kind": FaultKind(str(item.get("kind")))})
    except TypeError as exc:
        raise ValueError(f"unknown member in fault {orjson.dumps(item).decode()}") from exc


class FaultBoard:
    """The faults in force."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults = list(faults)

    def add(self, faults: Iterable[Fault]) -> None:
        """Put faults in force behind those there are."""
        self._faults.extend(faults)

    def clear(self) -> None:
        """Nothing is broken any more."""
        self._faults.clear()

    def listing(self) -> list[dict[str, object]]:
        """The faults in force, for people."""
        return [{"kind": f.kind, "times": f.times, "path": f.path} for f in self._faults]

    def state(self, kind: FaultKind) -> Fault | None:
        """The lasting fault of this kind, when there is one."""
        return next((fault for fault in self._faults if fault.kind is kind), None)

    def take(self, path: str) -> Fault | None:
        """The fault that this request meets, counted down; a lasting state is never taken."""
        for position, fault in enumerate(self._faults):
            if fault.kind in _STATES or not fnmatchcase(path, fault.path):
                continue
            if fault.times is not None:
                if fault.times <= 1:
                    del self._faults[position]
                else:
                    self._faults[position] = replace(fault, times=fault.times - 1)
            return fault
        return None
