"""Content is compared with what the source vouches for, however it was computed and however it arrives."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.verify import Algorithm, ContentHash, Expected


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def expected(algorithm: Algorithm, content: bytes, part_bytes: int = 4) -> Expected:
    match algorithm:
        case Algorithm.SHA256:
            return Expected(algorithm, hashlib.sha256(content).hexdigest())
        case Algorithm.GIT_BLOB:
            return Expected(algorithm, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
        case Algorithm.MD5:
            return Expected(algorithm, md5(content).hex())
        case Algorithm.MD5_OF_PARTS:
            parts = [content[i : i + part_bytes] for i in range(0, len(content), part_bytes)]
            whole = md5(b"".join(md5(part) for part in parts)).hex()
            return Expected(algorithm, f"{whole}-{len(parts)}", part_bytes)


def hashed(content: bytes, promise: Expected | None, chunk: int = 3) -> ContentHash:
    content_hash = ContentHash(len(content), promise)
    for start in range(0, len(content), chunk):
        content_hash.update(content[start : start + chunk])
    return content_hash


@pytest.mark.parametrize("algorithm", Algorithm)
@given(content=st.binary(max_size=40), chunk=st.integers(1, 50))
def test_the_right_content_passes_however_it_is_cut(algorithm: Algorithm, content: bytes, chunk: int) -> None:
    assert hashed(content, expected(algorithm, content), chunk).mismatch() is None


@pytest.mark.parametrize("algorithm", Algorithm)
def test_other_content_of_the_same_size_does_not(algorithm: Algorithm) -> None:
    mismatch = hashed(b"0123456789x", expected(algorithm, b"0123456789a")).mismatch()
    assert mismatch is not None
    assert algorithm in mismatch


@given(st.binary(max_size=40))
def test_sha256_is_always_there(content: bytes) -> None:
    assert hashed(content, None).sha256() == hashlib.sha256(content).hexdigest()
    assert hashed(content, expected(Algorithm.MD5, content)).sha256() == hashlib.sha256(content).hexdigest()


def test_a_source_that_vouches_for_nothing_has_no_mismatch() -> None:
    assert hashed(b"anything", None).mismatch() is None
