"""Every way to the keys of an object store, and every way in which they can be wrong, against a strict store."""

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
from tests.integration.downloader_cloud import DOMAIN, REGION, ROLE, Cloud, Grant
from tests.integration.downloader_forks import Fork

from matrixinfer.downloader.app import open_source
from matrixinfer.downloader.core.manifest import Ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.uri import parse
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.downloader.wire.credentials import Found

PART = 1 << 16
MODEL = {
    "m/a b+c.json": b"{}",
    "m/d.json": b"[]",
    "m/sub/e.txt": b"e",
    "m/model.safetensors": random.Random(5).randbytes(6 * PART),
}
TOTAL = sum(map(len, MODEL.values()))
LIMITS = Limits(part_bytes=PART, connections=1, tries=2, first_wait_seconds=0.001, longest_wait_seconds=0.01)
STATIC = {"access_key": "static", "secret_key": "s3cr3t"}


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud(MODEL) as cloud:
        cloud.grants["static"] = Grant("s3cr3t")
        yield cloud


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys but those that a test gives, and nobody asked outside of loopback."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


async def fetched(cloud: Cloud, output: Path, uri: str = "s3://models/m", **settings: str) -> Ready:
    given = {"endpoint": cloud.url, "region": REGION, "connect_seconds": 2, "read_seconds": 5, **settings}
    opened = partial(
        open_source, parse(uri), DownloaderSettings.model_validate(given, by_name=True), recorded_revision=""
    )
    made = Tools(pod="p-0", now=lambda: datetime(2026, 11, 24, tzinfo=UTC), monotonic=monotonic)
    ready = await fetch(Request(uri, output), opened, LIMITS, made)
    assert {f"m/{f.path}": (output / f.path).read_bytes() for f in ready.files} == MODEL
    return ready


async def failed(cloud: Cloud, output: Path, uri: str = "s3://models/m", **settings: str) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await fetched(cloud, output, uri, **settings)
    assert not (output / "READY").exists()
    assert "s3cr3t" not in caught.value.message
    return caught.value


@pytest.fixture
def web_identity(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What a cluster gives a pod whose service account may assume a role; returns the file of the token."""
    token = tmp_path / "token"
    token.write_text(cloud.identity)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
    return token


@pytest.mark.parametrize("revoked_after", [None, 60], ids=["for an hour", "ended by the store"])
def test_one_process_looks_for_the_keys_of_all_workers(
    cloud: Cloud, web_identity: Path, tmp_path: Path, revoked_after: int | None
) -> None:
    cloud.objects = {**MODEL, **{f"m/{index:03}.json": b"{}" for index in range(140)}}
    cloud.revoke_after_reads = revoked_after
    settings = {
        "PROCESSES": "2",
        "CONNECTIONS": "4",
        "ADMIN_HOST": "127.0.0.1",
        "ADMIN_PORT": "0",
        "RESERVE_BYTES": "0",
    }
    environ = {f"MATRIXINFER_DOWNLOADER_{name}": value for name, value in settings.items()}
    arguments = ["fetch", "--source", "s3://models/m", "--output", str(tmp_path / "m")]
    download = Fork(arguments, {**os.environ, **environ, "ENDPOINT": cloud.url, "AWS_REGION": REGION})
    log = [json.loads(line) for line in download.output.read().splitlines()]
    assert download.end() == 0, log
    assert [line["processes"] for line in log if line["event"] == "work_shared"] == [2]
    assert "worker_lost" not in {line["event"] for line in log}
    assert {f"m/{path.relative_to(tmp_path / 'm')}" for path in (tmp_path / "m").rglob("*.*")} == set(cloud.objects)
    assert cloud.asked["sts"] == (1 if revoked_after is None else 2)


async def test_keys_that_were_given_sign(cloud: Cloud, tmp_path: Path) -> None:
    await fetched(cloud, tmp_path / "m", **STATIC)


async def test_obs_is_the_same_store(cloud: Cloud, tmp_path: Path) -> None:
    await fetched(cloud, tmp_path / "m", "obs://models/m", **STATIC)


async def test_a_session_token_goes_along_and_is_signed(cloud: Cloud, tmp_path: Path) -> None:
    cloud.grants["session"] = Grant("s3cr3t", "the-token")
    await fetched(cloud, tmp_path / "m", access_key="session", secret_key="s3cr3t", session_token="the-token")


@pytest.mark.parametrize(
    "settings", [{}, {**STATIC, "anonymous": "true"}], ids=["no keys", "keys that shall not be used"]
)
async def test_a_public_bucket_is_read_without_a_signature(
    cloud: Cloud, tmp_path: Path, settings: dict[str, str]
) -> None:
    cloud.is_public = True
    cloud.grants.clear()
    await fetched(cloud, tmp_path / "m", **settings)


async def test_the_bucket_stands_in_the_host_and_the_host_is_signed(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", cloud.url)
    await fetched(cloud, tmp_path / "m", endpoint=f"http://{DOMAIN}", addressing="virtual", **STATIC)
    assert cloud.hosts == {f"models.{DOMAIN}"}


async def test_a_store_of_ones_own_has_the_bucket_in_the_path(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", cloud.url)
    await fetched(cloud, tmp_path / "m", endpoint=f"http://{DOMAIN}", **STATIC)
    assert cloud.hosts == {DOMAIN}


async def test_the_region_that_the_store_names_is_signed_for(cloud: Cloud, tmp_path: Path) -> None:
    await fetched(cloud, tmp_path / "m", region="", **STATIC)


async def test_a_service_account_assumes_its_role(cloud: Cloud, web_identity: Path, tmp_path: Path) -> None:
    await fetched(cloud, tmp_path / "m")
    assert cloud.asked["sts"] == 1


async def test_keys_near_their_end_are_renewed_with_the_token_of_the_moment(
    cloud: Cloud, web_identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.lifetime = timedelta(minutes=5)
    given = cloud.new_keys

    def rotated(place: str) -> dict[str, str]:
        cloud.identity = f"identity-{len(cloud.grants) + 1}"
        web_identity.write_text(cloud.identity)
        return given(place)

    monkeypatch.setattr(cloud, "new_keys", rotated)
    await fetched(cloud, tmp_path / "m")
    assert cloud.asked["sts"] >= 3
    assert cloud.read_bytes == TOTAL


@pytest.mark.parametrize("reads", [1, 3])
async def test_keys_that_end_before_their_time_are_renewed_without_losing_bytes(
    cloud: Cloud, web_identity: Path, tmp_path: Path, reads: int
) -> None:
    cloud.revoke_after_reads = reads
    await fetched(cloud, tmp_path / "m")
    assert cloud.asked["sts"] == 2
    assert cloud.read_bytes == TOTAL


def test_many_connections_that_are_refused_at_once_renew_once(cloud: Cloud, web_identity: Path) -> None:
    found = Found(REGION)
    refused = found.keys()
    assert refused is not None
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda _: found.renewed(refused), range(8)))
    assert found.keys() != refused
    assert cloud.asked["sts"] == 2


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ((403, "AccessDenied"), 10, "AWS_ROLE_ARN"),
        ((400, "ExpiredTokenException"), 10, "ExpiredTokenException"),
        ((400, "IDPCommunicationError"), 14, "token service"),
    ],
)
async def test_a_role_that_cannot_be_assumed_is_told(
    cloud: Cloud,
    web_identity: Path,
    tmp_path: Path,
    error: tuple[int, str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    cloud.sts_error = error
    refused = await failed(cloud, tmp_path / "m")
    assert refused.exit_code == code
    assert words in refused.message


async def test_a_token_file_that_is_not_there_is_told(
    cloud: Cloud, web_identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", f"{web_identity}-of-another-pod")
    error = await failed(cloud, tmp_path / "m")
    assert (error.exit_code, "AWS_WEB_IDENTITY_TOKEN_FILE" in error.message) == (10, True)


async def test_a_token_service_that_is_away_is_unreachable(
    cloud: Cloud, web_identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    assert (await failed(cloud, tmp_path / "m")).exit_code == 14


@pytest.fixture
def instance(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", cloud.url)
    return cloud


async def test_an_instance_has_a_role_and_is_asked_with_a_token(instance: Cloud, tmp_path: Path) -> None:
    await fetched(instance, tmp_path / "m")
    assert instance.asked["imds-token"] >= 1


async def test_an_instance_of_the_older_kind_is_asked_without_a_token(instance: Cloud, tmp_path: Path) -> None:
    instance.has_imds_v2 = False
    await fetched(instance, tmp_path / "m")
    assert instance.asked["imds"] >= 1


async def test_the_older_kind_can_be_forbidden(
    instance: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.has_imds_v2 = False
    monkeypatch.setenv("AWS_EC2_METADATA_V1_DISABLED", "true")
    error = await failed(instance, tmp_path / "m")
    assert (error.exit_code, "give the pod a role" in error.message) == (10, True)
    assert "imds" not in instance.asked


@pytest.fixture
def pod_identity(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    token = tmp_path / "pod-token"
    token.write_text(cloud.identity)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{cloud.url}/pod-identity")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    return token


async def test_an_agent_on_the_node_gives_the_pod_its_keys(cloud: Cloud, pod_identity: Path, tmp_path: Path) -> None:
    await fetched(cloud, tmp_path / "m")
    assert cloud.asked["pod-identity"] == 1


async def test_an_agent_that_refuses_is_told(
    cloud: Cloud, pod_identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    cloud.identity = "somebody else"
    error = await failed(cloud, tmp_path / "m")
    assert (error.exit_code, "ACCESS_KEY" in error.message) == (10, True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no credentials were found"),
        ({"access_key": "static"}, "only one of"),
        ({"access_key": "unknown", "secret_key": "s3cr3t"}, "does not know the access key"),
        ({"access_key": "static", "secret_key": "s3cr3t-not"}, "does not fit the access key"),
        ({**STATIC, "session_token": "old"}, "AWS_SESSION_TOKEN"),
    ],
)
async def test_keys_that_cannot_work_end_it_with_the_fix(
    cloud: Cloud, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    error = await failed(cloud, tmp_path / "m", **settings)
    assert error.cause is Cause.ACCESS_DENIED
    assert words in error.message
    assert cloud.read_bytes == 0


async def test_a_clock_that_is_wrong_is_called_so(cloud: Cloud, tmp_path: Path) -> None:
    cloud.skew = timedelta(hours=2)
    error = await failed(cloud, tmp_path / "m", **STATIC)
    assert error.cause is Cause.ACCESS_DENIED
    assert "clock of this node is 7" in error.message
    assert "behind the store's" in error.message


async def test_who_may_list_but_not_read_is_told_what_is_missing(cloud: Cloud, tmp_path: Path) -> None:
    cloud.may_read = False
    error = await failed(cloud, tmp_path / "m", **STATIC)
    assert (error.exit_code, "s3:GetObject" in error.message) == (10, True)


async def test_a_bucket_that_is_not_there_is_not_found(cloud: Cloud, tmp_path: Path) -> None:
    error = await failed(cloud, tmp_path / "m", "s3://other/m", **STATIC)
    assert (error.exit_code, "no such bucket" in error.message) == (11, True)
