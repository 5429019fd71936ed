"""A cache keeps every content once, and a model in it never changes."""

import hashlib
import os
from pathlib import Path

import pytest

from matrixinfer.downloader.cache import Cache
from matrixinfer.downloader.core.manifest import Ready, SourceFile, VerifiedFile, digest, parse_ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.lock import try_hold
from matrixinfer.downloader.plain import PlainFolder
from matrixinfer.downloader.staging import StagedFile

MODEL = {"config.json": "{}", "sub/deep/w.bin": "weights"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def request(root: Path, output: str = "m", source: str = "hf://o/m", **changes: object) -> Request:
    return Request(source, root / output, cache=root, **changes)


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def source_file(path: str, content: str, *, vouched: bool = True) -> SourceFile:
    promise = Expected(Algorithm.SHA256, sha(content)) if vouched else None
    return SourceFile(path, len(content), f"v-{sha(content)[:8]}", promise)


def fill(cache: Cache, wanted: Request, model: dict[str, str], *, vouched: bool = True) -> tuple[Ready, list[str]]:
    """Do what a download does with a shelf; returns what is published and the files that had to be fetched."""
    verified, fetched = [], []
    for path, content in model.items():
        file = source_file(path, content, vouched=vouched)
        found = cache.present(file)
        if found is None:
            fetched.append(path)
            staged = StagedFile(file, cache.workspace, 1 << 20)
            staged.path.parent.mkdir(parents=True, exist_ok=True)
            staged.path.write_text(content)
            found = VerifiedFile(path, len(content), sha(content))
            cache.keep(staged, found)
        verified.append(found)
    ready = Ready(wanted.source, (), (), "rev", digest(verified), tuple(verified), "2026-11-25T00:00:00+00:00")
    cache.publish(ready)
    return ready, fetched


def filled(wanted: Request, model: dict[str, str] = MODEL, *, vouched: bool = True) -> tuple[Ready, list[str]]:
    assert wanted.cache is not None
    return fill(Cache(wanted.cache, wanted), wanted, model, vouched=vouched)


def seen(output: Path) -> dict[str, str]:
    return {str(p.relative_to(output)): p.read_text() for p in output.rglob("*") if p.is_file() and p.name != "READY"}


def test_the_output_is_a_link_to_the_folder_of_the_digest(root: Path) -> None:
    ready, _ = filled(request(root))
    assert str((root / "m").readlink()) == f"models/{ready.digest.removeprefix('sha256:')}"
    assert seen(root / "m") == MODEL
    assert parse_ready((root / "m" / "READY").read_bytes()) == ready


def test_the_link_holds_wherever_the_volume_is_mounted(root: Path, tmp_path: Path) -> None:
    filled(request(root, "versions/ns/v1/model"))
    root.rename(tmp_path / "elsewhere")
    assert seen(tmp_path / "elsewhere" / "versions" / "ns" / "v1" / "model") == MODEL


def test_two_revisions_share_the_files_that_did_not_change(root: Path) -> None:
    filled(request(root, "one", "hf://o/m@a"))
    newer = {**MODEL, "config.json": '{"v": 2}'}
    _, fetched = filled(request(root, "two", "hf://o/m@b"), newer)
    assert fetched == ["config.json"]
    assert (seen(root / "one"), seen(root / "two")) == (MODEL, newer)
    assert len(list((root / "blobs").iterdir())) == 3


def test_content_of_another_source_that_promises_the_same_sha256_is_shared(root: Path) -> None:
    filled(request(root, "one", "hf://o/m"))
    assert filled(request(root, "two", "s3://b/m"))[1] == []


def test_a_source_that_promises_no_sha256_is_known_by_its_version(root: Path) -> None:
    filled(request(root), vouched=False)
    again = Cache(root, request(root))
    assert again.present(source_file("config.json", "{}", vouched=False)) is not None
    assert again.present(SourceFile("config.json", 2, "another")) is None
    assert (
        Cache(root, request(root, source="hf://o/other")).present(source_file("config.json", "{}", vouched=False))
        is None
    )


def test_what_was_asked_before_is_answered_from_the_cache_under_another_name(root: Path) -> None:
    ready, _ = filled(request(root, "one"))
    assert Cache(root, request(root, "two")).published() == ready
    assert (root / "two").readlink() == (root / "one").readlink()


def test_a_recorded_digest_is_answered_whatever_the_source_ended_with_since(root: Path) -> None:
    old, _ = filled(request(root, "one"))
    new, _ = filled(request(root, "two"), {"config.json": "new"})
    assert Cache(root, request(root, "three")).published() == new
    recorded = Cache(root, request(root, "three", expected_digest=old.digest)).published()
    assert recorded is not None
    assert recorded.digest == old.digest
    assert seen(root / "three") == MODEL


def test_a_link_of_one_version_stays_when_another_moves_on(root: Path) -> None:
    filled(request(root, "v1"))
    before = (root / "v1").readlink()
    filled(request(root, "v2"), {"config.json": "new"})
    assert (root / "v1").readlink() == before
    assert seen(root / "v1") == MODEL


def test_nothing_is_published_before_anything_was(root: Path) -> None:
    assert Cache(root, request(root)).published() is None
    assert not (root / "m").exists()


@pytest.mark.parametrize("damage", ["missing", "short", "foreign link"])
def test_a_damaged_model_is_not_believed_and_made_anew(root: Path, damage: str) -> None:
    ready, _ = filled(request(root))
    path = root / "m" / "config.json"
    if damage == "short":
        path.chmod(0o644)
        path.write_text("")
    else:
        path.unlink()
    if damage == "foreign link":
        path.symlink_to("/etc/hostname")
    assert Cache(root, request(root)).published() is None
    again, fetched = filled(request(root))
    # A hard link is its blob: what was cut short there is fetched again, what only lost its name is not.
    assert fetched == (["config.json"] if damage == "short" else [])
    assert (again.digest, seen(root / "m")) == (ready.digest, MODEL)


def test_without_hard_links_relative_ones_take_their_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    ready, _ = filled(request(root, "versions/v"))
    assert seen(root / "versions" / "v") == MODEL
    assert (root / "versions" / "v" / "sub" / "deep" / "w.bin").is_symlink()
    assert Cache(root, request(root, "versions/v")).published() == ready


def test_a_folder_of_the_older_layout_is_taken_over_without_a_byte(root: Path) -> None:
    older = Request("hf://o/m", root / "m")
    plain = PlainFolder(older)
    files = [VerifiedFile(path, len(content), sha(content)) for path, content in MODEL.items()]
    for path, content in MODEL.items():
        plain.workspace.staged(path).parent.mkdir(parents=True, exist_ok=True)
        plain.workspace.staged(path).write_text(content)
    plain.publish(Ready("hf://o/m", (), (), "rev", digest(files), tuple(files), "2026-11-25T00:00:00+00:00"))
    for output in ("m", "elsewhere"):
        cache = Cache(root, request(root, output))
        assert cache.adopted() is not None or cache.published() is not None
        assert (root / output).is_symlink()
        assert seen(root / output) == MODEL
    assert filled(request(root, "m"))[1] == []


def test_what_is_not_ours_is_not_replaced_by_a_link(root: Path) -> None:
    (root / "m").mkdir(parents=True)
    (root / "m" / "notes.txt").write_text("mine")
    with pytest.raises(DownloadError, match="in the way") as caught:
        filled(request(root))
    assert caught.value.cause is Cause.VOLUME_NOT_WRITABLE
    assert (root / "m" / "notes.txt").read_text() == "mine"


def test_an_empty_folder_gives_way_to_the_link(root: Path) -> None:
    (root / "m").mkdir(parents=True)
    filled(request(root))
    assert (root / "m").is_symlink()


def test_contents_are_read_only(root: Path) -> None:
    filled(request(root))
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (root / "blobs").iterdir())


def test_nothing_but_the_lock_and_what_is_known_stays_of_the_work(root: Path) -> None:
    filled(request(root))
    work = Cache(root, request(root)).workspace.work
    assert list(work.iterdir()) == []


def make_room(root: Path, missing: int, kept: tuple[str, ...] = ()) -> int:
    return Cache(root, request(root, "asking", "hf://o/asking")).make_room(missing, kept, pod="me", node="here")


def test_room_is_made_from_models_that_no_link_leads_to(root: Path) -> None:
    filled(request(root, "v1"))
    newer, _ = filled(request(root, "v2"), {"config.json": "{}", "b": "newer weights"})
    (root / "v1").unlink()
    assert make_room(root, 1) == len(MODEL["sub/deep/w.bin"])
    assert [f"sha256:{folder.name}" for folder in (root / "models").iterdir()] == [newer.digest]
    assert seen(root / "v2") == {"config.json": "{}", "b": "newer weights"}


def test_a_model_that_a_link_leads_to_is_never_evicted(root: Path, tmp_path: Path) -> None:
    filled(request(root, "versions/ns/v1/model"))
    outside = Request("hf://o/other", tmp_path / "outside", cache=root)
    filled(outside, {"x": "y"})
    assert make_room(root, 10**9) == 0
    assert seen(tmp_path / "outside") == {"x": "y"}
    assert seen(root / "versions" / "ns" / "v1" / "model") == MODEL


def test_what_the_asking_run_counts_on_is_kept(root: Path) -> None:
    filled(request(root, "v1"))
    (root / "v1").unlink()
    make_room(root, 10**9, kept=(sha("{}"),))
    assert [blob.name for blob in (root / "blobs").iterdir()] == [sha("{}")]


def test_nothing_is_evicted_while_another_download_is_under_way(root: Path) -> None:
    filled(request(root, "v1"))
    (root / "v1").unlink()
    other = Cache(root, request(root, "v3", "hf://o/third"))
    holder = try_hold(other.workspace.lock, pod="other", node="here")
    assert holder is not None
    assert make_room(root, 10**9) == 0
    holder.release()
    assert make_room(root, 10**9) > 0
