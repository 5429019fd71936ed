"""Processes that outlive whoever started them, and that can always be found and stopped again.

Owns starting, recording and stopping. A process writes its own record (boot id, pid, start time) *before* it becomes
the program, so there is no moment at which a program runs unrecorded: killing the starter loses nothing.

Refuses to own what runs in them, and restarting: a component that dies stays dead and is reported.

The traps: a pid is reused, so a record only counts when boot id and start time match too, and signals go through a
pidfd that was opened before that check. A zombie has a pid and a start time but is not running.
"""

import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matrixinfer.devcluster.errors import ClusterError

__all__ = ["Identity", "Ledger", "identify", "parse_record", "signal_process", "stop_processes", "wait_gone"]

# Takes: record file, working directory, program and its arguments. Descriptor 9 is the starter's lock: it is given up
# only after the record is written, so whoever gets the lock next sees a complete record.
_RECORD_AND_EXEC = """
read -r boot < /proc/sys/kernel/random/boot_id && read -r stat < "/proc/$$/stat" &&
printf '%s\\n%s\\n' "$boot" "$stat" > "$1" && cd "$2" && exec 9>&- && shift 2 && exec "$@"
"""

# Of /proc/PID/stat, counted from the state (proc_pid_stat(5)).
_THREADS: Final = 17


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for all time: pids come back, but not with the same start time in the same boot."""

    boot: str
    pid: int
    started_ticks: int


def parse_record(text: str) -> Identity | None:
    """Read a record (boot id, then a line of /proc/PID/stat); None when it is not a complete one."""
    boot, _, stat = text.strip().partition("\n")
    # The command's name is in parentheses and may hold anything, so fields are counted from the last one.
    head, _, tail = stat.rpartition(")")
    pid, fields = head.partition(" ")[0], tail.split()
    if not boot or not pid.isdigit() or len(fields) < 20 or not fields[19].isdigit():
        return None
    return Identity(boot, int(pid), int(fields[19]))


def identify(pid: int) -> Identity | None:
    """Return who has this pid now; None when nobody runs: a zombie does not, once the last of its threads has ended.

    Until then it holds its files and its ports.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[:1] in (["Z"], ["X"]) and fields[_THREADS] in ("0", "1"):
        return None
    return parse_record(f"{_boot_id()}\n{stat}")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def signal_process(target: Identity, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone, even if its pid now belongs to another."""
    try:
        handle = os.pidfd_open(target.pid)
    except ProcessLookupError:
        return False
    try:
        if identify(target.pid) != target:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(target: Identity, seconds: float) -> bool:
    """Wait until this process has ended; reaps it when it is a child of ours. False when the time ran out."""
    try:
        handle = os.pidfd_open(target.pid)
    except ProcessLookupError:
        return True
    try:
        if identify(target.pid) == target:
            # Not `select`, which refuses descriptors above 1,023.
            waiting = select.poll()
            waiting.register(handle, select.POLLIN)
            waiting.poll(max(0.0, seconds) * 1000)
    finally:
        os.close(handle)
    _reap(target.pid)
    return identify(target.pid) != target


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def stop_processes(targets: Iterable[Identity], patience_seconds: float) -> None:
    """Ask all of them to end, and kill those that run after `patience_seconds`; with none, kill them at once."""
    first = signal.SIGTERM if patience_seconds else signal.SIGKILL
    wanted = [target for target in targets if signal_process(target, first)]
    deadline = time.monotonic() + patience_seconds
    stubborn = [target for target in wanted if not wait_gone(target, deadline - time.monotonic())]
    for target in stubborn:
        signal_process(target, signal.SIGKILL)
    for target in stubborn:
        if not wait_gone(target, 10):
            raise ClusterError(f"process {target.pid} survived SIGKILL: it is stuck in the kernel")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The processes of one cluster, by name."""

    records: Path
    logs: Path

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        lock: int,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start `argv` in a session of its own, output to `logs/<name>.log`; `lock` is the held transition lock."""
        self.records.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        record = self.records / name
        record.unlink(missing_ok=True)
        log = str(self.log(name))
        # A real value for PATH and HOME only: what else the user exported is not the cluster's business.
        inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _RECORD_AND_EXEC, "sh", str(record), str(folder or self.records), *map(str, argv)],
            {**inherited, **(env or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lock, 9),
            ],
            setsid=True,
            setsigmask=[],
        )
        deadline = time.monotonic() + 10
        while True:
            # Asked in this order: a short program may have ended by the time its record is read.
            alive = identify(pid) is not None
            if self.recorded(name) is not None:
                return
            if not alive or time.monotonic() > deadline:
                raise ClusterError(f"{name} could not be started; its log is {log}")
            time.sleep(0.002)

    def log(self, name: str) -> Path:
        """Return the log file of the process `name`."""
        return self.logs / f"{name}.log"

    def recorded(self, name: str) -> Identity | None:
        """Return who was started under this name last, running or not."""
        try:
            return parse_record((self.records / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def running(self) -> dict[str, Identity]:
        """Return the recorded processes that still run."""
        names = sorted(path.name for path in self.records.iterdir()) if self.records.is_dir() else []
        seen = ((name, self.recorded(name)) for name in names)
        return {name: who for name, who in seen if who is not None and identify(who.pid) == who}

    def stop(self, *names: str, patience_seconds: float = 10, hard: bool = False) -> None:
        """Stop these processes (all at once) and forget them; `hard` kills without asking."""
        running = self.running()
        stop_processes((running[n] for n in names if n in running), 0 if hard else patience_seconds)
        for name in names:
            (self.records / name).unlink(missing_ok=True)

    def tail(self, name: str, lines: int = 12) -> str:
        """Return the end of a process's log, for an error message."""
        try:
            text = self.log(name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])
