"""What is remembered of a cluster between commands, and the locks that order them.

Owns one JSON file, written atomically, and two locks. `transition` serialises going up and down. The users' lock is
held, shared, by each process that borrows a cluster; the kernel releases it however that process ends, so a borrowed
cluster goes down with its last user even when that was killed.

The trap: the file says what was *intended* (`ready` false while going up). Whether it runs is asked of the processes.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import orjson

from matrixinfer.devcluster.layout import Instance

__all__ = ["State", "hold_as_user", "is_unused", "load", "save", "transition", "wait_until_unused"]


@dataclass(frozen=True, slots=True)
class State:
    """A cluster as it was last brought up.

    `server` is the URL for clients on this machine; `kept` means that it stays without users, until `down`;
    `commands` are the argument lists by process name, so that one process can be restarted as it was; `published`
    maps `namespace/service:port` to the local port that forwards to it.
    """

    tier: str
    server: str
    ready: bool = False
    kept: bool = False
    commands: Mapping[str, list[str]] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)


def load(instance: Instance) -> State | None:
    """Read the state; None when there is none (or an unreadable one, which means the same)."""
    try:
        raw = orjson.loads(instance.state_file.read_bytes())
        return State(**raw)
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None


def save(instance: Instance, state: State) -> None:
    """Write the state, all of it or nothing."""
    instance.folder.mkdir(parents=True, exist_ok=True)
    partial = instance.state_file.with_name(f".{instance.state_file.name}.{os.getpid()}")
    partial.write_bytes(orjson.dumps(asdict(state), option=orjson.OPT_INDENT_2))
    partial.replace(instance.state_file)


@contextmanager
def transition(instance: Instance) -> Iterator[int]:
    """Hold the right to start and stop processes; yields the lock's descriptor for `Ledger.start`."""
    while True:
        instance.folder.mkdir(parents=True, exist_ok=True)
        with instance.transition_lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it before may have removed the folder; then this is the lock of nothing.
            if _is_still_there(file, instance.transition_lock):
                yield file.fileno()
                return


def _is_still_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def hold_as_user(instance: Instance) -> IO[str]:
    """Become a user of the cluster until the returned file is closed or the process ends."""
    file = instance.users_lock.open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def is_unused(instance: Instance) -> bool:
    """Whether nobody borrows the cluster now; ask while holding `transition`, or the answer is already old."""
    with instance.users_lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def wait_until_unused(instance: Instance) -> None:
    """Block until there was a moment without users."""
    # Opened for reading: a cluster that is gone already must not get its folder back.
    with contextlib.suppress(FileNotFoundError), instance.users_lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
