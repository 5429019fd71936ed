"""Where a download works: beside its output when it can, inside it when that is a volume's root."""

import os
from pathlib import Path

import pytest

from matrixinfer.downloader import workspace
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.workspace import prepare


def test_the_work_folder_lies_beside_the_output(tmp_path: Path) -> None:
    made = prepare(tmp_path / "models" / "m")
    assert made.work == tmp_path / "models" / ".matrixinfer-m"
    assert list(made.output.iterdir()) == []


def test_it_lies_inside_when_the_output_is_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    made = prepare(tmp_path)
    assert made.work == tmp_path / ".matrixinfer"
    assert [p.name for p in tmp_path.iterdir()] == [".matrixinfer"]


def test_it_lies_inside_when_a_rename_between_the_two_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(work: Path, _output: Path) -> None:
        if work.parent == tmp_path:
            raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(workspace, "_try_rename", across)
    assert prepare(tmp_path / "m").work == tmp_path / "m" / ".matrixinfer"


def test_all_processes_agree_on_the_place(tmp_path: Path) -> None:
    assert prepare(tmp_path / "m") == prepare(tmp_path / "m")


def test_a_folder_that_cannot_be_made_has_its_own_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError) as caught:
        prepare(tmp_path / "file" / "m")
    assert caught.value.cause is Cause.VOLUME_NOT_WRITABLE


def test_a_full_volume_is_told_from_one_that_cannot_be_written() -> None:
    with pytest.raises(DownloadError) as caught, workspace.volume_errors("x"):
        raise OSError(28, "No space left on device")
    assert caught.value.cause is Cause.NO_SPACE


def test_clearing_keeps_the_lock(tmp_path: Path) -> None:
    made = prepare(tmp_path / "m")
    made.lock.mkdir()
    for path in (made.staged("a/b"), made.journal("a/b")):
        path.parent.mkdir(parents=True)
        path.touch()
    made.clear()
    assert [p.name for p in made.work.iterdir()] == ["holders"]
