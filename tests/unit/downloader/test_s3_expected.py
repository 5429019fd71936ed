"""What an object store vouches for: only what really is a hash of the content counts."""

import base64
from typing import Any

import pytest

from matrixinfer.downloader.core.uri import Bucket
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.s3 import S3Access, S3Source, expected_of

MD5 = "0123456789abcdef" * 2


def expected(part_bytes: int = 8, **head: Any) -> Expected | None:
    return expected_of({"ContentLength": 20, **head}, lambda: part_bytes)


def test_a_sha256_of_the_whole_object_is_the_best() -> None:
    checksum = base64.b64encode(bytes(range(32))).decode()
    assert expected(ChecksumSHA256=checksum, ETag=f'"{MD5}"') == Expected(Algorithm.SHA256, bytes(range(32)).hex())


def test_a_sha256_of_parts_is_not_one_of_the_object() -> None:
    assert expected(ChecksumSHA256="abc-3", ChecksumType="COMPOSITE", ETag=f'"{MD5}"') == Expected(Algorithm.MD5, MD5)


def test_an_etag_of_an_object_in_one_part_is_its_md5() -> None:
    assert expected(ETag=f'"{MD5}"', ServerSideEncryption="AES256") == Expected(Algorithm.MD5, MD5)


def test_an_etag_of_parts_needs_their_size() -> None:
    assert expected(8, ETag=f'"{MD5}-3"') == Expected(Algorithm.MD5_OF_PARTS, f"{MD5}-3", 8)
    assert expected(0, ETag=f'"{MD5}-3"') is None


def test_parts_that_cannot_have_been_equal_are_not_held_against_the_object() -> None:
    assert expected(5, ETag=f'"{MD5}-3"') is None


@pytest.mark.parametrize(
    "head",
    [
        {"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms"},
        {"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"},
        {"ETag": '"whatever"'},
        {"ETag": ""},
        {},
    ],
)
def test_an_etag_that_is_no_md5_is_not_taken_for_one(head: dict[str, Any]) -> None:
    assert expected(**head) is None


def test_obs_needs_an_endpoint() -> None:
    with pytest.raises(DownloadError, match="ENDPOINT") as caught:
        S3Source(Bucket("b", "", needs_endpoint=True), S3Access())
    assert caught.value.cause is Cause.BAD_REQUEST


def test_an_endpoint_that_is_no_address_is_refused_without_repeating_keys() -> None:
    access = S3Access(endpoint="not an address", access_key="ak", secret_key="topsecret")
    with pytest.raises(DownloadError) as caught:
        S3Source(Bucket("b", ""), access)
    assert caught.value.cause is Cause.BAD_REQUEST
    assert "topsecret" not in str(caught.value) + repr(access)
