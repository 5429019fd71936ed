"""Nodes that share a model: a volume each, `serve` and `fetch` as processes on loopback, one origin that is counted."""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.integration.downloader_forks import Fork

from matrixinfer.downloader.core.sharing import whole_range

TOKEN = "the token of a namespace"
PREFIX = "MATRIXINFER_DOWNLOADER_"
PART_BYTES = 1 << 13
FILES = {
    "config.json": b"{}",
    "model-1.safetensors": random.Random(1).randbytes(160 * PART_BYTES + 777),
    "model-2.safetensors": random.Random(2).randbytes(80 * PART_BYTES),
    **{f"small/{index}.json": random.Random(index).randbytes(3000) for index in range(10)},
}
TOTAL = sum(map(len, FILES.values()))


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else each answer of two small pieces waits for an acknowledgement that is late on purpose.
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that left is part of what is tested."""


class Origin(Loopback):
    """A web server with a manifest; every byte of a file that leaves it is counted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _OriginHandler)
        self.sent = 0
        self.lock = threading.Lock()
        self.bytes_per_second = 0
        self.enough: Callable[[int], None] = lambda _: None
        """Told of what was sent so far, before every piece."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model"


class _OriginHandler(Quiet):
    server: Origin

    def do_GET(self) -> None:
        path = self.path.removeprefix("/model/")
        if path == "manifest.json":
            rows = [{"path": p, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for p, c in FILES.items()]
            self.answer(200, json.dumps({"files": rows}).encode())
        elif path not in FILES:
            self.answer(404, b"")
        else:
            self.send_file(FILES[path])

    def send_file(self, content: bytes) -> None:
        part = whole_range(self.headers.get("Range", ""))
        body = content[part.offset : part.end] if part else content
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", f"bytes {part.offset}-{part.end - 1}/{len(content)}")
        self.end_headers()
        for start in range(0, len(body), 1 << 13):
            piece = body[start : start + (1 << 13)]
            # Before it is sent: who has it may have ended by the time that this thread goes on.
            with self.server.lock:
                self.server.sent += len(piece)
                sent = self.server.sent
            self.wfile.write(piece)
            self.server.enough(sent)
            if self.server.bytes_per_second:
                time.sleep(len(piece) / self.server.bytes_per_second)


@contextmanager
def running(server: Loopback) -> Iterator[None]:
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Node:
    """One pod with a volume of its own."""

    number: int
    volume: Path
    origin: Origin
    peers: Callable[[], str]
    settings: dict[str, str] = field(default_factory=dict)
    port: int = 0
    server: Fork | None = None
    fetcher: Fork | None = None
    log: str = ""

    @property
    def host(self) -> str:
        return f"127.0.1.{self.number}"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def serve(self) -> None:
        self.server = self._started("serve", "--cache", str(self.volume), PEER_PORT="0", SERVE_HOST=self.host)
        self.port = next(line["port"] for line in map(json.loads, self.server.output) if line["event"] == "serving")

    def fetch(self, **settings: str) -> None:
        output = str(self.volume / "versions" / "m")
        arguments = ("fetch", "--source", self.origin.url, "--cache", str(self.volume), "--output", output)
        peers = {"PEERS": self.peers(), "PEER_PORT": str(self.port or 1), **settings}
        self.fetcher = self._started(*arguments, **peers)

    def outcome(self) -> int:
        assert self.fetcher is not None
        self.log = self.fetcher.output.read().decode()
        return self.fetcher.end()

    def kill(self) -> None:
        for process in (self.server, self.fetcher):
            if process is not None:
                process.kill()
        self.server = self.fetcher = None

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def content(self) -> dict[str, bytes]:
        model = self.volume / "versions" / "m"
        return {path: (model / path).read_bytes() for path in FILES if (model / "READY").exists()}

    def _started(self, *arguments: str, **settings: str) -> Fork:
        given = {
            "PEER_TOKEN": TOKEN,
            "PART_BYTES": str(PART_BYTES),
            "BUFFER_BYTES": str(1 << 12),
            "RESERVE_BYTES": "0",
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": "0",
            "TERMINATION_LOG": os.devnull,
            **self.settings,
            **settings,
        }
        named = {PREFIX + name: value for name, value in given.items()}
        return Fork(arguments, {**os.environ, "POD_IP": self.host, **named})


class FalsePeer(Loopback):
    """Says that it holds all files, and gives something else, or too slowly."""

    def __init__(self, *, wrong: bool = False, bytes_per_second: int = 0, fetching: bool = False) -> None:
        super().__init__(("127.0.1.99", 0), _FalseHandler)
        self.wrong = wrong
        self.bytes_per_second = bytes_per_second
        self.fetching = fetching
        """It fetches too, and never comes on."""
        self.says: bytes | None = None
        """What it answers to everything, with a redirect where that is empty."""
        self.asked = 0
        self.sizes: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"127.0.1.99:{self.server_port}"


class _FalseHandler(Quiet):
    server: FalsePeer

    def do_GET(self) -> None:
        if self.server.says is not None:
            self.server.asked += 1
            elsewhere = {} if self.server.says else {"Location": "http://127.0.1.97:9/"}
            self.answer(302 if elsewhere else 200, self.server.says, elsewhere)
            return
        kind = self.path.split("/")[2]
        content = self.content()
        if kind == "origins":
            self.answer(200, json.dumps({"fetching": self.server.fetching, "count": 1}).encode())
        elif kind == "held" and content and not self.server.fetching:
            self.answer(200, json.dumps({"size": len(content), "parts": [[0, len(content)]]}).encode())
        elif kind == "bytes" and content and (part := whole_range(self.headers["Range"])):
            self.server.asked += 1
            body = content[part.offset : part.end]
            self.send_response(206)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {part.offset}-{part.end - 1}/{len(content)}")
            self.end_headers()
            self.send_slowly(bytes(len(body)) if self.server.wrong else body)
        else:
            self.answer(404, b"")

    def send_slowly(self, body: bytes) -> None:
        step = 1024 if self.server.bytes_per_second else len(body)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if self.server.bytes_per_second:
                time.sleep(step / self.server.bytes_per_second)

    def content(self) -> bytes | None:
        wanted = self.path.rsplit("/", 1)[-1]
        return next((c for c in FILES.values() if hashlib.sha256(c).hexdigest() == wanted), None)
