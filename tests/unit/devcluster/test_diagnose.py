"""What keeps a node from starting here, and what to do about it."""

from dataclasses import replace
from pathlib import Path

from matrixinfer.devcluster.diagnose import DEBIAN_PACKAGES, Machine, filesystem_type, findings, look

GOOD = Machine(
    linux=True,
    root=True,
    programs=frozenset(DEBIAN_PACKAGES),
    cni_programs=frozenset({"bridge", "host-local", "portmap", "loopback"}),
    bridge_filter=True,
    cgroups=True,
    free_memory_mib=8192,
    free_disk_mib=50_000,
    go=True,
    built=False,
)


def test_a_good_machine_lacks_nothing():
    assert findings(GOOD) == []


def test_a_missing_program_names_its_package_once():
    (finding,) = findings(replace(GOOD, programs=GOOD.programs - {"containerd", "ctr"}, cni_programs=frozenset()))
    assert finding.fatal
    assert finding.packages == ("containerd", "containernetworking-plugins")
    assert "apt-get install -y --no-install-recommends containerd containernetworking-plugins" in finding.fix


def test_without_root_another_cluster_is_offered():
    (finding,) = findings(replace(GOOD, root=False))
    assert "CLUSTER=existing" in finding.fix


def test_elsewhere_than_linux_another_cluster_is_offered_and_nothing_else_said():
    (finding,) = findings(replace(GOOD, linux=False, root=False, programs=frozenset()))
    assert "CLUSTER=existing" in finding.fix


def test_go_is_needed_only_to_build():
    assert findings(replace(GOOD, go=False))[0].fatal
    assert findings(replace(GOOD, go=False, built=True)) == []


def test_a_tight_machine_is_told_but_not_refused():
    found = findings(replace(GOOD, free_memory_mib=500, free_disk_mib=500, bridge_filter=False))
    assert len(found) == 3
    assert not any(each.fatal for each in found)


def test_looking_changes_nothing(tmp_path: Path):
    look(tmp_path / "not" / "there", built=False)
    assert list(tmp_path.iterdir()) == []


def test_the_file_system_is_that_of_the_deepest_mount():
    mountinfo = (
        "1 0 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / /home rw shared:1 - overlay overlay rw\n"
        "3 1 0:3 / /homework rw - tmpfs tmpfs rw\n"
    )
    assert filesystem_type(mountinfo, Path("/home/me/.cache")) == "overlay"
    assert filesystem_type(mountinfo, Path("/srv")) == "ext4"
