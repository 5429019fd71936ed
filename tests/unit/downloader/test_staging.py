"""One file while it grows: any order, any interruption, the same bytes in the end."""

import hashlib
import os
import random
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.manifest import SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.staging import StagedFile
from matrixinfer.downloader.workspace import Workspace, prepare, prepare_cache

CONTENT = random.Random(7).randbytes(1000)
PART = 100


def file(content: bytes = CONTENT, version: str = "v1") -> SourceFile:
    promise = Expected(Algorithm.SHA256, hashlib.sha256(content).hexdigest())
    return SourceFile("sub/m.bin", len(content), version, promise)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return prepare(tmp_path / "m")


def opened(workspace: Workspace, source: SourceFile | None = None) -> StagedFile:
    staged = StagedFile(source or file(), workspace, PART)
    staged.open(lambda: False)
    return staged


def write(staged: StagedFile, part: Part, content: bytes = CONTENT, step: int = 33) -> None:
    writer = staged.begin_part(part)
    while writer.rest.length:
        writer.write(memoryview(content)[writer.position : min(writer.position + step, part.end)])
    staged.end_part(writer)


@given(order=st.permutations(range(10)))
def test_parts_may_come_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    staged = opened(prepare(tmp_path_factory.mktemp("m") / "out"))
    parts = staged.missing
    for index in order:
        write(staged, parts[index])
    assert staged.finish().sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_what_an_earlier_process_finished_is_not_missing(workspace: Workspace) -> None:
    first = opened(workspace)
    for part in first.missing[:4]:
        write(first, part)
    second = opened(workspace)
    assert second.resumed
    assert second.present_bytes == 400
    for part in second.missing:
        write(second, part)
    assert second.finish().sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_part_that_was_cut_off_counts_for_nothing(workspace: Workspace) -> None:
    first = opened(workspace)
    writer = first.begin_part(first.missing[0])
    writer.write(memoryview(CONTENT[:50]))
    first.drop_part(writer)
    assert opened(workspace).present_bytes == 0


def test_a_part_that_the_disk_lost_is_fetched_again(workspace: Workspace) -> None:
    first = opened(workspace)
    for part in first.missing[:4]:
        write(first, part)
    with workspace.staged("sub/m.bin").open("r+b") as damaged:
        damaged.seek(150)
        damaged.write(b"\0" * 10)
    second = opened(workspace)
    assert Part(100, 100) in second.missing
    assert second.present_bytes == 300


def test_another_version_of_the_file_begins_anew(workspace: Workspace) -> None:
    first = opened(workspace)
    write(first, first.missing[0])
    assert not opened(workspace, file(version="v2")).resumed


def test_a_file_that_was_renamed_already_is_taken_back(workspace: Workspace) -> None:
    first = opened(workspace)
    for part in first.missing:
        write(first, part)
    first.finish()
    target = workspace.published("sub/m.bin")
    target.parent.mkdir()
    workspace.staged("sub/m.bin").rename(target)
    second = opened(workspace)
    assert second.missing == ()
    assert second.finish().sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_foreign_file_under_the_final_name_is_not_taken(workspace: Workspace) -> None:
    target = workspace.published("sub/m.bin")
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    assert opened(workspace).present_bytes == 0
    assert target.read_bytes() == CONTENT


def test_wrong_bytes_of_the_right_size_are_refused(workspace: Workspace) -> None:
    staged = opened(workspace)
    wrong = bytearray(CONTENT)
    wrong[555] ^= 1
    for part in staged.missing:
        write(staged, part, bytes(wrong))
    with pytest.raises(DownloadError, match="sha256") as caught:
        staged.finish()
    assert caught.value.cause is Cause.INTEGRITY


def test_more_bytes_than_the_part_has_are_refused(workspace: Workspace) -> None:
    staged = opened(workspace)
    writer = staged.begin_part(Part(0, 100))
    with pytest.raises(DownloadError, match="longer than listed"):
        writer.write(memoryview(b"x" * 101))


def test_a_file_that_somebody_cut_is_refused(workspace: Workspace) -> None:
    staged = opened(workspace)
    for part in staged.missing[:-1]:
        write(staged, part)
    with pytest.raises(DownloadError, match="900 of them readable"):
        staged.finish()


def test_an_empty_file_is_complete_from_the_start(workspace: Workspace) -> None:
    staged = opened(workspace, file(b""))
    assert staged.missing == ()
    assert staged.finish().size == 0


def test_discarded_means_begun_anew(workspace: Workspace) -> None:
    staged = opened(workspace)
    write(staged, staged.missing[0])
    staged.discard()
    assert not opened(workspace).resumed


def test_a_restart_forgets_what_was_hashed(workspace: Workspace) -> None:
    staged = opened(workspace)
    for part in staged.missing:
        write(staged, part, b"\0" * 1000)
    staged.restart()
    for part in staged.missing:
        write(staged, part)
    assert staged.finish().sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_the_checksum_of_a_part_is_that_of_its_bytes(workspace: Workspace) -> None:
    staged = opened(workspace)
    writer = staged.begin_part(Part(100, 100))
    writer.write(memoryview(CONTENT[100:130]))
    writer.write(memoryview(CONTENT[130:200]))
    assert writer.checksum == xxhash.xxh3_64_intdigest(CONTENT[100:200])


def test_a_part_that_failed_halfway_was_not_hashed(workspace: Workspace) -> None:
    staged = opened(workspace)
    writer = staged.begin_part(staged.missing[0])
    writer.write(memoryview(b"wrong" * 10))
    staged.drop_part(writer)
    for part in staged.missing:
        write(staged, part)
    assert staged.finish().sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_what_the_first_answer_vouches_for_counts(workspace: Workspace) -> None:
    staged = opened(workspace, SourceFile("sub/m.bin", len(CONTENT), "v1"))
    staged.promise(Expected(Algorithm.MD5, "0" * 32))
    for part in staged.missing:
        write(staged, part)
    with pytest.raises(DownloadError, match="md5"):
        staged.finish()


def test_engines_of_other_users_may_read_the_file(workspace: Workspace) -> None:
    before = os.umask(0o077)
    try:
        opened(workspace, file(b"")).finish()
    finally:
        os.umask(before)
    assert workspace.staged("sub/m.bin").stat().st_mode & 0o444 == 0o444


def test_a_file_of_seventy_gigabytes_grows_by_ranges_and_is_taken_up_again(workspace: Workspace) -> None:
    size, part_bytes = 70_000_000_000, 16 << 20
    huge = SourceFile("huge.safetensors", size, "v1")
    staged = StagedFile(huge, workspace, part_bytes)
    staged.open(lambda: False)
    parts = staged.missing
    # The ends, and where 31 and 32 bits of an offset are used up.
    chosen = [parts[0], parts[(1 << 31) // part_bytes], parts[(1 << 32) // part_bytes], parts[-1]]
    content = memoryview(random.Random(8).randbytes(part_bytes))
    for part in chosen:
        writer = staged.begin_part(part)
        writer.write(content[: part.length])
        staged.end_part(writer)
    staged.close()
    on_disk = workspace.staged("huge.safetensors").stat()
    assert on_disk.st_size == size
    assert on_disk.st_blocks * 512 < 5 * part_bytes
    again = StagedFile(huge, workspace, part_bytes)
    assert again.noted_bytes() == sum(part.length for part in chosen)
    again.open(lambda: False)
    assert again.present_bytes == sum(part.length for part in chosen)
    assert set(parts) - set(again.missing) == set(chosen)
    again.close()


def test_what_others_brought_is_fetched_again_and_nothing_else(workspace: Workspace) -> None:
    staged = opened(workspace)
    wrong = CONTENT[:250] + bytes(60) + CONTENT[310:]
    for part in staged.missing:
        write(staged, part, wrong)
    with pytest.raises(DownloadError):
        staged.finish()
    staged.forget([Part(250, 60)])
    assert staged.missing == (Part(200, 100), Part(300, 100))
    for part in staged.missing:
        write(staged, part)
    assert staged.finish().sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_of_one_part_needs_no_journal_where_it_is_kept_at_once(tmp_path: Path) -> None:
    workspaces = (prepare(tmp_path / "plain"), prepare_cache(tmp_path / "cache", "origin"))
    small = file(CONTENT[:PART])
    for workspace in workspaces:
        write(opened(workspace, small), Part(0, PART))
    assert [workspace.journal(small.path).exists() for workspace in workspaces] == [True, False]
