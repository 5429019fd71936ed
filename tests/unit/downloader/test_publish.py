"""READY is there only over a complete folder, at every moment."""

from pathlib import Path

import pytest

from matrixinfer.downloader.core.manifest import Ready, VerifiedFile, digest
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.publish import publish, published
from matrixinfer.downloader.workspace import Workspace, prepare


def staged(workspace: Workspace, **contents: str) -> Ready:
    files = []
    for name, content in contents.items():
        path = name.replace("__", "/")
        target = workspace.staged(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        files.append(VerifiedFile(path, len(content), "00" * 32))
    return Ready("file:///x", (), (), "", digest(files), tuple(files), "2026-11-24T00:00:00+00:00")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return prepare(tmp_path / "m")


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files_and_ready_arrive_and_the_work_folder_is_empty_but_for_the_lock(workspace: Workspace) -> None:
    workspace.lock.touch()
    ready = staged(workspace, a="1", sub__b="22")
    publish(workspace, ready)
    assert names(workspace.output) == ["READY", "a", "sub/b"]
    assert published(workspace.output, workspace.ready) == ready
    assert names(workspace.work) == ["lock"]


def test_what_was_published_before_and_is_no_more_goes_and_other_files_stay(workspace: Workspace) -> None:
    publish(workspace, staged(workspace, a="1", old__deep__x="2"))
    (workspace.output / "notes.txt").write_text("mine")
    publish(workspace, staged(workspace, a="3"))
    assert names(workspace.output) == ["READY", "a", "notes.txt"]
    assert not (workspace.output / "old").exists()
    assert (workspace.output / "a").read_text() == "3"


def test_a_crash_between_the_renames_leaves_no_ready(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(workspace, staged(workspace, a="1", b="2"))
    ready = staged(workspace, a="3", b="4")
    original = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            publish(workspace, ready)
    assert published(workspace.output, workspace.ready) is None
    staged(workspace, a="3")
    publish(workspace, ready)
    assert published(workspace.output, workspace.ready) == ready


def test_files_that_a_crashed_publication_would_have_removed_are_removed_by_the_next(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(workspace, staged(workspace, old="1"))
    original = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            publish(workspace, staged(workspace, new="2"))
    publish(workspace, staged(workspace, new="2"))
    assert names(workspace.output) == ["READY", "new"]


def test_nothing_is_written_through_a_link(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (workspace.output / "sub").symlink_to(elsewhere)
    with pytest.raises(DownloadError) as caught:
        publish(workspace, staged(workspace, sub__x="1"))
    assert caught.value.cause is Cause.UNSAFE_PATH
    assert list(elsewhere.iterdir()) == []


def test_nothing_is_removed_through_a_link(workspace: Workspace, tmp_path: Path) -> None:
    publish(workspace, staged(workspace, sub__x="1"))
    elsewhere = tmp_path / "elsewhere"
    (workspace.output / "sub").rename(elsewhere)
    (workspace.output / "sub").symlink_to(elsewhere)
    publish(workspace, staged(workspace, a="1"))
    assert (elsewhere / "x").read_text() == "1"


def test_a_link_in_place_of_a_file_is_replaced_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (workspace.output / "a").symlink_to(victim)
    publish(workspace, staged(workspace, a="1"))
    assert victim.read_text() == "precious"
    assert not (workspace.output / "a").is_symlink()


@pytest.mark.parametrize("damage", ["missing", "short", "link"])
def test_ready_over_a_damaged_folder_is_not_believed(workspace: Workspace, damage: str) -> None:
    publish(workspace, staged(workspace, a="123"))
    file = workspace.output / "a"
    if damage == "short":
        file.write_text("1")
    else:
        file.unlink()
    if damage == "link":
        file.symlink_to(workspace.ready)
    assert published(workspace.output, workspace.ready) is None


def test_a_folder_without_ready_is_not_published(workspace: Workspace) -> None:
    assert published(workspace.output, workspace.ready) is None
