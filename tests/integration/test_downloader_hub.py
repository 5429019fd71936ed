"""`hf://` with the real huggingface_hub client against a hub on loopback; the test names say what it does wrong."""

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic

import pytest
from huggingface_hub import hf_hub_url
from tests.integration.downloader_forks import Fork
from tests.integration.downloader_hub import COMMIT, MODEL, MOVED, WEIGHTS, Hub, HubHandler, storage_of

from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.downloader.app import open_source
from matrixinfer.downloader.core.manifest import Ready, parse_ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.uri import HubRepo, parse
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.downloader.sources.hubfiles import HubAccess, HubFiles

TOKEN = "hf_" + "s3cr3t" * 5
LIMITS = Limits(part_bytes=1 << 16, connections=4, tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    servers = (hub, storage_of(hub, "127.0.0.2"))
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


def tools() -> Tools:
    return Tools(pod="p-0", now=lambda: datetime(2026, 11, 24, tzinfo=UTC), monotonic=monotonic)


async def fetched(hub: Hub, output: Path, uri: str = "hf://org/tiny", *, token: str = "", recorded: str = "") -> Ready:
    settings = DownloaderSettings.model_validate(
        {
            "hf_endpoint": hub.endpoint,
            "hf_token": token,
            "connect_seconds": 2,
            "read_seconds": 2,
            "connections": 4,
            "redirect_hosts": ["127.0.0.2"],
        }
    )
    opened = partial(open_source, parse(uri), settings, recorded_revision=recorded)
    return await fetch(Request(uri, output), opened, LIMITS, tools())


async def failed(hub: Hub, output: Path, uri: str = "hf://org/tiny", **options: str) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await fetched(hub, output, uri, **options)
    assert not (output / "READY").exists()
    assert TOKEN not in caught.value.message
    return caught.value


def reads(hub: Hub) -> list[str]:
    return [path for _, path in hub.requests if "/resolve/" in path or path.startswith("/storage/")]


async def test_a_repository_arrives_whole_and_pinned_to_a_commit(hub: Hub, tmp_path: Path) -> None:
    ready = await fetched(hub, tmp_path / "m")
    assert ready.resolved_revision == COMMIT
    assert {f.path for f in ready.files} == {"config.json", "model.safetensors", "sub/tokenizer.json"}
    assert all((tmp_path / "m" / f.path).read_bytes() == MODEL[f.path] for f in ready.files)
    assert not any("/main/" in path for path in reads(hub))


def test_workers_read_the_commit_that_was_listed(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    hub.files |= {f"more/{index:03} ä.json": b"{}" for index in range(140)}
    hub.promised = dict(hub.files)
    settings = {"PROCESSES": "2", "ADMIN_HOST": "127.0.0.1", "ADMIN_PORT": "0", "REDIRECT_HOSTS": '["127.0.0.2"]'}
    environ = {f"MATRIXINFER_DOWNLOADER_{name}": value for name, value in settings.items()}
    arguments = ["fetch", "--source", "hf://org/tiny", "--output", str(tmp_path / "m"), "--include", "*"]
    download = Fork(arguments, {**os.environ, **environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN})
    log = [json.loads(line) for line in download.output.read().splitlines()]
    assert download.end() == 0, log
    assert [line["processes"] for line in log if line["event"] == "work_shared"] == [2]
    assert "worker_lost" not in {line["event"] for line in log}
    ready = parse_ready((tmp_path / "m" / "READY").read_bytes())
    assert ready is not None
    assert {f.path: (tmp_path / "m" / f.path).read_bytes() for f in ready.files} == hub.files
    assert ready.resolved_revision == COMMIT


@pytest.mark.parametrize("path", ["a b/ä+%.json", "x?y#z.bin", "deep/er/model.safetensors"])
def test_a_file_is_where_the_client_would_look_for_it(path: str) -> None:
    url = hf_hub_url("org/tiny", path, revision=COMMIT, endpoint="http://hub.test")
    assert HubFiles(HubRepo("org/tiny", COMMIT), HubAccess(endpoint="http://hub.test/")).url_of(path) == url


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
async def test_a_revision_may_be_named(hub: Hub, tmp_path: Path, revision: str) -> None:
    assert (await fetched(hub, tmp_path / "m", f"hf://org/tiny@{revision}")).resolved_revision == COMMIT


async def test_the_recorded_commit_is_fetched_although_the_branch_moved(hub: Hub, tmp_path: Path) -> None:
    hub.head = MOVED
    assert (await fetched(hub, tmp_path / "m", recorded=COMMIT)).resolved_revision == COMMIT


async def test_a_token_reaches_the_hub_and_no_other_host(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    await fetched(hub, tmp_path / "m", token=TOKEN)
    assert hub.authorized_hosts == {"127.0.0.1"}
    assert any(path.startswith("/storage/") for path in reads(hub))


async def test_without_a_token_a_private_repository_is_access_denied(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    error = await failed(hub, tmp_path / "m")
    assert error.exit_code == 10
    assert "HF_TOKEN" in error.message


async def test_a_wrong_token_is_access_denied(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_another"
    assert (await failed(hub, tmp_path / "m", token=TOKEN)).cause is Cause.ACCESS_DENIED


@pytest.mark.parametrize("token", ["", TOKEN])
async def test_a_gated_repository_is_access_denied_and_the_way_in_is_told(hub: Hub, tmp_path: Path, token: str) -> None:
    hub.gated = True
    error = await failed(hub, tmp_path / "m", token=token)
    assert error.cause is Cause.ACCESS_DENIED
    assert "ask for access" in error.message
    assert "HF_TOKEN" in error.message


async def test_a_gated_repository_that_may_be_listed_is_access_denied_too(hub: Hub, tmp_path: Path) -> None:
    def gated(handler: HubHandler, _path: str) -> bool:
        handler.refuse(HTTPStatus.FORBIDDEN, "GatedRepo", "Access to this model is restricted")
        return True

    hub.faults["/org/tiny/resolve/"] = gated
    error = await failed(hub, tmp_path / "m", token=TOKEN)
    assert (error.exit_code, "ask for access" in error.message) == (10, True)


async def test_a_disabled_repository_is_access_denied(hub: Hub, tmp_path: Path) -> None:
    def disabled(handler: HubHandler, _path: str) -> bool:
        handler.refuse(HTTPStatus.FORBIDDEN, "DisabledRepo", "Access to this resource is disabled")
        return True

    hub.faults["/api/"] = disabled
    error = await failed(hub, tmp_path / "m", token=TOKEN)
    assert (error.exit_code, "disabled" in error.message) == (10, True)


async def test_an_unknown_repository_is_not_found(hub: Hub, tmp_path: Path) -> None:
    assert (await failed(hub, tmp_path / "m", "hf://org/other")).exit_code == 11


async def test_an_unknown_revision_is_not_found_and_the_repository_is_not_blamed(hub: Hub, tmp_path: Path) -> None:
    error = await failed(hub, tmp_path / "m", "hf://org/tiny@v9")
    assert error.cause is Cause.NOT_FOUND
    assert "not this revision" in error.message


async def test_a_hub_that_is_not_there_is_unreachable_and_not_success(hub: Hub, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    assert (await failed(hub, tmp_path / "m")).exit_code == 14


async def test_an_endpoint_that_is_no_hub_is_unreachable(hub: Hub, tmp_path: Path) -> None:
    def hello(handler: HubHandler, _path: str) -> bool:
        handler.send_head(HTTPStatus.OK, 5, {"Content-Type": "text/html"})
        handler.wfile.write(b"hello")
        return True

    hub.faults["/api/"] = hello
    error = await failed(hub, tmp_path / "m")
    assert error.cause is Cause.UNREACHABLE
    assert "protocol" in error.message


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
async def test_other_bytes_of_the_same_size_are_refused(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.files[path] = bytes(len(MODEL[path]))
    error = await failed(hub, tmp_path / "m")
    assert error.exit_code == 13
    assert path in error.message


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("change", [-1, 1])
async def test_a_file_of_another_size_is_refused(hub: Hub, tmp_path: Path, path: str, change: int) -> None:
    hub.files[path] = (MODEL[path] + b"x")[: len(MODEL[path]) + change]
    assert (await failed(hub, tmp_path / "m")).exit_code == 13


async def test_a_file_that_the_tree_lists_and_the_hub_has_not_is_not_found(hub: Hub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    assert (await failed(hub, tmp_path / "m")).cause is Cause.NOT_FOUND


async def test_bodies_that_break_off_are_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    cuts = iter([1000] * 5)

    def cut(handler: HubHandler, path: str) -> bool:
        length = next(cuts, None)
        if length is not None:
            handler.send_file(path.removeprefix("/storage/"), length=length)
        return length is not None

    hub.faults["/storage/"] = cut
    await fetched(hub, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


async def test_bodies_that_always_break_off_at_once_end_it(hub: Hub, tmp_path: Path) -> None:
    def cut(handler: HubHandler, path: str) -> bool:
        handler.send_file(path.removeprefix("/storage/"), length=0)
        return True

    hub.faults["/storage/"] = cut
    assert (await failed(hub, tmp_path / "m")).exit_code == 14


@pytest.mark.parametrize("status", [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY])
async def test_a_hub_that_is_busy_for_a_while_is_waited_for(hub: Hub, tmp_path: Path, status: HTTPStatus) -> None:
    # One connection may get them all, and it has three tries.
    answers = iter([status] * 2)

    def busy(handler: HubHandler, _path: str) -> bool:
        if (answer := next(answers, None)) is not None:
            handler.refuse(answer, "", "busy", **{"Retry-After": "0"})
        return answer is not None

    hub.faults["/storage/"] = busy
    await fetched(hub, tmp_path / "m")


async def test_a_hub_without_ranges_still_serves_every_byte(hub: Hub, tmp_path: Path) -> None:
    def whole(handler: HubHandler, path: str) -> bool:
        handler.send_file(path.removeprefix("/storage/"), ranges=False)
        return True

    hub.faults["/storage/"] = whole
    await fetched(hub, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_silent_hub_is_given_up_after_its_deadline(hub: Hub, tmp_path: Path) -> None:
    released = threading.Event()

    def silent(_handler: HubHandler, _path: str) -> bool:
        released.wait(20)
        return False

    hub.faults["/storage/"] = silent
    settings = DownloaderSettings.model_validate(
        {"hf_endpoint": hub.endpoint, "read_seconds": 0.1, "redirect_hosts": ["127.0.0.2"]}
    )
    opened = partial(open_source, parse("hf://org/tiny"), settings, recorded_revision="")
    with pytest.raises(DownloadError) as caught:
        await fetch(Request("hf://org/tiny", tmp_path / "m"), opened, LIMITS, tools())
    released.set()
    assert caught.value.exit_code == 14


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
async def test_a_tree_with_names_that_leave_the_folder_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.promised[name] = hub.files[name] = b"evil"
    assert (await failed(hub, tmp_path / "m")).cause is Cause.UNSAFE_PATH
    assert reads(hub) == []


def is_begun(journal: bytes) -> bool:
    """Whether this is the journal of the large file, and has a part beside its head."""
    return b"model.safetensors" in journal and journal.count(b"\n") > 1


async def test_the_next_run_fetches_only_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    answered, journal = iter(range(3)), tmp_path / ".matrixinfer-m" / "journal"

    def three_only(handler: HubHandler, path: str) -> bool:
        if next(answered, None) is not None:
            return False
        # A refusal ends the run, and what is on its way then comes again.
        wait_for("a part", lambda: any(is_begun(note.read_bytes()) for note in journal.glob("*")), 20)
        handler.refuse(HTTPStatus.FORBIDDEN, "", "expired")
        return True

    hub.faults["/storage/"] = three_only
    await failed(hub, tmp_path / "m")
    hub.faults.clear()
    before = len([p for p in reads(hub) if p.startswith("/storage/")])
    await fetched(hub, tmp_path / "m")
    after = [p for p in reads(hub) if p.startswith("/storage/")]
    assert len(after) - before < 5
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


async def test_published_means_no_request_at_all(hub: Hub, tmp_path: Path) -> None:
    await fetched(hub, tmp_path / "m")
    hub.requests.clear()
    await fetched(hub, tmp_path / "m")
    assert hub.requests == []


async def test_a_hub_that_leads_elsewhere_than_allowed_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    settings = DownloaderSettings.model_validate({"hf_endpoint": hub.endpoint})
    opened = partial(open_source, parse("hf://org/tiny"), settings, recorded_revision="")
    with pytest.raises(DownloadError) as caught:
        await fetch(Request("hf://org/tiny", tmp_path / "m"), opened, LIMITS, tools())
    assert (caught.value.cause, caught.value.exit_code) == (Cause.REDIRECT_REFUSED, 17)
    assert not any(path.startswith("/storage/") for _, path in hub.requests)
