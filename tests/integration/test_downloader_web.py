"""`http://` and `ms://` against a server on loopback that answers rightly, wrongly, or sends us elsewhere."""

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from matrixinfer.downloader.app import open_source
from matrixinfer.downloader.core.manifest import Ready, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.uri import parse
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.settings import DownloaderSettings

FILES = {"config.json": b"{}", "sub/w 1.safetensors": random.Random(4).randbytes(200_000)}
LIMITS = Limits(part_bytes=1 << 15, connections=3, tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)

Fault = Callable[["Handler"], bool]


class Server(ThreadingHTTPServer):
    """A web server and a ModelScope; `documents` are what lies beside the files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.documents: dict[str, bytes] = {}
        self.fault: Fault = lambda _: False
        self.seen: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that left is part of what is tested."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        secret = self.headers.get("Authorization", "") + self.headers.get("Cookie", "")
        self.server.seen.append((unquote(url.path), secret))
        if self.server.fault(self):
            return
        path, query = unquote(url.path).removeprefix("/models/m/"), parse_qs(url.query)
        if url.path.startswith("/api/v1/models/org/m/repo/files"):
            self.answer(200, json.dumps({"Data": {"Files": self.scope_rows()}}).encode())
        elif url.path.startswith("/api/v1/models/org/m/repo"):
            self.send_file(query["FilePath"][0])
        elif path in self.server.documents:
            self.answer(200, self.server.documents[path])
        elif path in self.server.files:
            self.send_file(path)
        else:
            self.answer(404, b"")

    def scope_rows(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = [{"Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}]
        for path, content in FILES.items():
            digest = hashlib.sha256(content).hexdigest()
            rows.append({"Path": path, "Type": "blob", "Size": len(content), "Sha256": digest})
        return rows

    def send_file(self, path: str) -> None:
        content = self.server.files[path]
        if asked := self.headers.get("Range"):
            first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            self.answer(206, content[first : last + 1], place)
        else:
            self.answer(200, content)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def rows() -> list[dict[str, object]]:
    return [{"path": p, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for p, c in FILES.items()]


def sums() -> bytes:
    return "".join(f"{hashlib.sha256(c).hexdigest()}  ./{p}\n" for p, c in FILES.items()).encode()


async def fetched(server: Server, output: Path, uri: str = "", **settings: object) -> Ready:
    source = uri or f"http://{server.address}/models/m"
    read = DownloaderSettings.model_validate({"ms_endpoint": f"http://{server.address}", "read_seconds": 2, **settings})
    opened = partial(open_source, parse(source), read, recorded_revision="")
    tools = Tools(pod="p-0", now=lambda: datetime(2026, 11, 25, tzinfo=UTC), monotonic=monotonic)
    return await fetch(Request(source, output), opened, LIMITS, tools)


async def refused(server: Server, output: Path, uri: str = "", **settings: object) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await fetched(server, output, uri, **settings)
    assert not (output / "READY").exists()
    return caught.value


def content(output: Path) -> dict[str, bytes]:
    found = (path for path in output.rglob("*") if path.is_file() and path.name != "READY")
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    ("name", "document"),
    [("manifest.json", json.dumps({"files": rows()}).encode()), ("SHA256SUMS", sums())],
)
async def test_a_folder_with_a_manifest_arrives(server: Server, tmp_path: Path, name: str, document: bytes) -> None:
    server.documents[name] = document
    await fetched(server, tmp_path / "m")
    assert content(tmp_path / "m") == FILES
    await fetched(server, tmp_path / "n", f"http://{server.address}/models/m/{name}")
    assert content(tmp_path / "n") == FILES


async def test_a_folder_of_a_cache_can_be_served_as_it_is(server: Server, tmp_path: Path) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()
    first = await fetched(server, tmp_path / "m")
    server.documents = {"READY": (tmp_path / "m" / "READY").read_bytes()}
    assert (await fetched(server, tmp_path / "n")).digest == first.digest


async def test_a_repository_of_modelscope_arrives_with_its_token(server: Server, tmp_path: Path) -> None:
    await fetched(server, tmp_path / "m", "ms://org/m", ms_token="s3cret")
    assert content(tmp_path / "m") == FILES
    assert {secret for _, secret in server.seen} == {"m_session_id=s3cret"}


async def test_a_folder_without_a_manifest_is_no_model(server: Server, tmp_path: Path) -> None:
    assert (await refused(server, tmp_path / "m")).cause is Cause.NOT_FOUND


@pytest.mark.parametrize(
    ("path", "cause"),
    [("../evil", Cause.UNSAFE_PATH), ("/etc/evil", Cause.UNSAFE_PATH), ("a/../../evil", Cause.UNSAFE_PATH)],
)
async def test_names_that_lead_out_are_refused(server: Server, tmp_path: Path, path: str, cause: Cause) -> None:
    row = {"path": path, "size": 1, "sha256": "0" * 64}
    server.documents["manifest.json"] = json.dumps({"files": [row]}).encode()
    assert (await refused(server, tmp_path / "m")).cause is cause
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("status", "code"), [(401, 10), (403, 10), (404, 11), (410, 11), (416, 13), (429, 14), (500, 14), (418, 14)]
)
async def test_what_a_server_answers_has_its_exit_code(server: Server, tmp_path: Path, status: int, code: int) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()

    def answers(handler: Handler) -> bool:
        if not handler.path.endswith(".safetensors"):
            return False
        handler.answer(status, b"")
        return True

    server.fault = answers
    assert (await refused(server, tmp_path / "m", http_token="s3cret")).exit_code == code


async def test_other_bytes_of_the_same_size_are_refused(server: Server, tmp_path: Path) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()
    server.files["config.json"] = b"[]"
    assert (await refused(server, tmp_path / "m")).exit_code == 13


async def test_a_body_that_is_cut_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()
    once = iter((True,))

    def cuts(handler: Handler) -> bool:
        if not handler.path.endswith(".safetensors") or not next(once, False):
            return False
        handler.answer(200, FILES["sub/w 1.safetensors"], cut=100_000)
        return True

    server.fault = cuts
    await fetched(server, tmp_path / "m")
    assert content(tmp_path / "m") == FILES


async def test_a_stream_that_stands_still_is_killed_and_tried_again(server: Server, tmp_path: Path) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()
    once, released = iter((True,)), threading.Event()

    def stalls(handler: Handler) -> bool:
        if not handler.path.endswith(".safetensors") or not next(once, False):
            return False
        released.wait(10)
        return True

    server.fault = stalls
    await fetched(server, tmp_path / "m", read_seconds=0.2)
    released.set()
    assert content(tmp_path / "m") == FILES


async def test_credentials_never_reach_another_host(server: Server, tmp_path: Path) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()
    elsewhere = ThreadingHTTPServer(("127.0.0.2", 0), type("Elsewhere", (Handler,), {}))
    elsewhere.files, elsewhere.documents, elsewhere.seen = server.files, {}, []  # type: ignore[attr-defined]
    elsewhere.fault = lambda _: False  # type: ignore[attr-defined]
    threading.Thread(target=elsewhere.serve_forever, args=(0.01,), daemon=True).start()

    def leads_away(handler: Handler) -> bool:
        if not handler.path.endswith(".safetensors"):
            return False
        handler.answer(307, b"", {"Location": f"http://127.0.0.2:{elsewhere.server_port}{handler.path}"})
        return True

    server.fault = leads_away
    error = await refused(server, tmp_path / "m", http_token="s3cret")
    assert (error.cause, error.exit_code) == (Cause.REDIRECT_REFUSED, 17)
    assert elsewhere.seen == []  # type: ignore[attr-defined]
    await fetched(server, tmp_path / "m", http_token="s3cret", redirect_hosts=["127.0.0.*"])
    assert {secret for _, secret in server.seen} == {"Bearer s3cret"}
    assert {secret for _, secret in elsewhere.seen} == {""}  # type: ignore[attr-defined]
    elsewhere.shutdown()
    elsewhere.server_close()


async def test_offline_nothing_is_connected_to(server: Server, tmp_path: Path) -> None:
    server.documents["manifest.json"] = json.dumps({"files": rows()}).encode()
    await fetched(server, tmp_path / "m")
    asked = len(server.seen)
    await fetched(server, tmp_path / "m", offline=True)
    error = await refused(server, tmp_path / "n", offline=True)
    assert (error.exit_code, len(server.seen)) == (14, asked)


async def test_ranges_of_seventy_gigabytes_are_asked_for_where_they_are(server: Server) -> None:
    size = 70_000_000_000

    def byte_of_place(handler: Handler) -> bool:
        first, last = (int(n) for n in handler.headers["Range"].removeprefix("bytes=").split("-"))
        body = bytes((first + index) // 1000 % 251 for index in range(last - first + 1))
        handler.answer(206, body, {"Content-Range": f"bytes {first}-{last}/{size}"})
        return True

    server.fault = byte_of_place
    source = open_source(
        parse(f"http://{server.address}/models/m"), DownloaderSettings.model_validate({}), recorded_revision=""
    )
    huge = SourceFile("huge.safetensors", size, "v1")
    for offset in (0, (1 << 31) - 500, (1 << 32) - 500, size - 1000):
        buffer = memoryview(bytearray(4096))
        with source.read(huge, Part(offset, 1000)) as body:
            count = body.readinto(buffer)
            assert body.readinto(buffer) == 0
        assert bytes(buffer[:count]) == bytes((offset + index) // 1000 % 251 for index in range(1000))
