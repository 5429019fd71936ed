"""What an object store vouches for: only what really is a hash of the content counts."""

import base64

import pytest

from matrixinfer.downloader.core.uri import Bucket
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.s3 import S3Access, S3Source, _Object, expected_of
from matrixinfer.downloader.wire.credentials import Anonymous, Given
from matrixinfer.downloader.wire.sigv4 import Keys

MD5 = "0123456789abcdef" * 2


def expected(part_bytes: int = 8, **headers: str) -> Expected | None:
    return expected_of({name.replace("_", "-"): value for name, value in headers.items()}, 20, lambda: part_bytes)


def base64_of(count: int) -> str:
    return base64.b64encode(bytes(range(count))).decode()


def test_a_sha256_of_the_whole_object_is_the_best() -> None:
    found = expected(x_amz_checksum_sha256=base64_of(32), x_amz_checksum_crc32=base64_of(4), etag=f'"{MD5}"')
    assert found == Expected(Algorithm.SHA256, bytes(range(32)).hex())


@pytest.mark.parametrize(
    ("name", "algorithm", "length"),
    [
        ("crc64nvme", Algorithm.CRC64NVME, 8),
        ("crc32c", Algorithm.CRC32C, 4),
        ("crc32", Algorithm.CRC32, 4),
        ("sha1", Algorithm.SHA1, 20),
    ],
)
def test_a_checksum_of_the_whole_object_goes_before_its_etag(name: str, algorithm: Algorithm, length: int) -> None:
    found = expected(**{f"x_amz_checksum_{name}": base64_of(length)}, etag=f'"{MD5}"')
    assert found == Expected(algorithm, bytes(range(length)).hex())


def test_a_checksum_of_parts_needs_their_size() -> None:
    head = {"x_amz_checksum_sha256": base64_of(32) + "-3", "x_amz_checksum_type": "COMPOSITE", "etag": f'"{MD5}"'}
    assert expected(8, **head) == Expected(Algorithm.SHA256, bytes(range(32)).hex(), 8)
    assert expected(0, **head) == Expected(Algorithm.MD5, MD5)


def test_a_checksum_that_is_no_base64_can_only_fail() -> None:
    found = expected(x_amz_checksum_sha256="?")
    assert found == Expected(Algorithm.SHA256, "?")


def test_an_etag_of_an_object_in_one_part_is_its_md5() -> None:
    assert expected(etag=f'"{MD5}"', x_amz_server_side_encryption="AES256") == Expected(Algorithm.MD5, MD5)


def test_an_etag_of_parts_needs_their_size() -> None:
    assert expected(8, etag=f'"{MD5}-3"') == Expected(Algorithm.MD5, MD5, 8)
    assert expected(0, etag=f'"{MD5}-3"') is None


def test_parts_that_cannot_have_been_equal_are_not_held_against_the_object() -> None:
    assert expected(5, etag=f'"{MD5}-3"') is None


@pytest.mark.parametrize(
    "head",
    [
        {"etag": f'"{MD5}"', "x_amz_server_side_encryption": "aws:kms"},
        {"etag": f'"{MD5}"', "x_amz_server_side_encryption_customer_algorithm": "AES256"},
        {"etag": '"whatever"'},
        {"etag": ""},
        {},
    ],
)
def test_an_etag_that_is_no_md5_is_not_taken_for_one(head: dict[str, str]) -> None:
    assert expected(**head) is None


@pytest.mark.parametrize("key", ["m/x", "m/x/a.json", "m/x/x"])
def test_what_one_process_listed_another_finds(key: str) -> None:
    lists, reads = (S3Source(Bucket("b", "m/x"), S3Access(Anonymous())) for _ in range(2))
    assert reads._key(lists._file(_Object(key, 1, "etag"))) == key


def test_obs_needs_an_endpoint() -> None:
    with pytest.raises(DownloadError, match="ENDPOINT") as caught:
        S3Source(Bucket("b", "", needs_endpoint=True), S3Access(Anonymous()))
    assert caught.value.cause is Cause.BAD_REQUEST


def test_an_endpoint_that_is_no_address_is_refused_without_repeating_keys() -> None:
    access = S3Access(Given(Keys("ak", "topsecret")), endpoint="http://not an address:x")
    with pytest.raises(DownloadError) as caught:
        S3Source(Bucket("b", ""), access)
    assert caught.value.cause is Cause.BAD_REQUEST
    assert "topsecret" not in str(caught.value) + repr(access)
