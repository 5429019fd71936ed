"""Finds a container engine that can build, or runs a private one for as long as it is needed.

Owns: choosing a `docker` client that can build with BuildKit, and the life of a private `dockerd`. The daemon is
a child process with no bridge, no firewall rules and no address translation, so that the machine's own network
stays as it was; its sockets live in a short folder below /tmp (a socket path has 108 bytes at most), its layers
in the cache folder so that a second build is quick.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["ContainerEngine", "NoContainerEngine", "open_engine"]

START_SECONDS = 30.0
STOP_SECONDS = 20.0
LAST_WITHOUT_BUILDX = 22


class NoContainerEngine(Exception):
    """No engine can be used; the message says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """A client and the daemon that it speaks to."""

    client: str
    host: str | None

    def run(self, *arguments: str, stdin: IO[bytes] | None = None, quiet: bool = False) -> None:
        """Run one docker command; raises `CalledProcessError` when it fails."""
        subprocess.run(
            [self.client, *arguments],
            check=True,
            stdin=stdin,
            stdout=subprocess.DEVNULL if quiet else None,
            env=self.environment(),
        )

    def answer(self, *arguments: str) -> str:
        """Run one docker command and return what it printed."""
        done = subprocess.run(
            [self.client, *arguments], check=True, capture_output=True, text=True, env=self.environment()
        )
        return done.stdout.strip()

    def has_image(self, reference: str) -> bool:
        """True when the image is present locally."""
        found = subprocess.run(
            [self.client, "image", "inspect", reference], capture_output=True, env=self.environment(), check=False
        )
        return found.returncode == 0

    def environment(self) -> dict[str, str]:
        """The environment of a docker command that builds with BuildKit."""
        host = {"DOCKER_HOST": self.host} if self.host else {}
        return {**os.environ, "DOCKER_BUILDKIT": "1", **host}


def _client() -> str:
    """Return the first client that has buildx, or is old enough to bring BuildKit itself."""
    found = [path for name in ("docker", "/usr/bin/docker") if (path := shutil.which(name))]
    for path in found:
        if subprocess.run([path, "buildx", "version"], capture_output=True, check=False).returncode == 0:
            return path
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        major = re.search(r"version (\d+)\.", version)
        if major and int(major[1]) <= LAST_WITHOUT_BUILDX:
            return path
    missing = "no docker client" if not found else "no docker client that can build with BuildKit"
    raise NoContainerEngine(f"{missing}; fix: apt-get install docker.io")


def _answers(client: str, host: str | None) -> bool:
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    with contextlib.suppress(subprocess.TimeoutExpired):
        probe = subprocess.run(
            [client, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=5,
            env=environment,
            check=False,
        )
        return probe.returncode == 0
    return False


@contextlib.contextmanager
def open_engine(data: Path) -> Iterator[ContainerEngine]:
    """Yield an engine: the one that answers already, else a private daemon that keeps its layers in `data`.

    Raises `NoContainerEngine` when there is neither.
    """
    client = _client()
    if _answers(client, None):
        yield ContainerEngine(client, None)
        return
    daemon = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/sbin")
    if not daemon:
        raise NoContainerEngine("no engine answers and dockerd is not installed; fix: apt-get install docker.io")
    if os.geteuid() != 0:
        raise NoContainerEngine("no engine answers and only root can start dockerd; fix: run as root or start docker")
    data.mkdir(parents=True, exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix="mi-docker-", dir="/tmp"))
    host = f"unix://{run}/sock"
    log = run / "log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [
                *(daemon, "--data-root", str(data), "--exec-root", f"{run}/run", "--pidfile", f"{run}/pid"),
                *("--host", host, "--bridge=none", "--iptables=false", "--ip6tables=false"),
                *("--ip-forward=false", "--ip-masq=false"),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(child, client, host, log)
        yield ContainerEngine(client, host)
    finally:
        _stop(child, run, data)


def _wait_until_up(child: subprocess.Popen[bytes], client: str, host: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(client, host):
        if child.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-800:]
            raise NoContainerEngine(f"dockerd did not start; the end of its log:\n{tail}")
        time.sleep(0.2)


def _stop(child: subprocess.Popen[bytes], run: Path, data: Path) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for mount in _mounts_below(run, data):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    shutil.rmtree(run, ignore_errors=True)


def _mounts_below(*folders: Path) -> list[str]:
    """Mount points below the folders, the deepest first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((p for p in points if any(Path(p).is_relative_to(f) for f in folders)), reverse=True)
