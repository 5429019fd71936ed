"""What is found and removed after a node, and what is never touched."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrixinfer.devcluster import leftovers
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.leftovers import (
    cgroup_folders,
    mounts_under,
    read_kernel_settings,
    remove_links_into,
    remove_shared_files,
    remove_shim_sockets,
    remove_tree,
    restore_kernel_settings,
    shims_of,
)

MOUNTINFO = """\
22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
30 28 0:30 / /run/mi-x/net rw - nsfs nsfs rw
31 28 0:31 / /data/kubelet/pods/1/volumes/a\\040b rw - tmpfs tmpfs rw
32 31 0:32 / /data/kubelet/pods/1/volumes/a\\040b/inner rw - tmpfs tmpfs rw
33 28 0:33 / /database rw - ext4 /dev/sdb rw
34 28 0:34 / /data rw - overlay overlay rw
"""


def test_mounts_are_found_innermost_first():
    found = mounts_under(MOUNTINFO, [Path("/data")])
    pods = Path("/data/kubelet/pods/1/volumes/a b")
    assert found == [Path("/data"), pods / "inner", pods]


def test_a_folder_with_a_similar_name_is_another_folder():
    assert Path("/database") not in mounts_under(MOUNTINFO, [Path("/data")])


def test_a_shim_is_known_by_its_containerd():
    lines = {
        1: ["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-address", "/run/mi-x/containerd.sock"],
        2: ["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-address", "/run/containerd/containerd.sock"],
        3: ["less", "/run/mi-x/containerd.sock"],
        4: [],
    }
    assert shims_of(lines, Path("/run/mi-x/containerd.sock")) == [1]


def test_a_folder_with_a_mount_below_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Behind a mount may lie a user's own files."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "precious").touch()
    monkeypatch.setattr(leftovers, "mounts_under", lambda _info, _folders: [tmp_path / "volume"])
    with pytest.raises(ClusterError, match="umount"):
        remove_tree(tmp_path)
    assert (tmp_path / "volume" / "precious").exists()


def test_a_folder_without_mounts_is_removed(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_mounts_are_found_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel knows the real path only; a checkout that is reached through a link holds its mounts all the same."""
    (tmp_path / "real" / "volume").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    mounted = f"30 28 0:30 / {tmp_path}/real/volume rw - tmpfs tmpfs rw\n"
    monkeypatch.setattr(leftovers.Path, "read_text", lambda *_given, **_more: mounted)
    with pytest.raises(ClusterError, match="real/volume"):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "real" / "volume").exists()


def test_control_groups_are_found_in_both_versions(tmp_path: Path):
    (tmp_path / "cpu" / "mi-x").mkdir(parents=True)
    (tmp_path / "memory" / "mi-x").mkdir(parents=True)
    (tmp_path / "memory" / "mi-y").mkdir()
    (tmp_path / "cpuacct").symlink_to("cpu")
    assert [f.relative_to(tmp_path) for f in cgroup_folders("mi-x", tmp_path)] in (
        [Path("cpu/mi-x"), Path("memory/mi-x")],
        [Path("cpuacct/mi-x"), Path("memory/mi-x")],
    )
    (tmp_path / "mi-z").mkdir()
    assert cgroup_folders("mi-z", tmp_path) == [tmp_path / "mi-z"]


def test_kernel_settings_are_put_back_unless_someone_else_changed_them(tmp_path: Path):
    (tmp_path / "vm").mkdir()
    (tmp_path / "kernel").mkdir()
    commit, panic = tmp_path / "vm" / "overcommit_memory", tmp_path / "kernel" / "panic"
    commit.write_text("0\n")
    panic.write_text("0\n")
    before = read_kernel_settings(tmp_path)
    commit.write_text("1\n")
    panic.write_text("30\n")
    restore_kernel_settings(before, tmp_path)
    assert commit.read_text() == "0"
    assert panic.read_text() == "30\n"


def test_links_into_our_logs_go_and_others_stay(tmp_path: Path):
    links, ours = tmp_path / "links", tmp_path / "ours"
    links.mkdir()
    (links / "mine.log").symlink_to(ours / "pod" / "0.log")
    (links / "other.log").symlink_to(tmp_path / "elsewhere")
    remove_links_into(links, ours)
    assert [p.name for p in links.iterdir()] == ["other.log"]
    (links / "other.log").unlink()
    remove_links_into(links, ours)
    remove_links_into(links, ours)
    assert not links.exists()


def test_shims_sockets_are_found_by_their_bundles(tmp_path: Path):
    bundle = tmp_path / "state" / "io.containerd.runtime.v2.task" / "k8s.io" / "abc"
    bundle.mkdir(parents=True)
    left = tmp_path / "left.sock"
    left.touch()
    (bundle / "address").write_text(f"unix://{left}")
    remove_shim_sockets(tmp_path / "state")
    assert not left.exists()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for a socket below it: their paths have 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="mi-", dir="/tmp") as folder:
        yield Path(folder)


def test_shared_folders_lose_our_files_only(short_path: Path):
    results, devices = short_path / "var/lib/cni/results", short_path / "var/lib/kubelet/device-plugins"
    results.mkdir(parents=True)
    devices.mkdir(parents=True)
    for name in ("mi-x-abc-eth0", "cni-loopback-abc-lo", "mi-y-def-eth0", "cni-loopback-def-lo"):
        (results / name).touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(devices / "kubelet.sock"))
    remove_shared_files("mi-x", short_path)
    assert sorted(p.name for p in results.iterdir()) == ["cni-loopback-def-lo", "mi-y-def-eth0"]
    assert not (short_path / "var/lib/kubelet").exists()
    remove_shared_files("mi-y", short_path)
    assert not (short_path / "var/lib/cni").exists()


def test_a_kubelets_socket_that_answers_is_left(short_path: Path):
    devices = short_path / "var/lib/kubelet/device-plugins"
    devices.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(devices / "kubelet.sock"))
        alive.listen()
        remove_shared_files("mi-x", short_path)
    assert (devices / "kubelet.sock").exists()
