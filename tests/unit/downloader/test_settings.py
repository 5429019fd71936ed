"""Credentials are found under the names of each store's tools and under the older ones, and never shown."""

import pytest

from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.service.settings import SettingsError, load

NAMES = (
    "ENDPOINT AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 ACCESS_KEY SECRET_KEY AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY "
    "AWS_SESSION_TOKEN HF_TOKEN HF_AUTH_TOKEN HF_ENDPOINT HF_REVISION"
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES.split():
        monkeypatch.delenv(name, raising=False)


def test_the_older_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT": "http://s", "ACCESS_KEY": "ak", "SECRET_KEY": "sk", "HF_AUTH_TOKEN": "t"}.items():
        monkeypatch.setenv(name, value)
    settings = load(DownloaderSettings)
    assert (settings.endpoint, settings.secrets) == ("http://s", ("ak", "sk", "t"))


def test_the_names_of_the_stores_own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, name.lower())
    settings = load(DownloaderSettings)
    assert settings.endpoint == "aws_endpoint_url"
    assert settings.secrets == ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "hf_token")


def test_an_empty_endpoint_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDPOINT", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other")
    assert load(DownloaderSettings).endpoint == "http://other"


def test_no_secret_is_in_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "topsecret")
    settings = load(DownloaderSettings)
    assert "topsecret" not in repr(settings)
    assert "topsecret" not in str(settings.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("given", "name", "fix"),
    [
        ({"PEERS": "peers"}, "POD_IP", "status.podIP"),
        ({"PEER_TOKEN": "short"}, "MATRIXINFER_DOWNLOADER_PEER_TOKEN", "openssl rand -hex 32"),
        ({"PEER_CHECKSUMS": "none"}, "MATRIXINFER_DOWNLOADER_PEER_CHECKSUMS", "'strong' or 'any'"),
    ],
)
def test_settings_of_sharing_that_cannot_work_are_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str, fix: str
) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(f"MATRIXINFER_DOWNLOADER_{variable}", value)
    with pytest.raises(SettingsError) as caught:
        load(DownloaderSettings)
    assert name in str(caught.value)
    assert fix in str(caught.value)
    assert "short" not in str(caught.value).replace(name, "")
