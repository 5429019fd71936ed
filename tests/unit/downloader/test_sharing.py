"""Names and documents of peers are read strictly: what is not one is nothing."""

import pytest

from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.sharing import (
    FileName,
    Held,
    Share,
    read_held,
    read_share,
    share_note,
    whole_range,
)

KEY, OTHER, CONTENT = "a" * 32, "b" * 32, "c" * 64


@pytest.mark.parametrize("name", [FileName(KEY, OTHER), FileName(KEY, OTHER, CONTENT)])
def test_a_name_is_read_as_it_was_written(name: FileName) -> None:
    assert FileName.parse(name.place) == name


@pytest.mark.parametrize(
    "place",
    [
        "",
        KEY,
        f"{KEY}/{OTHER}",
        f"{KEY}/{OTHER}/",
        f"{KEY}/{OTHER}/{CONTENT}/",
        f"{KEY}/{OTHER}/{CONTENT}\n",
        f"../{KEY}/{OTHER}/-",
        f"{KEY}/../-",
        f"{KEY}/{OTHER}/../../{CONTENT}",
        f"{KEY.upper()}/{OTHER}/-",
        f"{KEY}/{OTHER}/{CONTENT}?x",
    ],
)
def test_everything_else_is_no_name(place: str) -> None:
    assert FileName.parse(place) is None


def test_parts_that_touch_are_one() -> None:
    held = Held.of(100, [Part(20, 10), Part(0, 10), Part(10, 10), Part(50, 5)])
    assert held.parts == (Part(0, 30), Part(50, 5))
    assert held.has(Part(5, 25))
    assert not held.has(Part(25, 10))
    assert read_held(held.to_json()) == held


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"size": 1}', b'{"size": 1, "parts": [[1]]}', b'{"size": "x", "parts": []}', b"[" * 100_000]
)
def test_what_a_peer_says_may_be_nonsense(text: bytes) -> None:
    assert read_held(text) is None


def test_a_note_is_read_as_it_was_written() -> None:
    share = Share("sub/w.safetensors", 7, "etag", CONTENT)
    assert read_share(share_note(16, [(KEY, share)])) == (16, {KEY: share})
    assert read_share(b'{"partBytes": 1, "files": {"a": [1]}}') is None
    assert read_share(b"") is None


@pytest.mark.parametrize(
    "header", ["", "bytes=0-", "bytes=-5", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=0-1 "]
)
def test_only_one_range_with_both_ends_is_one(header: str) -> None:
    assert whole_range(header) is None
    assert whole_range("bytes=2-5") == Part(2, 4)
