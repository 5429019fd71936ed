"""Links of versions that exist no more are removed, and nothing else."""

from pathlib import Path

from matrixinfer.downloader.versions import VersionLinks


def linked(cache: Path, version: str) -> Path:
    folder = cache / "versions" / "ns" / version
    folder.mkdir(parents=True)
    (folder / "model").symlink_to("../../../models/x")
    return folder


def test_the_versions_of_the_namespace_are_named(tmp_path: Path) -> None:
    linked(tmp_path, "v1")
    linked(tmp_path, "v2")
    assert VersionLinks(tmp_path, "ns").names() == ["v1", "v2"]
    assert VersionLinks(tmp_path, "other").names() == ()
    assert VersionLinks(tmp_path, "").names() == ()


def test_links_go_with_their_folder(tmp_path: Path) -> None:
    folder = linked(tmp_path, "v1")
    VersionLinks(tmp_path, "ns").remove("v1")
    assert not folder.exists()


def test_what_is_no_link_stays(tmp_path: Path) -> None:
    folder = linked(tmp_path, "v1")
    (folder / "notes").write_text("mine")
    VersionLinks(tmp_path, "ns").remove("v1")
    assert [entry.name for entry in folder.iterdir()] == ["notes"]
