"""A model travels as one file, and arrives whole or not at all."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.downloader.test_cache import MODEL, filled, request, seen

from matrixinfer.downloader.archive import export_model, import_model
from matrixinfer.downloader.cache import Cache
from matrixinfer.downloader.core.manifest import parse_ready
from matrixinfer.downloader.errors import Cause, DownloadError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    filled(request(tmp_path / "one"))
    export_model(tmp_path / "one" / "m", tmp_path / "model.tar")
    return tmp_path / "model.tar"


def test_a_model_is_the_same_in_another_cache(archive: Path, tmp_path: Path) -> None:
    ready = import_model(archive, tmp_path / "two", tmp_path / "two" / "m")
    assert seen(tmp_path / "two" / "m") == MODEL
    assert parse_ready((tmp_path / "one" / "m" / "READY").read_bytes()) == ready


def test_an_imported_model_answers_what_it_was_fetched_for(archive: Path, tmp_path: Path) -> None:
    import_model(archive, tmp_path / "two", tmp_path / "two" / "m")
    assert Cache(tmp_path / "two", request(tmp_path / "two", "v2")).published() is not None


def test_the_same_model_makes_the_same_archive(archive: Path, tmp_path: Path) -> None:
    import_model(archive, tmp_path / "two", tmp_path / "two" / "m")
    export_model(tmp_path / "two" / "m", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_what_is_no_model_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        export_model(tmp_path, tmp_path / "x.tar")
    assert caught.value.cause is Cause.NOT_FOUND
    assert not (tmp_path / "x.tar").exists()


Members = list[tuple[tarfile.TarInfo, bytes]]


def rewritten(archive: Path, change: Callable[[Members], None]) -> None:
    with tarfile.open(archive) as tar:
        members = [(member, content.read()) for member in tar if (content := tar.extractfile(member))]
    change(members)
    with tarfile.open(archive, "w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))


def flip(members: Members) -> None:
    members[1] = (members[1][0], bytes([members[1][1][0] ^ 1]) + members[1][1][1:])


def lose(members: Members) -> None:
    members.pop()


def lead_out(members: Members) -> None:
    evil = tarfile.TarInfo("../evil")
    members.insert(1, (evil, b""))


def link(members: Members) -> None:
    made = tarfile.TarInfo(members[1][0].name)
    made.type, made.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members[1] = (made, b"")


def forget_ready(members: Members) -> None:
    members.pop(0)


@pytest.mark.parametrize("damage", [flip, lose, lead_out, link, forget_ready])
def test_a_damaged_archive_publishes_nothing(archive: Path, tmp_path: Path, damage: Callable[[Members], None]) -> None:
    rewritten(archive, damage)
    with pytest.raises(DownloadError) as caught:
        import_model(archive, tmp_path / "two", tmp_path / "two" / "m")
    assert caught.value.cause is Cause.INTEGRITY
    assert not (tmp_path / "two" / "m").exists()
    assert not (tmp_path / "evil").exists()


def test_an_archive_that_was_cut_off_publishes_nothing(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
    with pytest.raises(DownloadError):
        import_model(archive, tmp_path / "two", tmp_path / "two" / "m")
    assert not (tmp_path / "two" / "m").exists()
