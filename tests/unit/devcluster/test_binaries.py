"""Which programs are used, and what decides their identity."""

from pathlib import Path

import pytest

from matrixinfer.devcluster.binaries import CONTROL_PLANE, EXTRAS, NODE, locate, source_hash, version_flags
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import repository

SOURCES = repository() / "tools" / "cluster"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with sources but nothing built."""
    sources = tmp_path / "tools" / "cluster"
    sources.mkdir(parents=True)
    for name in ("go.mod", "go.sum", "main.go"):
        (sources / name).write_text(name)
    return tmp_path


def programs(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return folder


def test_the_hash_changes_with_each_source(checkout: Path):
    sources = checkout / "tools" / "cluster"
    hashes = {source_hash(sources)}
    for name in ("go.mod", "go.sum", "main.go"):
        (sources / name).write_text("changed")
        hashes.add(source_hash(sources))
    assert len(hashes) == 4
    (sources / "notes.txt").write_text("no source")
    assert source_hash(sources) in hashes


def test_every_component_learns_the_pinned_version():
    flags = version_flags((SOURCES / "go.mod").read_text())
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in flags
    assert "version.gitMinor=36" in flags


def test_a_module_file_without_kubernetes_is_an_error():
    with pytest.raises(ClusterError, match="pins no"):
        version_flags("module x\n")


def test_every_extra_is_pinned_with_checksums():
    for name, package in EXTRAS.items():
        folder = SOURCES / "extras" / name
        assert f"tool {package}" in (folder / "go.mod").read_text()
        assert (folder / "go.sum").stat().st_size > 0


def test_given_assets_are_used_before_our_own(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert locate(CONTROL_PLANE, checkout) is None
    own = programs(checkout / ".cache" / "cluster" / source_hash(checkout / "tools" / "cluster"), NODE)
    found = locate(CONTROL_PLANE, checkout)
    assert found is not None
    assert found.folder == own
    assets = programs(checkout / "assets", CONTROL_PLANE)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    found = locate(CONTROL_PLANE, checkout)
    assert found is not None
    assert found.folder == assets


def test_assets_without_all_components_are_not_used(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    """The usual test assets hold no controller manager: half a control plane is none."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(programs(checkout / "assets", ("etcd", "kube-apiserver", "kubectl"))))
    assert locate(CONTROL_PLANE, checkout) is None
