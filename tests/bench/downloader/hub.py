"""A hub that costs next to nothing: one repository over a folder, large files by sendfile. Run as its own process.

    python -m tests.bench.downloader.hub FOLDER

Prints its port. It speaks what huggingface_hub asks: the repository, its tree with sha256, and the files, by ranges.
"""

import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """The server; hashes of the files are computed once, and kept beside them."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.suffix != ".sha256"}
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """A client that went away is not worth a traceback."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/org/model/tree/"):
            self._json([self._entry(name, sha256) for name, sha256 in self.server.hashes.items()])
        elif path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name} for name in self.server.hashes]
            self._json({"_id": "1", "id": "org/model", "modelId": "org/model", "sha": COMMIT, "siblings": siblings})
        else:
            self._file(path.rsplit("/", 1)[-1])

    def _entry(self, name: str, sha256: str) -> dict[str, object]:
        size = (self.server.folder / name).stat().st_size
        lfs = {"oid": sha256, "size": size, "pointerSize": 130}
        return {"type": "file", "path": name, "size": size, "oid": "1" * 40, "lfs": lfs}

    def _file(self, name: str) -> None:
        with (self.server.folder / name).open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            first, last, status = 0, size - 1, 200
            headers = {"ETag": f'"{self.server.hashes[name]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            headers["X-Linked-Size"] = str(size)
            headers["X-Linked-Etag"] = headers["ETag"]
            if asked := self.headers.get("Range"):
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                first, last, status = int(begin), min(int(end or last), last), 206
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._head(status, last - first + 1, headers)
            if self.command == "GET":
                self.wfile.flush()
                self.connection.sendfile(opened, first, last - first + 1)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _sha256(path: Path) -> str:
    kept = path.with_suffix(path.suffix + ".sha256")
    if not kept.exists():
        with path.open("rb") as opened:
            kept.write_text(hashlib.file_digest(opened, "sha256").hexdigest())
    return kept.read_text()


if __name__ == "__main__":
    hub = Hub(Path(sys.argv[1]))
    sys.stdout.write(f"{hub.server_port}\n")
    sys.stdout.flush()
    hub.serve_forever()
