"""Which files a model consists of, that their names are safe, and the digest of the whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.manifest import (
    Listing,
    Ready,
    SourceFile,
    VerifiedFile,
    digest,
    parse_ready,
    select,
)
from matrixinfer.downloader.errors import Cause, DownloadError

FILES = (VerifiedFile("b.txt", 3, "22" * 32), VerifiedFile("a/x.bin", 7, "11" * 32))


def listing(*paths: str) -> Listing:
    return Listing("rev", tuple(SourceFile(path, 1, "v") for path in paths))


def chosen(paths: tuple[str, ...], include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    return [file.path for file in select(listing(*paths), include, exclude).files]


def ready(**changes: object) -> Ready:
    values: dict[str, object] = {
        "source": "s3://b/p",
        "include": ("*.json",),
        "exclude": (),
        "resolved_revision": "rev",
        "digest": digest(FILES),
        "files": FILES,
        "published_at": "2026-11-24T00:00:00+00:00",
    }
    return Ready(**{**values, **changes})


def test_the_digest_is_for_ever() -> None:
    # sha256 of [["a/x.bin",7,"sha256:11…"],["b.txt",3,"sha256:22…"]]
    assert digest(FILES) == "sha256:38958d0641164639f74b5530da184ec3611b03ab053056201ea907adf43d924e"


def test_the_digest_does_not_depend_on_the_order() -> None:
    assert digest(FILES) == digest(tuple(reversed(FILES)))


@pytest.mark.parametrize(
    "other",
    [VerifiedFile("b.txt", 3, "23" * 32), VerifiedFile("b.txt", 4, "22" * 32), VerifiedFile("c.txt", 3, "22" * 32)],
)
def test_path_size_and_hash_each_change_the_digest(other: VerifiedFile) -> None:
    assert digest((other, FILES[1])) != digest(FILES)


def test_ready_survives_being_written_and_read() -> None:
    assert parse_ready(ready().to_json()) == ready()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'"READY"',
        b"{}",
        ready(digest="sha256:" + "0" * 64).to_json(),
        ready().to_json().replace(b'"format": 1', b'"format": 2'),
        ready().to_json()[:-20],
    ],
)
def test_what_is_no_sound_ready_document_is_not_believed(text: bytes) -> None:
    assert parse_ready(text) is None


def test_a_ready_document_with_names_that_leave_the_folder_is_not_believed() -> None:
    files = (VerifiedFile("../../etc/passwd", 1, "11" * 32),)
    assert parse_ready(ready(files=files, digest=digest(files)).to_json()) is None


def test_ready_answers_only_the_same_request() -> None:
    assert ready().answers("s3://b/p", ["*.json"], [])
    assert not ready().answers("s3://b/q", ["*.json"], [])
    assert not ready().answers("s3://b/p", [], [])
    assert not ready().answers("s3://b/p", ["*.json"], ["x"])


def test_other_formats_are_left_out_beside_safetensors() -> None:
    paths = ("config.json", "model.safetensors", "pytorch_model.bin", "original/consolidated.00.pth", "onnx/m.onnx")
    assert chosen(paths) == ["config.json", "model.safetensors"]


def test_without_safetensors_every_format_is_taken() -> None:
    assert chosen(("config.json", "pytorch_model.bin", "m.gguf")) == ["config.json", "m.gguf", "pytorch_model.bin"]


def test_safetensors_that_are_excluded_do_not_push_out_the_others() -> None:
    assert chosen(("m.gguf", "m.safetensors"), exclude=("*.safetensors",)) == ["m.gguf"]


def test_include_takes_only_what_it_names_even_beside_safetensors() -> None:
    assert chosen(("m.safetensors", "m.gguf", "config.json"), include=("*.gguf",)) == ["m.gguf"]


def test_exclude_wins_over_include() -> None:
    assert chosen(("a.json", "b.json"), include=("*.json",), exclude=("b.*",)) == ["a.json"]


def test_a_pattern_without_slash_is_tried_on_the_name_too() -> None:
    assert chosen(("sub/deep/a.json", "b.txt"), include=("a.json",)) == ["sub/deep/a.json"]


def test_a_star_crosses_folders() -> None:
    assert chosen(("sub/deep/a.json", "top.json"), include=("sub/*",)) == ["sub/deep/a.json"]


def test_files_of_git_and_reserved_names_are_left_out() -> None:
    assert chosen((".gitattributes", "READY", ".matrixinfer/lock", "m.gguf")) == ["m.gguf"]


def test_what_is_left_out_is_told_with_the_reason() -> None:
    selection = select(listing("m.safetensors", "m.bin"), (), ())
    assert selection.skipped == (("m.bin", "the same weights come as safetensors"),)


def test_nothing_selected_names_what_was_there() -> None:
    with pytest.raises(DownloadError, match=r"a\.json \(not included\)") as caught:
        select(listing("a.json"), ("*.gguf",), ())
    assert caught.value.cause is Cause.NOTHING_SELECTED


def test_an_empty_source_is_not_success() -> None:
    with pytest.raises(DownloadError, match="holds no file"):
        select(Listing("rev", ()), (), ())


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        "",
        "a\\..\\b",
        "a\nb",
        "a\x00b",
        "a\x7fb",
        "x" * 256,
        "/".join(["x" * 200] * 6),
        "\ud800",
    ],
)
def test_names_that_must_not_be_written_are_refused(path: str) -> None:
    with pytest.raises(DownloadError) as caught:
        select(listing("ok.json", path), (), ())
    assert caught.value.cause is Cause.UNSAFE_PATH


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_names_that_collide_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(DownloadError) as caught:
        select(listing(*paths), (), ())
    assert caught.value.cause is Cause.UNSAFE_PATH


@given(st.lists(st.text(max_size=12), max_size=6))
def test_whatever_is_selected_stays_inside_the_folder(paths: list[str]) -> None:
    try:
        selection = select(listing(*paths), (), ())
    except DownloadError:
        return
    for file in selection.files:
        assert not file.path.startswith("/")
        assert not {"..", ".", ""} & set(file.path.split("/"))


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_ready_are_survived(text: bytes) -> None:
    assert parse_ready(text) is None


def test_ready_is_readable_for_other_programs() -> None:
    document = json.loads(ready().to_json())
    assert (document["totalBytes"], document["fileCount"], document["digest"]) == (10, 2, digest(FILES))
