"""Folders and claims as sources: what is inside is listed and read, what leads out is refused."""

import fcntl
import hashlib
import os
from functools import partial
from pathlib import Path

import pytest

from matrixinfer.downloader.core.manifest import SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.uri import Claim, Folder
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.file import local_source
from matrixinfer.downloader.sources.folder import FolderSource
from matrixinfer.downloader.sources.pvc import claim_source
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.workspace import prepare


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    model = tmp_path / "claims" / "weights" / "m"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "w.bin").write_bytes(bytes(range(100)))
    return tmp_path / "claims"


def read(source: FolderSource, file: SourceFile, part: Part) -> bytes:
    found, buffer = bytearray(), memoryview(bytearray(7))
    with source.read(file, part) as body:
        while count := body.readinto(buffer):
            found += buffer[:count]
    return bytes(found)


def refused(source: FolderSource) -> Cause:
    with pytest.raises(DownloadError) as caught:
        source.listing()
    return caught.value.cause


def test_a_folder_of_a_claim_is_listed_and_read(claims: Path) -> None:
    source = claim_source(Claim("weights", "m"), claims)
    files = {file.path: file for file in source.listing().files}
    assert {path: file.size for path, file in files.items()} == {"config.json": 2, "sub/w.bin": 100}
    assert read(source, files["sub/w.bin"], Part(10, 5)) == bytes(range(10, 15))


def test_a_single_file_of_a_claim_is_a_model_too(claims: Path) -> None:
    source = claim_source(Claim("weights", "m/sub/w.bin"), claims)
    (file,) = source.listing().files
    assert file.path == "w.bin"
    assert read(source, file, Part(0, 100)) == bytes(range(100))


def test_a_claim_that_is_not_mounted_is_named(claims: Path) -> None:
    with pytest.raises(DownloadError, match="'other' is not mounted") as caught:
        claim_source(Claim("other", ""), claims)
    assert caught.value.cause is Cause.NOT_FOUND


def test_a_folder_that_is_not_there_is_not_found(claims: Path) -> None:
    assert refused(claim_source(Claim("weights", "nothing"), claims)) is Cause.NOT_FOUND


def test_links_inside_the_claim_are_followed(claims: Path) -> None:
    (claims / "weights" / "blob").write_text("shared")
    (claims / "weights" / "m" / "linked").symlink_to("../blob")
    source = claim_source(Claim("weights", "m"), claims)
    files = {file.path: file for file in source.listing().files}
    assert read(source, files["linked"], Part(0, 6)) == b"shared"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret", "/"])
def test_links_that_lead_out_are_refused(claims: Path, target: str) -> None:
    (claims.parent / "secret").write_text("secret")
    (claims / "weights" / "m" / "link").symlink_to(target)
    assert refused(claim_source(Claim("weights", "m"), claims)) is Cause.UNSAFE_PATH


def test_a_link_put_there_after_the_listing_is_refused_too(claims: Path) -> None:
    source = claim_source(Claim("weights", "m"), claims)
    (config,) = [f for f in source.listing().files if f.path == "config.json"]
    (claims / "weights" / "m" / "config.json").unlink()
    (claims / "weights" / "m" / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(DownloadError) as caught:
        read(source, config, Part(0, 2))
    assert caught.value.cause is Cause.UNSAFE_PATH


def test_a_link_to_a_folder_above_is_not_walked_for_ever(claims: Path) -> None:
    (claims / "weights" / "m" / "sub" / "up").symlink_to("..")
    assert refused(claim_source(Claim("weights", "m"), claims)) is Cause.UNSAFE_PATH


def test_a_pipe_is_refused_instead_of_being_waited_for(claims: Path) -> None:
    os.mkfifo(claims / "weights" / "m" / "pipe")
    assert refused(claim_source(Claim("weights", "m"), claims)) is Cause.UNSAFE_PATH


@pytest.mark.parametrize("change", ["grown", "gone"])
def test_a_file_that_changes_after_the_listing_is_noticed(claims: Path, change: str) -> None:
    source = claim_source(Claim("weights", "m"), claims)
    (config,) = [f for f in source.listing().files if f.path == "config.json"]
    path = claims / "weights" / "m" / "config.json"
    path.write_text("[1]") if change == "grown" else path.unlink()
    with pytest.raises(DownloadError) as caught:
        read(source, config, Part(0, 2))
    assert caught.value.cause is Cause.SOURCE_CHANGED


def test_a_local_folder_and_a_local_file(claims: Path) -> None:
    folder = claims / "weights" / "m"
    assert len(local_source(Folder(str(folder))).listing().files) == 2
    (file,) = local_source(Folder(str(folder / "config.json"))).listing().files
    assert file.path == "config.json"


def test_without_shared_blocks_a_file_is_copied(claims: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refused)
    source = claim_source(Claim("weights", "m"), claims)
    file = next(file for file in source.listing().files if file.path == "sub/w.bin")
    with (tmp_path / "made").open("w+b") as made:
        assert not source.clone(file, made.fileno())


def test_where_blocks_can_be_shared_nothing_is_read(
    claims: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cloned(target: int, _request: int, source: int) -> int:
        os.pwrite(target, os.pread(source, 1000, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", cloned)
    source = claim_source(Claim("weights", "m"), claims)
    file = next(file for file in source.listing().files if file.path == "sub/w.bin")
    staged = StagedFile(file, prepare(tmp_path / "out"), 10)
    staged.open(lambda: False)
    staged.clone(partial(source.clone, file))
    assert staged.missing == ()
    assert staged.finish().sha256 == hashlib.sha256(bytes(range(100))).hexdigest()


def test_a_file_that_changed_since_it_was_listed_is_not_cloned(claims: Path, tmp_path: Path) -> None:
    source = claim_source(Claim("weights", "m"), claims)
    file = next(file for file in source.listing().files if file.path == "sub/w.bin")
    (claims / "weights" / "m" / "sub" / "w.bin").write_bytes(b"other")
    with (tmp_path / "made").open("w+b") as made:
        assert not source.clone(file, made.fileno())
