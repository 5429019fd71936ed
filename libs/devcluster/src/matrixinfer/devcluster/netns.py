"""A network namespace of our own, and reaching into it.

Owns creating it (a bind mount in the cluster's run folder, so that nothing but that folder needs cleaning up), the
bridge that pods hang on, and opening sockets inside. Everything that a node changes in the network, firewall tables
included, lives in there: the machine's own network stays untouched, and deleting the namespace deletes all of it.

The traps: `ip netns add` would leave a mount on /run/netns behind, and `ip netns exec` remounts /sys, where the
container runtime then misses its control groups; so neither is used. A thread that entered a namespace never leaves:
it must end.
"""

import ctypes
import http.client
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from matrixinfer.devcluster.errors import ClusterError

__all__ = ["enter", "enter_command", "http_status", "inside", "make", "run_inside"]

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000
_SET_UP = """
ip link set lo up && ip link add "$1" type bridge && ip address add "$2" dev "$1" && ip link set "$1" up &&
ip route add "$3" dev "$1" && echo 1 > /proc/sys/net/ipv4/ip_forward || exit 1
# Pods of one bridge see the answers of a Service only if bridged packets pass the address translation too.
[ ! -e /proc/sys/net/bridge ] || echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
"""


def enter_command(path: Path) -> list[str]:
    """Return what to put before a command line so that it runs inside."""
    return ["nsenter", f"--net={path}"]


def make(path: Path, bridge: str, address: str, services: str) -> None:
    """Create the namespace at `path` with a bridge that has `address` (with prefix length).

    `services` is the network of the cluster's virtual addresses: without a route there, a connection from the
    namespace itself fails before the firewall can redirect it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    _checked(["unshare", f"--net={path}", "true"])
    run_inside(path, ["sh", "-c", _SET_UP, "sh", bridge, address, services])


def run_inside(path: Path, argv: Sequence[str]) -> str:
    """Run a short command inside and return its output."""
    return _checked([*enter_command(path), *argv])


def _checked(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(argv[:6])}` failed: {done.stderr.strip()}")
    return done.stdout


def enter(path: Path) -> None:
    """Move the calling thread into the namespace, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {path}")
    finally:
        os.close(descriptor)


def inside(path: Path, work: Callable[[], Result]) -> Result:
    """Run `work` in a thread of its own inside; sockets it opens stay inside, wherever they are used later."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(path)
            results.append(work())
        # Carried over to the caller's thread, whatever it is.
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=run, name="inside-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def http_status(path: Path, address: str, port: int, target: str) -> int:
    """GET from a server inside; 0 when it does not answer."""

    def ask() -> int:
        connection = http.client.HTTPConnection(address, port, timeout=3)
        try:
            connection.request("GET", target)
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        return inside(path, ask)
    except (OSError, http.client.HTTPException):
        return 0
