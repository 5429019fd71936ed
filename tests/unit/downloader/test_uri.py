"""A source URI means exactly one thing, or is refused with the fix."""

import pytest

from matrixinfer.downloader.core.uri import (
    Bucket,
    Claim,
    Folder,
    HubRepo,
    ScopeRepo,
    WebFolder,
    parse,
    without_credentials,
)
from matrixinfer.downloader.errors import Cause, DownloadError


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("hf://Qwen/Qwen3-8B", HubRepo("Qwen/Qwen3-8B", "")),
        ("hf://gpt2", HubRepo("gpt2", "")),
        ("hf://org/name@v1.0", HubRepo("org/name", "v1.0")),
        ("hf://org/name@refs/pr/1", HubRepo("org/name", "refs/pr/1")),
        ("s3://bucket/a/b/", Bucket("bucket", "a/b")),
        ("s3://bucket", Bucket("bucket", "")),
        ("obs://bucket/a", Bucket("bucket", "a", needs_endpoint=True)),
        ("pvc://claim/sub/path", Claim("claim", "sub/path")),
        ("pvc://claim", Claim("claim", "")),
        ("pvc:///claim//sub/", Claim("claim", "sub")),
        ("file:///srv/models", Folder("/srv/models")),
    ],
)
def test_known_forms(uri: str, location: object) -> None:
    assert parse(uri) == location


@pytest.mark.parametrize("uri", ["gs://bucket/x", "org/name", "oci://x", ""])
def test_an_unknown_scheme_is_refused_with_the_known_ones(uri: str) -> None:
    with pytest.raises(
        DownloadError, match=r"hf://, s3://, obs://, ms://, http://, https://, pvc://, file://"
    ) as caught:
        parse(uri)
    assert caught.value.cause is Cause.BAD_REQUEST


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://a/b/c",
        "hf://../x",
        "hf://org/name@",
        "hf://org/name@../../x",
        "hf://org/na me",
        "s3://",
        "s3:///key",
        "pvc://",
        "pvc://Claim_Name/x",
        "pvc://claim/../../etc",
        "file://relative",
        "file:///a/../etc",
        "s3://bucket/a\nb",
    ],
)
def test_forms_that_mean_nothing_are_refused(uri: str) -> None:
    with pytest.raises(DownloadError) as caught:
        parse(uri)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("uri", ["s3://AKIA123:topsecret@bucket/x", "hf://user:topsecret@host/name"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(DownloadError, match="credentials") as caught:
        parse(uri)
    assert "topsecret" not in caught.value.message
    assert "topsecret" not in without_credentials(uri)


@pytest.mark.parametrize("uri", ["hf://name@main", "hf://org/name@main", "s3://bucket/a@b", "file:///x"])
def test_what_is_no_credential_is_shown(uri: str) -> None:
    assert without_credentials(uri) == uri


def test_a_repository_of_modelscope_and_its_revision() -> None:
    assert parse("ms://org/name@v1") == ScopeRepo("org/name", "v1")


def test_a_folder_of_a_web_server() -> None:
    assert parse("https://host:8443/a/b/") == WebFolder("https://host:8443/a/b")


@pytest.mark.parametrize(
    "uri", ["http://", "https:///x", "http://u:p@host/x", "http://host/x?token=1", "http://host/../x"]
)
def test_web_addresses_that_could_mean_anything_are_refused(uri: str) -> None:
    with pytest.raises(DownloadError) as caught:
        parse(uri)
    assert caught.value.cause is Cause.BAD_REQUEST
