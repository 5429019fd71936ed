"""What a whole node needs of this machine, what is missing, and the command that fixes it.

Owns looking; it changes nothing. `findings` is a pure function of `Machine`, which `look` fills.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "CNI_PROGRAMS",
    "DEBIAN_PACKAGES",
    "Finding",
    "Machine",
    "filesystem_type",
    "findings",
    "look",
    "search_path",
]

CNI_PROGRAMS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
DEBIAN_PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
"""The programs that a node needs, and the Debian package of each."""
_NEEDED_CNI = ("bridge", "host-local", "portmap", "loopback")
_NEEDED_MEMORY_MIB = 2048
_NEEDED_DISK_MIB = 4096


@dataclass(frozen=True, slots=True)
class Machine:
    """What was seen of this machine."""

    linux: bool
    root: bool
    programs: frozenset[str]
    cni_programs: frozenset[str]
    bridge_filter: bool
    cgroups: bool
    free_memory_mib: int
    free_disk_mib: int
    go: bool
    built: bool
    kubeconfig: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be; `fatal` when a node cannot start so."""

    problem: str
    fix: str
    fatal: bool = True
    packages: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.problem}: {self.fix}"


def findings(machine: Machine) -> list[Finding]:
    """Return what keeps (or may keep) a node of tier B from starting here."""
    if not machine.linux:
        offer = "use a cluster you have: KUBECONFIG=… make demo CLUSTER=existing"
        return [Finding("this is not Linux, and a local node needs Linux", offer)]
    found = []
    if not machine.root:
        offer = "run it as root (sudo -E make demo), or use a cluster you have: KUBECONFIG=… make demo CLUSTER=existing"
        found.append(Finding("a local node needs root", offer))
    missing = [name for name in DEBIAN_PACKAGES if name not in machine.programs]
    packages = {DEBIAN_PACKAGES[name] for name in missing}
    absent_plugins = [name for name in _NEEDED_CNI if name not in machine.cni_programs]
    if absent_plugins:
        packages.add("containernetworking-plugins")
    if packages:
        names = tuple(sorted(packages))
        fix = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(names)}"
        problem = f"programs are missing ({', '.join([*missing, *(f'CNI {p}' for p in absent_plugins)])})"
        found.append(Finding(problem, fix, packages=names))
    if not machine.cgroups:
        fix = "mount -t cgroup2 none /sys/fs/cgroup"
        found.append(Finding("no control groups are mounted at /sys/fs/cgroup", fix))
    if not machine.built and not machine.go:
        found.append(Finding("the Go tool is missing, and nothing is built yet", "install Go 1.26 or newer"))
    if machine.free_memory_mib < _NEEDED_MEMORY_MIB:
        problem = f"only {machine.free_memory_mib} MiB of memory are free"
        found.append(
            Finding(problem, f"free memory: a node with the suite takes {_NEEDED_MEMORY_MIB} MiB", fatal=False)
        )
    if machine.free_disk_mib < _NEEDED_DISK_MIB:
        problem = f"only {machine.free_disk_mib} MiB of disk are free here"
        found.append(Finding(problem, f"free disk: builds and images take {_NEEDED_DISK_MIB} MiB", fatal=False))
    if not machine.bridge_filter:
        fix = "modprobe br_netfilter (without it Services see the node's address instead of the client's)"
        found.append(Finding("the kernel module br_netfilter is not loaded", fix, fatal=False))
    return found


def search_path() -> str:
    """Return PATH with the folders of system programs, which an ordinary user's PATH leaves out."""
    return os.pathsep.join(dict.fromkeys([*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]))


def look(folder: Path, *, built: bool) -> Machine:
    """See what this machine has; `folder` is where images and builds will lie."""
    path = search_path()
    plugins = {p.name for place in CNI_PROGRAMS if place.is_dir() for p in place.iterdir()}
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return Machine(
        linux=sys.platform == "linux",
        root=os.geteuid() == 0,
        programs=frozenset(name for name in DEBIAN_PACKAGES if shutil.which(name, path=path)),
        cni_programs=frozenset(plugins),
        bridge_filter=Path("/proc/sys/net/bridge").exists(),
        cgroups=any(Path("/sys/fs/cgroup").glob("**/cgroup.procs") if Path("/sys/fs/cgroup").exists() else ()),
        free_memory_mib=_available_memory_mib(),
        free_disk_mib=shutil.disk_usage(existing).free // 2**20,
        go=shutil.which("go") is not None or Path("/usr/local/go/bin/go").exists(),
        built=built,
        kubeconfig=os.environ.get("KUBECONFIG", ""),
    )


def _available_memory_mib() -> int:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except FileNotFoundError:
        return _NEEDED_MEMORY_MIB
    values = (line.split() for line in text.splitlines())
    return next((int(words[1]) // 1024 for words in values if words[0] == "MemAvailable:"), _NEEDED_MEMORY_MIB)


def filesystem_type(mountinfo: str, path: Path) -> str:
    """Return the type of the file system that holds `path` (from the text of /proc/self/mountinfo)."""
    best: tuple[int, str] = (-1, "")
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split(" ")[4])
        if point == path or point in path.parents:
            # The last mount on the deepest point is the one that is seen.
            best = max(best, (len(point.parts), right.split(" ")[0]), key=lambda pair: pair[0])
    return best[1]
