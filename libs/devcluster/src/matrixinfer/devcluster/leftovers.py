"""What a node leaves on a machine beside its processes, and removing it: mounts, containers, control groups, links.

Owns finding all of it by the cluster's own names, whether `down` was orderly or `up` was killed. Finding is pure
(functions of the texts that the kernel shows); removing is here too, and may be repeated.

The trap: a folder under which something is still mounted must never be removed recursively. Behind a mount may lie
a user's own files.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.processes import Identity, identify, signal_process, wait_gone

__all__ = [
    "KERNEL_SETTINGS",
    "cgroup_folders",
    "kill_containers",
    "make_cgroups",
    "mounts_under",
    "read_kernel_settings",
    "remove_cgroups",
    "remove_links_into",
    "remove_shared_files",
    "remove_shim_sockets",
    "remove_tree",
    "restore_kernel_settings",
    "shims_of",
    "unmount_all",
]

_MNT_DETACH = 2
_CGROUPS = Path("/sys/fs/cgroup")

KERNEL_SETTINGS: Mapping[str, str] = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""The kernel settings that kubelet changes when it starts, and what it sets."""


def mounts_under(mountinfo: str, folders: Sequence[Path]) -> list[Path]:
    """Return the mount points at or below these folders, innermost first (from the text of /proc/self/mountinfo)."""
    points = [Path(_unescaped(line.split(" ")[4])) for line in mountinfo.splitlines() if line.count(" ") > 5]
    # Listed in the order of mounting: the last one on a path must go first.
    return [p for p in reversed(points) if any(p == folder or folder in p.parents for folder in folders)]


def _mounts_now(folders: Sequence[Path]) -> list[Path]:
    # The kernel tells paths without links, and a checkout may well be reached through one.
    return mounts_under(
        Path("/proc/self/mountinfo").read_text(encoding="utf-8"), [folder.resolve() for folder in folders]
    )


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def shims_of(command_lines: Mapping[int, Sequence[str]], address: Path) -> list[int]:
    """Return the processes that were started with this `-address`: containerd's shims, which outlive it."""
    return [
        pid
        for pid, argv in command_lines.items()
        if any(flag == "-address" and value == str(address) for flag, value in pairwise(argv))
    ]


def unmount_all(folders: Sequence[Path]) -> None:
    """Detach every mount at or below these folders."""
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(10):
        points = _mounts_now(folders)
        if not points:
            return
        for point in points:
            libc.umount2(os.fsencode(point), _MNT_DETACH)
    raise ClusterError(f"cannot unmount {', '.join(map(str, points))}; `umount -l` them as root")


def remove_tree(folder: Path) -> None:
    """Remove a folder with all it holds, but never through a mount."""
    if not folder.exists():
        return
    if points := _mounts_now([folder]):
        raise ClusterError(f"{folder} still holds the mount {points[0]}; `umount -l` it as root, then try again")
    shutil.rmtree(folder)


def cgroup_folders(name: str, root: Path = _CGROUPS) -> list[Path]:
    """Return the control groups `name` of each hierarchy (version 1) or of the only one (version 2) that exist."""
    found = [root / name, *(each / name for each in sorted(root.iterdir()) if each.is_dir())] if root.is_dir() else []
    # Hierarchies that are mounted together show the same folder under two names.
    return list({os.path.realpath(each): each for each in found if each.is_dir()}.values())


def make_cgroups(name: str, root: Path = _CGROUPS) -> None:
    """Create the control group `name` in every hierarchy: kubelet wants its root to exist.

    A new group weighs as much as one process beside it. This one holds a whole cluster, which a busy machine would
    starve, so it weighs as much as a few for each processor.
    """
    version_2 = (root / "cgroup.controllers").is_file()
    processes = 4 * (os.cpu_count() or 1)
    for parent in [root] if version_2 else [each for each in root.iterdir() if (each / "cgroup.procs").is_file()]:
        folder = parent / name
        folder.mkdir(exist_ok=True)
        for setting, value in (("cpu.shares", 1024 * processes), ("cpu.weight", min(10_000, 100 * processes))):
            with contextlib.suppress(OSError):
                if (folder / setting).exists():
                    (folder / setting).write_text(str(value), encoding="ascii")


def kill_containers(cgroup: str, containerd: Path, seconds: float = 20) -> None:
    """Kill all processes of the pods' control groups and all shims of the containerd at this socket."""
    deadline = time.monotonic() + seconds
    while targets := [*_identities(_members(cgroup)), *_identities(shims_of(_command_lines(), containerd))]:
        for target in targets:
            signal_process(target, signal.SIGKILL)
        for target in targets:
            wait_gone(target, max(0.0, deadline - time.monotonic()))
        if time.monotonic() > deadline:
            raise ClusterError(f"processes survive SIGKILL: {', '.join(str(t.pid) for t in targets)}")


def _identities(pids: Iterable[int]) -> list[Identity]:
    return [who for pid in pids if (who := identify(pid)) is not None]


def _members(cgroup: str) -> set[int]:
    members: set[int] = set()
    for folder in cgroup_folders(cgroup):
        for path in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                members.update(int(line) for line in path.read_text(encoding="ascii").split())
    # Zero stands for a process of another pid namespace.
    return members - {0}


def _command_lines() -> dict[int, list[str]]:
    lines = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                lines[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return lines


def remove_cgroups(name: str) -> None:
    """Remove the control group `name` with all below it; they must be empty of processes."""
    for folder in cgroup_folders(name):
        for each in sorted((p for p in folder.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
            _remove_cgroup(each)
        _remove_cgroup(folder)


def _remove_cgroup(folder: Path) -> None:
    # A group stays busy for a moment after its last process has ended.
    for _ in range(100):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def remove_shim_sockets(state: Path) -> None:
    """Remove the sockets that killed shims left outside the state folder; each bundle names its own."""
    for address in state.glob("io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text(encoding="utf-8").strip().removeprefix("unix://")).unlink(missing_ok=True)


def remove_shared_files(ident: str, root: Path = Path("/")) -> None:
    """Remove our files from folders that others may use too, and those folders once they are empty.

    The paths are built into the components: the network plugins' results, kubelet's socket for device plugins.
    """
    results = root / "var/lib/cni/results"
    for ours in list(results.glob(f"{ident}-*-eth0")):
        sandbox = ours.name.removeprefix(f"{ident}-").removesuffix("-eth0")
        # The loopback's result bears no name of ours, only that of the sandbox.
        for result in results.glob(f"*-{sandbox}-*"):
            result.unlink()
    devices = root / "var/lib/kubelet/device-plugins"
    if not _answers(devices / "kubelet.sock"):
        for name in ("kubelet.sock", "kubelet_internal_checkpoint"):
            (devices / name).unlink(missing_ok=True)
    for folder in (
        *("var/lib/cni/results", "var/lib/cni/networks", "var/lib/cni"),
        *("var/lib/kubelet/device-plugins", "var/lib/kubelet"),
        *("run/containerd/s", "run/containerd/runc", "run/containerd", "run/mount"),
    ):
        with contextlib.suppress(OSError):
            (root / folder).rmdir()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


def remove_links_into(links: Path, folder: Path) -> None:
    """Remove the symbolic links in `links` that lead into `folder`, then `links` if nothing else is there."""
    if not links.is_dir():
        return
    for link in links.iterdir():
        if link.is_symlink() and folder in link.readlink().parents:
            link.unlink()
    with contextlib.suppress(OSError):
        links.rmdir()


def read_kernel_settings(root: Path = Path("/proc/sys")) -> dict[str, str]:
    """Return the present values of what kubelet is about to change."""
    paths = {name: root / name for name in KERNEL_SETTINGS}
    return {name: path.read_text(encoding="ascii").strip() for name, path in paths.items() if path.exists()}


def restore_kernel_settings(before: Mapping[str, str], root: Path = Path("/proc/sys")) -> None:
    """Put back what kubelet has changed, unless someone else has changed it since."""
    now = read_kernel_settings(root)
    for name, value in before.items():
        if now.get(name) == KERNEL_SETTINGS.get(name) != value:
            (root / name).write_text(value, encoding="ascii")
