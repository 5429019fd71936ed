"""`hf://` with the real huggingface_hub client against a hub on loopback that speaks its protocol, rightly or not.

The hub here answers what the client asks for in `repo_info`, `list_repo_tree` and when files are read: hashes, pages,
redirects of large files to another host, error headers. The test names say what it does wrong.
"""

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from matrixinfer.downloader.app import open_source
from matrixinfer.downloader.core.manifest import Ready
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.uri import parse
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.fetch import Limits, Tools, fetch
from matrixinfer.downloader.settings import DownloaderSettings

COMMIT = "c0ffee" * 6 + "c0ff"
MOVED = "decade" * 6 + "deca"
WEIGHTS = random.Random(3).randbytes(300_000)
MODEL = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same weights again",
    "sub/tokenizer.json": b"{}",
}
TOKEN = "hf_" + "s3cr3t" * 5
PAGE = 2
LIMITS = Limits(part_bytes=1 << 16, connections=4, tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)

Fault = Callable[["HubHandler", str], bool]
"""Answers a request in place of the hub, or returns False to let it."""


class Hub(ThreadingHTTPServer):
    """One repository, `org/tiny`, with a branch and a tag."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = dict(MODEL)
        self.promised = dict(MODEL)
        """What the tree says; other than `files` when the hub lies."""
        self.head = COMMIT
        self.token = ""
        self.gated = False
        self.faults: dict[str, Fault] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorized_hosts: set[str] = set()

    def handle_error(self, *_: object) -> None:
        """A client that left is part of what is tested."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another origin, as a hub's storage is."""
        return f"http://127.0.0.2:{self.other_port}"

    other_port = 0


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    @property
    def hub(self) -> Hub:
        return self.server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path))
        if self.headers.get("Authorization"):
            self.hub.authorized_hosts.add(self.headers["Host"].split(":")[0])
        for prefix, fault in self.hub.faults.items():
            if path.startswith(prefix) and fault(self, path):
                return
        if path.startswith("/storage/"):
            self.send_file(path.removeprefix("/storage/"))
        elif self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")
        elif not path.startswith(("/api/models/org/tiny", "/org/tiny/")):
            self.refuse(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        elif self.hub.gated:
            self.refuse(HTTPStatus.FORBIDDEN, "GatedRepo", "Access to this model is restricted")
        elif path.startswith("/api/models/org/tiny/tree/"):
            self.send_tree(parse_qs(url.query))
        elif path.startswith("/api/models/org/tiny"):
            self.send_info(path)
        else:
            self.resolve(path.removeprefix("/org/tiny/resolve/"))

    def send_info(self, path: str) -> None:
        revision = path.removeprefix("/api/models/org/tiny").removeprefix("/revision/") or "main"
        commits = {"main": self.hub.head, "v1": COMMIT, COMMIT: COMMIT, MOVED: MOVED}
        if revision not in commits:
            self.refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", "Invalid rev id")
            return
        info = {"_id": "1", "id": "org/tiny", "modelId": "org/tiny", "sha": commits[revision], "siblings": []}
        self.send_json(info)

    def send_tree(self, query: dict[str, list[str]]) -> None:
        start = int(query.get("cursor", ["0"])[0])
        paths = sorted(self.hub.promised)
        entries = [self.entry(path, self.hub.promised[path]) for path in paths[start : start + PAGE]]
        folders = [{"type": "directory", "path": "sub", "oid": "0" * 40, "size": 0}] if start == 0 else []
        links = {}
        if start + PAGE < len(paths):
            here = self.path.split("?")[0]
            links["Link"] = f'<{self.hub.endpoint}{here}?recursive=true&cursor={start + PAGE}>; rel="next"'
        self.send_json(folders + entries, links)

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if len(content) > 1000:
            sha256 = hashlib.sha256(content).hexdigest()
            entry |= {"oid": "1" * 40, "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
            entry["xetHash"] = "0" * 64
        return entry

    def resolve(self, rest: str) -> None:
        commit, _, path = rest.partition("/")
        if commit not in (COMMIT, MOVED) or path not in self.hub.files:
            self.refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        elif len(self.hub.files[path]) > 1000:
            self.send_head(HTTPStatus.FOUND, 0, {"Location": f"{self.hub.elsewhere}/storage/{path}"})
        else:
            self.send_file(path)

    def send_file(self, path: str, *, ranges: bool = True, length: int | None = None) -> None:
        content = self.hub.files[path]
        status, extra = HTTPStatus.OK, {"ETag": '"x"'}
        if ranges and (asked := self.headers.get("Range")):
            first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            if first >= len(content):
                self.send_head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, {})
                return
            extra["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            status, content = HTTPStatus.PARTIAL_CONTENT, content[first : last + 1]
        self.send_head(status, len(content), extra)
        if self.command == "GET":
            self.wfile.write(content if length is None else content[:length])
        if length is not None:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def send_json(self, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_head(HTTPStatus.OK, len(body), {"Content-Type": "application/json", **(headers or {})})
        self.wfile.write(body)

    def refuse(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        self.send_head(status, 0, {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def send_head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    elsewhere = ThreadingHTTPServer(("127.0.0.2", 0), type("Storage", (HubHandler,), {"hub": hub}))
    elsewhere.daemon_threads = True
    elsewhere.handle_error = hub.handle_error
    hub.other_port = elsewhere.server_port
    servers = (hub, elsewhere)
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


async def test_a_gated_repository_is_access_denied(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    assert (await failed(hub, tmp_path / "m", token=TOKEN)).cause is Cause.ACCESS_DENIED


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
    answers = iter([status] * 4)

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


async def test_the_next_run_fetches_only_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    answered = iter(range(3))

    def three_only(handler: HubHandler, path: str) -> bool:
        if next(answered, None) is not None:
            return False
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
