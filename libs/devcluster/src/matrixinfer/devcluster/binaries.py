"""The programs a cluster consists of: where they are, and how they are built from Go modules.

Owns the versions (here and in the go.mod files under tools/cluster, nowhere else) and the build. The binary is cached
by the hash of its sources, so that a changed pin makes a new one and an old checkout still finds its own.

Refuses to own downloads: the Go tool fetches and verifies modules against the committed go.sum files.

The trap: without `-X …gitVersion` the API server calls itself v0.0.0-master and clients refuse to talk to it.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import repository

__all__ = [
    "CONTROL_PLANE",
    "EXTRAS",
    "NODE",
    "Binaries",
    "build",
    "build_extra",
    "build_pause",
    "locate",
    "source_hash",
    "version_flags",
]

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = (*CONTROL_PLANE, "kubelet", "kube-proxy", "coredns")

# name → package; the version is pinned by the go.mod in tools/cluster/extras/<name>.
EXTRAS: Mapping[str, str] = {
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
    "versitygw": "github.com/versity/versitygw/cmd/versitygw",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Binaries:
    """One folder with a program per component, each called by its own name."""

    folder: Path

    def __getitem__(self, component: str) -> Path:
        return self.folder / component

    def has(self, components: Sequence[str]) -> bool:
        """Whether each of these components is here."""
        return all(os.access(self.folder / name, os.X_OK) for name in components)


def source_hash(sources: Path) -> str:
    """Hash what decides the binary: the Go files, the pins and the checksums of `tools/cluster` itself."""
    digest = sha256()
    for path in sorted([sources / "go.mod", sources / "go.sum", *sources.glob("*.go")]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def version_flags(go_mod: str) -> str:
    """Return the linker flags that tell each component its version, taken from the pin of k8s.io/kubernetes."""
    match = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)$", go_mod, re.MULTILINE)
    if match is None:
        raise ClusterError("tools/cluster/go.mod pins no k8s.io/kubernetes")
    version, major, minor = match.groups()
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "unknown",
        "gitTreeState": "clean",
        # A constant keeps equal sources byte-equal.
        "buildDate": "1970-01-01T00:00:00Z",
    }
    return " ".join(["-s", "-w", *(f"-X k8s.io/component-base/version.{k}={v}" for k, v in values.items())])


def locate(components: Sequence[str], root: Path | None = None) -> Binaries | None:
    """Find a folder that holds all `components`: KUBEBUILDER_ASSETS, one folder of PATH, then our own build."""
    own = _built_folder(root or repository())
    given = os.environ.get("KUBEBUILDER_ASSETS")
    folders = [Path(given)] if given else []
    on_path = shutil.which(components[0])
    if on_path:
        folders.append(Path(on_path).resolve().parent if Path(on_path).is_symlink() else Path(on_path).parent)
    return next((found for folder in (*folders, own) if (found := Binaries(folder)).has(components)), None)


def build(say: Say, root: Path | None = None) -> Binaries:
    """Return our own build of all components, making it when it is missing (minutes of processor time, once)."""
    root = root or repository()
    folder = _built_folder(root)
    built = Binaries(folder)
    with _locked(root / ".cache" / "cluster.lock", say):
        if not built.has(NODE):
            sources = root / "tools" / "cluster"
            flags = version_flags((sources / "go.mod").read_text(encoding="utf-8"))
            say("building Kubernetes from its Go modules (once; about 10 processor-minutes with a cold cache)")
            folder.mkdir(parents=True, exist_ok=True)
            _go_build(sources, ".", folder / "cluster", flags, say)
            for name in NODE:
                link = folder / name
                link.unlink(missing_ok=True)
                link.symlink_to("cluster")
    return built


def build_extra(name: str, say: Say, root: Path | None = None) -> Path:
    """Return the program `name` of EXTRAS, built from its pinned module when it is missing or the pin changed."""
    root = root or repository()
    sources = root / "tools" / "cluster" / "extras" / name
    target = root / ".cache" / "bin" / f"{name}-{source_hash(sources)}"
    link = root / ".cache" / "bin" / name
    with _locked(root / ".cache" / "bin.lock", say):
        if not target.exists():
            say(f"building {name} (once)")
            _go_build(sources, EXTRAS[name], target, "-s -w", say)
        if not link.is_symlink() or link.readlink() != Path(target.name):
            link.unlink(missing_ok=True)
            link.symlink_to(target.name)
    return target


def build_pause(say: Say, root: Path | None = None) -> Path:
    """Return the static program that holds a pod's namespaces."""
    root = root or repository()
    source = root / "tools" / "cluster" / "pause" / "main.go"
    target = root / ".cache" / "bin" / f"pause-{sha256(source.read_bytes()).hexdigest()[:16]}"
    with _locked(root / ".cache" / "bin.lock", say):
        if not target.exists():
            _go_build(root / "tools" / "cluster", "./pause", target, "-s -w", say)
    return target


def _built_folder(root: Path) -> Path:
    return root / ".cache" / "cluster" / source_hash(root / "tools" / "cluster")


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of the same programs to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go_build(sources: Path, package: str, target: Path, linker_flags: str, say: Say) -> None:
    """Build one static program; written beside `target` and renamed, so a killed build leaves nothing half-made."""
    go = shutil.which("go") or next((p for p in ("/usr/local/go/bin/go",) if os.access(p, os.X_OK)), None)
    if go is None:
        raise ClusterError("the Go tool is missing: install Go 1.26 or newer and put `go` on PATH")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    # Not under PATH's control: the build must not link the machine's C library.
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    argv = [go, "build", "-v", "-trimpath", "-ldflags", linker_flags, "-o", str(partial), package]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(argv, cwd=sources, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _narrate(process, output, target.name.split("-")[0], say)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            output.seek(0)
            raise ClusterError(f"`{' '.join(argv[1:3])}` of {package} failed:\n{output.read()[-2000:]}")
    partial.replace(target)


def _narrate(process: "subprocess.Popen[bytes]", output: IO[str], name: str, say: Say) -> None:
    """Say every 15 seconds how far the compiler is."""
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            # pread: the compiler writes at the same open file's position.
            compiled = os.pread(output.fileno(), 1 << 20, 0).count(b"\n")
            say(f"  {name}: {compiled} packages compiled or fetched, {time.monotonic() - started:.0f} s")
        else:
            return
