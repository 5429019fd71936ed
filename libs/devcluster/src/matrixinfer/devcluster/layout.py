"""Where everything lies: the repository, its caches, and the folder of one cluster.

Owns paths and names only; it creates nothing. All files of a cluster lie in one git-ignored folder, so that removing
the folder removes the cluster's memory.

The trap: names of network namespaces, control groups and run folders are machine-wide, while cluster names are per
clone. `Instance.ident` carries a hash of the folder, so that the `demo` of two clones are two things.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

__all__ = ["Instance", "instance", "repository"]


@dataclass(frozen=True, slots=True)
class Instance:
    """The files of one cluster, whether it runs or not."""

    name: str
    folder: Path

    @property
    def ident(self) -> str:
        """A short machine-wide name: `mi-<name>-<hash of the folder>`."""
        return f"mi-{self.name[:16]}-{sha256(str(self.folder).encode()).hexdigest()[:6]}"

    @property
    def state_file(self) -> Path:
        """What this cluster is (tier, addresses, ready or not), as JSON."""
        return self.folder / "state.json"

    @property
    def processes(self) -> Path:
        """One record (boot, pid, start time) for each process that was started."""
        return self.folder / "processes"

    @property
    def logs(self) -> Path:
        """One log file for each process, kept until the next start."""
        return self.folder / "logs"

    @property
    def data(self) -> Path:
        """Everything that a start wipes: databases, keys, configuration."""
        return self.folder / "data"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.data / "pki"

    @property
    def kubeconfigs(self) -> Path:
        """Kubeconfig files of components and ServiceAccounts."""
        return self.data / "kubeconfigs"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.data / "kubeconfig.yaml"

    @property
    def audit_log(self) -> Path:
        """What ServiceAccounts outside kube-system asked of the API server, one JSON event a line."""
        return self.logs / "audit.jsonl"

    @property
    def transition_lock(self) -> Path:
        """Held while the cluster goes up or down."""
        return self.folder / "transition.lock"

    @property
    def users_lock(self) -> Path:
        """Held (shared) by each process that borrows the cluster."""
        return self.folder / "users.lock"

    @property
    def run(self) -> Path:
        """Sockets and mounts of a node: a short path, because a socket's path has 108 bytes."""
        return Path("/run") / self.ident


def repository() -> Path:
    """Return the root of this checkout: the nearest folder above this file or the current one with `tools/cluster`."""
    for start in (Path(__file__).resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "tools" / "cluster" / "go.mod").is_file():
                return folder
    raise FileNotFoundError("not inside a MatrixInfer checkout: no tools/cluster/go.mod here or above")


def instance(name: str, root: Path | None = None) -> Instance:
    """Name the cluster `name` of this checkout (or of `root`)."""
    if not name.replace("-", "").isalnum() or name != name.lower():
        raise ValueError(f"cluster name {name!r} must be lower-case letters, digits and dashes")
    return Instance(name, (root or repository()) / ".cache" / "devcluster" / name)
