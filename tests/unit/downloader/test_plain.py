"""READY is there only over a complete folder, at every moment."""

from pathlib import Path

import pytest

from matrixinfer.downloader.core.manifest import Ready, VerifiedFile, digest
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.plain import PlainFolder


def staged(folder: PlainFolder, **contents: str) -> Ready:
    files = []
    for name, content in contents.items():
        path = name.replace("__", "/")
        target = folder.workspace.staged(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        files.append(VerifiedFile(path, len(content), "00" * 32))
    return Ready("file:///x", (), (), "", digest(files), tuple(files), "2026-11-24T00:00:00+00:00")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "m"


@pytest.fixture
def folder(output: Path) -> PlainFolder:
    return PlainFolder(Request("file:///x", output))


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files_and_ready_arrive_and_the_work_folder_is_empty_but_for_the_lock(
    folder: PlainFolder, output: Path
) -> None:
    folder.workspace.lock.mkdir()
    ready = staged(folder, a="1", sub__b="22")
    folder.publish(ready)
    assert names(output) == ["READY", "a", "sub/b"]
    assert folder.published() == ready
    assert names(folder.workspace.work) == []


def test_what_was_published_before_and_is_no_more_goes_and_other_files_stay(folder: PlainFolder, output: Path) -> None:
    folder.publish(staged(folder, a="1", old__deep__x="2"))
    (output / "notes.txt").write_text("mine")
    folder.publish(staged(folder, a="3"))
    assert names(output) == ["READY", "a", "notes.txt"]
    assert not (output / "old").exists()
    assert (output / "a").read_text() == "3"


def test_a_crash_between_the_renames_leaves_no_ready(
    folder: PlainFolder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.publish(staged(folder, a="1", b="2"))
    ready = staged(folder, a="3", b="4")
    original = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            folder.publish(ready)
    assert folder.published() is None
    staged(folder, a="3")
    folder.publish(ready)
    assert folder.published() == ready


def test_files_that_a_crashed_publication_would_have_removed_are_removed_by_the_next(
    folder: PlainFolder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.publish(staged(folder, old="1"))
    original = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            folder.publish(staged(folder, new="2"))
    folder.publish(staged(folder, new="2"))
    assert names(output) == ["READY", "new"]


def test_nothing_is_written_through_a_link(folder: PlainFolder, output: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (output / "sub").symlink_to(elsewhere)
    with pytest.raises(DownloadError) as caught:
        folder.publish(staged(folder, sub__x="1"))
    assert caught.value.cause is Cause.UNSAFE_PATH
    assert list(elsewhere.iterdir()) == []


def test_nothing_is_removed_through_a_link(folder: PlainFolder, output: Path, tmp_path: Path) -> None:
    folder.publish(staged(folder, sub__x="1"))
    elsewhere = tmp_path / "elsewhere"
    (output / "sub").rename(elsewhere)
    (output / "sub").symlink_to(elsewhere)
    folder.publish(staged(folder, a="1"))
    assert (elsewhere / "x").read_text() == "1"


def test_a_link_in_place_of_a_file_is_replaced_not_followed(folder: PlainFolder, output: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (output / "a").symlink_to(victim)
    folder.publish(staged(folder, a="1"))
    assert victim.read_text() == "precious"
    assert not (output / "a").is_symlink()


@pytest.mark.parametrize("damage", ["missing", "short", "link"])
def test_ready_over_a_damaged_folder_is_not_believed(folder: PlainFolder, output: Path, damage: str) -> None:
    folder.publish(staged(folder, a="123"))
    file = output / "a"
    if damage == "short":
        file.write_text("1")
    else:
        file.unlink()
    if damage == "link":
        file.symlink_to(output / "READY")
    assert folder.published() is None


def test_a_folder_without_ready_is_not_published(folder: PlainFolder, output: Path) -> None:
    assert folder.published() is None
