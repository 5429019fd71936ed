"""Content is compared with what the source vouches for, however it was computed and however it arrives."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.verify import Algorithm, ContentHash, Expected


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def plain(algorithm: Algorithm, content: bytes) -> bytes:
    """The checksum by another way than the one under test, where there is one."""
    match algorithm:
        case Algorithm.SHA256:
            return hashlib.sha256(content).digest()
        case Algorithm.SHA1:
            return hashlib.sha1(content).digest()
        case Algorithm.GIT_BLOB:
            return hashlib.sha1(b"blob %d\0" % len(content) + content).digest()
        case Algorithm.MD5:
            return md5(content)
        case Algorithm.CRC32:
            return reflected_crc(content, 32, 0xEDB88320)
        case Algorithm.CRC32C:
            return reflected_crc(content, 32, 0x82F63B78)
        case Algorithm.CRC64NVME:
            return reflected_crc(content, 64, 0x9A6C9329AC4BC9B5)


def reflected_crc(content: bytes, bits: int, polynomial: int) -> bytes:
    """A cyclic redundancy check bit by bit, as its definition says."""
    mask = (1 << bits) - 1
    value = mask
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
    return (value ^ mask).to_bytes(bits // 8, "big")


def expected(algorithm: Algorithm, content: bytes) -> Expected:
    return Expected(algorithm, plain(algorithm, content).hex())


def of_parts(algorithm: Algorithm, content: bytes, part_bytes: int) -> Expected:
    parts = [content[i : i + part_bytes] for i in range(0, len(content), part_bytes)]
    whole = plain(algorithm, b"".join(plain(algorithm, part) for part in parts))
    return Expected(algorithm, whole.hex(), part_bytes)


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


@pytest.mark.parametrize("algorithm", sorted(set(Algorithm) - {Algorithm.GIT_BLOB}))
@given(content=st.binary(max_size=40), chunk=st.integers(1, 50), part_bytes=st.integers(1, 12))
def test_a_hash_of_parts_is_made_the_way_the_store_does(
    algorithm: Algorithm, content: bytes, chunk: int, part_bytes: int
) -> None:
    assert hashed(content, of_parts(algorithm, content, part_bytes), chunk).mismatch() is None
    assert hashed(content + b"x", of_parts(algorithm, content, part_bytes), chunk).mismatch() is not None


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_copy_goes_on_by_itself(algorithm: Algorithm) -> None:
    first = hashed(b"01234", expected(algorithm, b"0123456789"))
    copy = first.copy()
    first.update(b"wrong")
    copy.update(b"56789")
    assert (copy.sha256(), first.mismatch() is None) == (hashlib.sha256(b"0123456789").hexdigest(), False)
    if algorithm is not Algorithm.GIT_BLOB:
        assert copy.mismatch() is None


@given(st.binary(max_size=40))
def test_sha256_is_always_there(content: bytes) -> None:
    assert hashed(content, None).sha256() == hashlib.sha256(content).hexdigest()
    assert hashed(content, expected(Algorithm.MD5, content)).sha256() == hashlib.sha256(content).hexdigest()


def test_a_source_that_vouches_for_nothing_has_no_mismatch() -> None:
    assert hashed(b"anything", None).mismatch() is None
