"""A hub on loopback, or in a pod: one repository, spoken to as the huggingface_hub client does, rightly or not.

It answers what the client asks for in `repo_info` and `list_repo_tree` and when files are read: hashes, pages,
redirects of large files to another origin, error headers. Nothing but the standard library, so that it runs anywhere:
`python downloader_hub.py NAME PORT TOKEN` serves on all addresses of a pod, and its storage on the next port.
"""

import hashlib
import json
import random
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["COMMIT", "MODEL", "MOVED", "PAGE", "WEIGHTS", "Hub", "HubHandler", "storage_of"]

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
PAGE = 2

Fault = Callable[["HubHandler", str], bool]
"""Answers a request in place of the hub, or returns False to let it."""


class Hub(ThreadingHTTPServer):
    """One repository, `org/tiny`, with a branch and a tag."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), HubHandler)
        self.name = "127.0.0.1"
        self.other_name = "127.0.0.2"
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
        return f"http://{self.name}:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another origin, as a hub's storage is."""
        return f"http://{self.other_name}:{self.other_port}"

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


def storage_of(hub: Hub, address: str, port: int = 0) -> ThreadingHTTPServer:
    """Return the server of the hub's other origin, where large files are."""
    elsewhere = ThreadingHTTPServer((address, port), type("Storage", (HubHandler,), {"hub": hub}))
    elsewhere.daemon_threads = True
    elsewhere.handle_error = hub.handle_error  # type: ignore[method-assign]  # a client may leave
    hub.other_port = elsewhere.server_port
    return elsewhere


if __name__ == "__main__":
    serving = Hub("0.0.0.0", int(sys.argv[2]))  # a pod is reached by its address
    serving.name = serving.other_name = sys.argv[1]
    serving.token = sys.argv[3]
    threading.Thread(target=storage_of(serving, "0.0.0.0", int(sys.argv[2]) + 1).serve_forever).start()
    serving.serve_forever()
