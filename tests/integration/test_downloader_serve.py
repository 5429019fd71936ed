"""`serve` as a process on loopback: what a cache gives, to whom, how much at once, and how it ends."""

import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.integration.downloader_forks import Fork

from matrixinfer.downloader.core.ranges import Part, header_line, part_line
from matrixinfer.downloader.core.sharing import FileName, Share, share_note
from matrixinfer.downloader.core.signature import signature
from matrixinfer.downloader.workspace import Workspace

TOKEN = "the token of a namespace"
CONTENT = random.Random(1).randbytes(3 << 20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ORIGIN, FILE, NOTED, GROWING = (letter * 32 for letter in "abcd")
WHOLE = f"bytes=0-{len(CONTENT) - 1}"
PREFIX = "MATRIXINFER_DOWNLOADER_"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volume") / "cache"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / SHA256).write_bytes(CONTENT)
    (root.parent / "secret").write_text("nobody's business")
    return root


class Asked:
    """Asks a server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, asked: str = "", token: str = TOKEN, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path)
            if asked:
                connection.putheader("Range", asked)
            if token:
                connection.putheader("Authorization", signature(token, path, asked, int(time.time())))
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def served(cache: Path, **settings: str) -> Iterator[tuple[Asked, Fork]]:
    environment = {
        PREFIX + "PEER_TOKEN": TOKEN,
        PREFIX + "PEER_PORT": "0",
        PREFIX + "SERVE_HOST": "127.0.0.1",
        PREFIX + "ADMIN_HOST": "127.0.0.1",
        PREFIX + "ADMIN_PORT": "0",
        **{PREFIX + name: value for name, value in settings.items()},
    }
    fork = Fork(["serve", "--cache", str(cache)], {**os.environ, **environment})
    try:
        yield Asked(port_of(fork)), fork
    finally:
        fork.kill()


def port_of(fork: Fork) -> int:
    for told in map(json.loads, fork.output):
        if told["event"] == "serving":
            return int(told["port"])
        if told["event"] == "nothing_served":
            return 0
    raise AssertionError("it ended before it served")


@pytest.fixture(scope="module")
def server(cache: Path) -> Iterator[Asked]:
    with served(cache) as (asked, _):
        yield asked


def test_a_content_that_is_here_is_given_by_range(server: Asked) -> None:
    name = FileName(ORIGIN, FILE, SHA256).place
    assert json.loads(server.get(f"/v1/held/{name}")[1]) == {"size": len(CONTENT), "parts": [[0, len(CONTENT)]]}
    assert server.get(f"/v1/bytes/{name}", WHOLE) == (206, CONTENT)
    assert server.get(f"/v1/bytes/{name}", "bytes=1000000-2000000") == (206, CONTENT[1_000_000:2_000_001])


def test_a_file_without_a_promised_hash_is_found_by_the_state_of_its_origin(server: Asked, cache: Path) -> None:
    place = f"/v1/bytes/{FileName(ORIGIN, NOTED).place}"
    assert server.get(place, WHOLE)[0] == 404
    (cache / ".matrixinfer/known").mkdir(parents=True)
    (cache / ".matrixinfer/known" / NOTED).write_text(SHA256)
    assert server.get(place, WHOLE) == (206, CONTENT)


def test_of_a_file_that_grows_the_finished_parts_are_given(server: Asked, cache: Path) -> None:
    share = Share("sub/w.safetensors", 40, "etag")
    workspace = Workspace(None, cache / ".matrixinfer" / GROWING)
    workspace.staged(share.path).parent.mkdir(parents=True)
    workspace.staged(share.path).write_bytes(bytes(range(40)))
    workspace.journal(share.path).parent.mkdir()
    header = header_line(share.path, share.size, share.version, 10)
    workspace.journal(share.path).write_bytes(header + part_line(Part(0, 10), 1) + part_line(Part(20, 10), 1))
    assert server.get(f"/v1/origins/{GROWING}")[1] == b'{"fetching": false, "count": 0}'
    (workspace.work / "sharing.json").write_bytes(share_note(10, [(FILE, share)]))
    name = FileName(GROWING, FILE).place
    assert json.loads(server.get(f"/v1/held/{name}")[1]) == {"size": 40, "parts": [[0, 10], [20, 10]]}
    assert server.get(f"/v1/bytes/{name}", "bytes=20-29") == (206, bytes(range(20, 30)))
    assert server.get(f"/v1/bytes/{name}", "bytes=5-14")[0] == 404
    assert json.loads(server.get(f"/v1/origins/{GROWING}")[1])["fetching"] is True


@pytest.mark.parametrize("token", ["", "not the token of ours"])
@pytest.mark.parametrize("path", [f"/v1/held/{ORIGIN}/{FILE}/{SHA256}", f"/v1/origins/{ORIGIN}", "/", "/metrics"])
def test_without_the_token_nothing_is_learnt(server: Asked, path: str, token: str) -> None:
    assert server.get(path, token=token) == (401, b"")


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/bytes/{ORIGIN}/{FILE}/{'0' * 64}",
        "/v1/bytes/../secret",
        f"/v1/bytes/{ORIGIN}/{FILE}/../../../../secret",
        f"/v1/bytes/{ORIGIN}/{FILE}/%2e%2e%2f%2e%2e%2fsecret",
        "/v1/models/../../secret",
        f"/v1/models/{SHA256}",
        f"/v1/origins/{ORIGIN}",
        "/v1/origins/..",
        "//v1/origins",
        "/secret",
    ],
)
def test_what_is_not_here_is_always_the_same_answer(server: Asked, path: str) -> None:
    assert server.get(path, WHOLE) == (404, b"")


def test_a_link_in_place_of_a_content_is_not_followed(server: Asked, cache: Path) -> None:
    (cache / "blobs" / ("1" * 64)).symlink_to(cache.parent / "secret")
    assert server.get(f"/v1/bytes/{ORIGIN}/{FILE}/{'1' * 64}", "bytes=0-4") == (404, b"")


def test_nothing_but_reading_is_allowed(server: Asked) -> None:
    path = f"/v1/bytes/{FileName(ORIGIN, FILE, SHA256).place}"
    assert {server.get(path, WHOLE, method=method)[0] for method in ("PUT", "DELETE", "POST", "HEAD")} == {401}


def test_beyond_so_many_transfers_others_are_told_to_come_later(cache: Path) -> None:
    with served(cache, SERVE_CONNECTIONS="1", SERVE_BYTES_PER_SECOND=str(1 << 16)) as (asked, _):
        path = f"/v1/bytes/{FileName(ORIGIN, FILE, SHA256).place}"
        with standing(asked.port, path):
            assert asked.get(path, WHOLE)[0] == 503
            # Questions are answered all the same.
            assert asked.get(path.replace("bytes", "held"))[0] == 200


def test_a_reader_that_stands_still_is_broken_off(cache: Path) -> None:
    with served(cache, SERVE_SECONDS="1", SERVE_BYTES_PER_SECOND=str(1 << 20)) as (asked, _):
        path = f"/v1/bytes/{FileName(ORIGIN, FILE, SHA256).place}"
        with standing(asked.port, path) as connection:
            assert len(read_all(connection)) < len(CONTENT)


def test_told_to_stop_it_ends_soon_and_well(cache: Path) -> None:
    # The transfer would take 48 seconds.
    with served(cache, SERVE_BYTES_PER_SECOND=str(1 << 16)) as (asked, fork):
        with standing(asked.port, f"/v1/bytes/{FileName(ORIGIN, FILE, SHA256).place}"):
            fork.process.terminate()
            fork.process.join(30)
            assert fork.process.exitcode == 0
        assert TOKEN not in fork.output.read().decode()


def test_without_a_token_no_socket_is_opened_and_the_pod_goes_on(cache: Path) -> None:
    with served(cache) as (_, fork):
        assert listening(fork.process.pid) == 2
    with served(cache, PEER_TOKEN="") as (_, fork):
        # The admin port, which every service has.
        assert listening(fork.process.pid) == 1
        assert fork.process.is_alive()


def test_a_token_that_could_be_guessed_is_refused_by_name(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "matrixinfer.downloader", "serve", "--cache", str(cache)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, PREFIX + "PEER_TOKEN": "short"},
    )
    assert done.returncode == 2
    assert "MATRIXINFER_DOWNLOADER_PEER_TOKEN: " in done.stdout + done.stderr
    assert "openssl rand -hex 32" in done.stdout + done.stderr


@contextmanager
def standing(port: int, path: str) -> Iterator[socket.socket]:
    """A transfer whose head has come; its body is read by nobody yet."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        signed = signature(TOKEN, path, WHOLE, int(time.time()))
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: {WHOLE}\r\nAuthorization: {signed}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 206"
        yield connection


def read_all(connection: socket.socket) -> bytes:
    found = bytearray()
    with suppress(ConnectionResetError):
        while chunk := connection.recv(1 << 16):
            found += chunk
    return bytes(found)


def listening(pid: int) -> int:
    """How many sockets of a process listen."""
    links = (str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[3] == "0A" and row[9] in inodes)
