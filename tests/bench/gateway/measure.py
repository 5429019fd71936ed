"""Processes on cores, what they cost, and the load on them.

CPU seconds come from /proc and count every process of a subject, so they say what a request costs even while others
use the machine; requests per second and latencies need a machine that is otherwise idle.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from matrixinfer.devcluster import repository

__all__ = [
    "CORES",
    "Cores",
    "Load",
    "Process",
    "Run",
    "engines",
    "free_port",
    "load",
    "running",
    "until",
    "wire_program",
]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores carry what."""

    gateway: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def total(self) -> int:
        return len({*self.gateway, *self.rest})


def _cores() -> Cores:
    first, *others = sorted(os.sched_getaffinity(0))
    return Cores((first,), tuple(others) or (first,))


CORES: Final = _cores()


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was started for the bench, with all its children."""

    pid: int

    def tree(self) -> list[int]:
        """Return the pid and those of all descendants."""
        pids = [self.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*"):
                try:
                    pids += map(int, (task / "children").read_text().split())
                except OSError:
                    continue
        return pids

    def cpu_seconds(self) -> float:
        """Return what the tree has used so far."""
        return sum(map(_cpu_seconds, self.tree()))

    def rss_bytes(self) -> int:
        """Return the resident memory of the largest process of the tree."""
        return max(map(_rss_bytes, self.tree()), default=0)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def free_port() -> int:
    """Return a port that nobody uses, on any address of loopback."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(
    argv: Sequence[str], cores: Sequence[int], log: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run a program on `cores` for the length of the block; its output goes to `log`."""
    command = ("taskset", "--cpu-list", ",".join(map(str, cores)), *argv)
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=repository(),
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    tree = Process(process.pid)
    try:
        yield tree
    finally:
        pids = tree.tree()
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            pass
        for pid in reversed(pids):
            _kill(pid)
        await process.wait()


def _kill(pid: int) -> None:
    try:
        if os.getsid(pid) != os.getsid(0):
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def until(what: str, holds: Callable[[], bool], seconds: float = _START_SECONDS) -> None:
    """Wait for something that nobody announces. Raises TimeoutError with its name."""
    try:
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(holds):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"{what} did not happen within {seconds:g} s") from None


def wire_program() -> Path:
    """Build the load and engine program, and return it."""
    target = repository() / ".cache" / "bench" / "wire"
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(("go", "build", "-o", str(target), "."), cwd=Path(__file__).with_name("wire"), check=True)
    return target


@asynccontextmanager
async def engines(count: int, pace_ms: float, logs: Path) -> AsyncIterator[list[str]]:
    """Run `count` engines, each on a loopback address of its own, all on one port; yields address:port."""
    port = free_port()
    addresses = [f"127.4.{1 + i // 250}.{1 + i % 250}" for i in range(count)]
    argv = (
        str(wire_program()),
        "engine",
        "-addresses",
        ",".join(addresses),
        "-port",
        str(port),
        "-pace",
        f"{pace_ms}ms",
    )
    async with running(argv, CORES.rest, logs / "engines.log"):
        await until("the start of the engines", lambda: answers(f"{addresses[-1]}:{port}", "/health"))
        yield [f"{address}:{port}" for address in addresses]


def answers(target: str, path: str) -> bool:
    """Whether a GET is answered with 200."""
    return get(target, path) is not None


def get(target: str, path: str) -> bytes | None:
    """Return the body of an answer of status 200."""
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n".encode())
            connection.settimeout(5)
            data = b""
            while (b"\r\n\r\n" not in data or not _is_whole(data)) and (more := connection.recv(65536)):
                data += more
    except OSError:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    return body if head[9:12] == b"200" else None


def _is_whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a subject."""

    seconds: float
    connections: int = 32
    size: int = 1800
    distinct: int = 2048
    stream: bool = False
    tokens: int = 64
    rate: float = 0.0
    requests: int = 2**62

    def argv(self, target: str, headers: str, *, loose: bool) -> list[str]:
        """Return the arguments of the load program."""
        values = {
            "target": target,
            "seconds": self.seconds,
            "connections": self.connections,
            "size": self.size,
            "distinct": self.distinct,
            "tokens": self.tokens,
            "rate": self.rate,
            "requests": self.requests,
            "headers": headers,
        }
        flags = [f"-stream={str(self.stream).lower()}", f"-loose={str(loose).lower()}"]
        return [*flags, *(part for name, value in values.items() for part in (f"-{name}", str(value)))]


class Run(msgspec.Struct):
    """What came of a load. Times in microseconds, CPU in seconds."""

    requests: int
    chunks: int
    errors: int
    seconds: float
    latency_us: dict[str, float]
    first_byte_us: dict[str, float]
    chunk_us: dict[str, float]
    peak_in_flight: int
    first_error: str = ""
    cpu_seconds: float = 0.0
    rss_bytes: int = 0

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def requests_per_core_second(self) -> float:
        return self.requests / max(self.cpu_seconds, 1 / _TICKS)

    @property
    def chunks_per_core_second(self) -> float:
        return self.chunks / max(self.cpu_seconds, 1 / _TICKS)

    @property
    def cpu_seconds_per_thousand(self) -> float:
        return 1000 * self.cpu_seconds / max(self.requests, 1)


async def load(wanted: Load, target: str, process: Process | None, *, headers: str = "", loose: bool = False) -> Run:
    """Put a load on `target`, and count what `process` used for it."""
    program = repository() / ".cache" / "bench" / "wire"
    before = process.cpu_seconds() if process else 0.0
    running_load = await asyncio.create_subprocess_exec(
        "taskset",
        "--cpu-list",
        ",".join(map(str, CORES.rest)),
        str(program),
        "load",
        *wanted.argv(target, headers, loose=loose),
        stdout=subprocess.PIPE,
    )
    assert running_load.stdout is not None
    out = await running_load.stdout.read()
    await running_load.wait()
    if not out:
        raise RuntimeError("the load program said nothing")
    run = msgspec.json.decode(out, type=Run)
    if process:
        run.cpu_seconds = process.cpu_seconds() - before
        run.rss_bytes = process.rss_bytes()
    return run
