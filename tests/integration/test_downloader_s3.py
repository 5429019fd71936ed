"""`matrixinfer-downloader` as a real process against a real S3 server, with a proxy between them that can do harm.

The proxy passes signed requests on as they are (the signature covers the address the client used, which is kept),
counts what it passes, and breaks what a test tells it to break.
"""

import http.client
import json
import os
import random
import select
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from tests.integration.downloader_forks import Fork

from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.s3 import REGION, ObjectStore

PART = 1 << 16
WEIGHTS = random.Random(11).randbytes(20 * PART + 777)
MODEL = {"config.json": b'{"a": 1}', "sub/tokenizer.json": b"{}", "model.gguf": WEIGHTS}
TOTAL = sum(map(len, MODEL.values()))

Fault = Callable[["ProxyHandler", int, dict[str, str], bytes], bool]
"""Answers a read of an object (status, headers and body are the server's) and returns True, or lets it pass."""


class Proxy(ThreadingHTTPServer):
    """Between client and server; `fault` sees every answer to a GET of an object."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.upstream = urlsplit(upstream).netloc
        self.fault: Fault = lambda *_: False
        self.gate: Callable[[], None] = lambda: None
        """Passed by every piece of an object, of the size of a part."""
        self.passed = [0]
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def object_bytes(self) -> int:
        """Bytes of objects that passed in answer to requests since the last `forget`."""
        return self.passed[0]

    def forget(self) -> None:
        """Count anew; what is still under way to a client that was killed is not counted."""
        self.passed = [0]

    def handle_error(self, *_: object) -> None:
        """A client that was killed is part of what is tested."""


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: without it every answer waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        # Of the moment in which it was asked for: the client may be gone before the answer is here.
        self.passed = self.server.passed
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            answer = upstream.getresponse()
            headers, body = dict(answer.getheaders()), answer.read()
        finally:
            upstream.close()
        is_read = self.command == "GET" and "list-type" not in self.path
        if is_read and self.server.fault(self, answer.status, headers, body):
            return
        self.answer(answer.status, headers, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: int | None = None) -> None:
        """Send an answer; with `cut` only so many bytes of its body, then the connection ends."""
        sent = body if cut is None else body[:cut]
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(sent) if self.command == "GET" else 0, PART):
            piece = sent[start : start + PART]
            if "list-type" not in self.path:
                self.server.gate()
                with self.server.lock:
                    self.passed[0] += len(piece)
            self.wfile.write(piece)
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def proxy(s3: ObjectStore) -> Iterator[Proxy]:
    server = Proxy(s3.endpoint)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(s3: ObjectStore) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture
def bucket(client: Any, tmp_path: Path) -> str:
    """A bucket with the model below `m/`: one object in parts, one with a sha256, one plain."""
    name = f"b-{uuid.uuid4().hex[:10]}"
    client.create_bucket(Bucket=name)
    weights = tmp_path / "weights"
    weights.write_bytes(WEIGHTS)
    in_parts = TransferConfig(multipart_threshold=1 << 19, multipart_chunksize=5 << 20)
    client.upload_file(str(weights), name, "m/model.gguf", Config=in_parts)
    client.put_object(Bucket=name, Key="m/config.json", Body=MODEL["config.json"], ChecksumAlgorithm="SHA256")
    client.put_object(Bucket=name, Key="m/sub/tokenizer.json", Body=MODEL["sub/tokenizer.json"])
    client.put_object(Bucket=name, Key="m-2/other.json", Body=b"another prefix")
    return name


@dataclass
class Download:
    """One running downloader."""

    fork: Fork
    termination: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def until(self, event: str) -> dict[str, Any]:
        """Read log lines until one has this event."""
        while True:
            assert select.select([self.fork.output], [], [], 30)[0], f"no log line within 30 s: {self.lines}"
            line = self.fork.output.readline()
            assert line, f"the log ended before {event}: {self.lines}"
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for the end; returns the exit code and the termination message."""
        self.lines.extend(json.loads(line) for line in self.fork.output.read().splitlines())
        code = self.fork.end()
        return code, json.loads(self.termination.read_bytes() or b"{}") if self.termination.exists() else {}


Start = Callable[..., Download]


@pytest.fixture
def start(s3: ObjectStore, proxy: Proxy, tmp_path: Path) -> Iterator[Start]:
    running: list[Download] = []

    def _start(source: str, output: Path, *arguments: str, **environ: str) -> Download:
        termination = tmp_path / f"termination-{len(running)}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MATRIXINFER_"))}
        defaults = {
            "ENDPOINT": proxy.endpoint,
            "ACCESS_KEY": s3.access_key,
            "SECRET_KEY": s3.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MATRIXINFER_DOWNLOADER_ADMIN_HOST": "127.0.0.1",
            "MATRIXINFER_DOWNLOADER_ADMIN_PORT": "0",
            "MATRIXINFER_DOWNLOADER_CONNECTIONS": "2",
            "MATRIXINFER_DOWNLOADER_PART_BYTES": str(PART),
            "MATRIXINFER_DOWNLOADER_TRIES": "3",
            "MATRIXINFER_DOWNLOADER_LONGEST_WAIT_SECONDS": "0.1",
            "MATRIXINFER_DOWNLOADER_READ_SECONDS": "20",
            "MATRIXINFER_DOWNLOADER_RESERVE_BYTES": "0",
            "MATRIXINFER_DOWNLOADER_TERMINATION_LOG": str(termination),
            "POD_NAME": f"pod-{len(running)}",
        }
        wanted = ["fetch", "--source", source, "--output", str(output), *arguments]
        running.append(Download(Fork(wanted, {**kept, **defaults, **environ}), termination))
        return running[-1]

    yield _start
    for download in running:
        download.fork.kill()


def content(output: Path) -> dict[str, bytes]:
    files = [path for path in output.rglob("*") if path.is_file() and path.name != "READY"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def lines_of_parts(work: Path) -> list[bytes]:
    return [line for path in (work / "journal").glob("*") for line in path.read_bytes().splitlines()[1:]]


def noted_parts(work: Path) -> int:
    return len(lines_of_parts(work))


def ready(output: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((output / "READY").read_bytes())
    return document


class Gate:
    """Lets so many pieces of objects through and holds the others until it is opened."""

    def __init__(self, pieces: int) -> None:
        self._left = pieces
        self._lock = threading.Lock()
        self._open = threading.Event()
        self.reached = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            held = self._left < 0
        if held:
            self.reached.set()
            self._open.wait(60)


def test_a_prefix_arrives_whole_and_the_end_is_told(start: Start, bucket: str, tmp_path: Path) -> None:
    code, message = start(f"s3://{bucket}/m", tmp_path / "out").end()
    assert code == 0
    assert content(tmp_path / "out") == MODEL
    assert message["outcome"] == "Ready"
    assert message["digest"] == ready(tmp_path / "out")["digest"]
    assert message["totalBytes"] == TOTAL


def test_the_digest_is_that_of_the_same_files_in_a_folder(start: Start, bucket: str, tmp_path: Path) -> None:
    start(f"s3://{bucket}/m", tmp_path / "out").end()
    start(f"file://{tmp_path / 'out'}", tmp_path / "copy").end()
    assert ready(tmp_path / "copy")["digest"] == ready(tmp_path / "out")["digest"]


def test_a_bucket_may_stand_in_the_name_of_the_host(
    start: Start, s3: ObjectStore, s3_domain: str, bucket: str, tmp_path: Path
) -> None:
    """No such name can be looked up here, so the server is taken for a proxy too: it looks at the name alone."""
    named = {"ENDPOINT": f"http://{s3_domain}", "HTTP_PROXY": s3.endpoint}
    code, _ = start(f"s3://{bucket}/m", tmp_path / "out", **named, MATRIXINFER_DOWNLOADER_ADDRESSING="virtual").end()
    assert code == 0
    assert content(tmp_path / "out") == MODEL


def test_two_states_of_a_prefix_share_a_cache_and_the_older_stays(
    start: Start, bucket: str, client: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    taken = []
    for version, *choice in (("v1",), ("v2",), ("v3", "--include", "*")):
        download = start(f"s3://{bucket}/m", cache / "versions" / version, "--cache", str(cache), *choice)
        assert download.end()[0] == 0
        taken.append(taken_bytes(download))
        client.put_object(Bucket=bucket, Key="m/config.json", Body=b'{"a": 2}')
    # What was asked for once is answered without the network; another choice of files asks anew.
    assert taken == [TOTAL, 0, len(b'{"a": 2}')]
    assert content(cache / "versions" / "v1") == MODEL
    assert content(cache / "versions" / "v3") == {**MODEL, "config.json": b'{"a": 2}'}


def test_one_object_is_a_model_too(start: Start, bucket: str, tmp_path: Path) -> None:
    assert start(f"s3://{bucket}/m/model.gguf", tmp_path / "out").end()[0] == 0
    assert content(tmp_path / "out") == {"model.gguf": WEIGHTS}


def test_include_and_exclude_choose(start: Start, bucket: str, tmp_path: Path) -> None:
    code, _ = start(f"s3://{bucket}/m", tmp_path / "out", "--include", "*.json", "--exclude", "sub/*").end()
    assert code == 0
    assert list(content(tmp_path / "out")) == ["config.json"]


def test_a_bucket_that_is_open_to_all_needs_no_keys(start: Start, bucket: str, client: Any, tmp_path: Path) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    code, message = start(f"s3://{bucket}/m", tmp_path / "out", ACCESS_KEY="", SECRET_KEY="", HOME="/nonexistent").end()
    assert (code, message["outcome"]) == (0, "Ready")


@pytest.mark.parametrize(
    ("source", "environ", "code", "cause"),
    [
        ("s3://{bucket}/m", {"SECRET_KEY": "wrong-but-secret"}, 10, "AccessDenied"),
        ("s3://{bucket}/m", {"ACCESS_KEY": "", "SECRET_KEY": "", "HOME": "/nonexistent"}, 10, "AccessDenied"),
        ("s3://{bucket}/nothing", {}, 11, "NotFound"),
        ("s3://no-such-bucket-here/m", {}, 11, "NotFound"),
        ("s3://{bucket}/m", {"ENDPOINT": "http://127.0.0.1:9"}, 14, "Unreachable"),
        ("obs://{bucket}/m", {"ENDPOINT": ""}, 2, "BadRequest"),
        ("gs://{bucket}/m", {}, 2, "BadRequest"),
        ("s3://user:wrong-but-secret@{bucket}/m", {}, 2, "BadRequest"),
    ],
)
def test_what_cannot_work_ends_with_its_cause_and_without_ready(
    start: Start, bucket: str, tmp_path: Path, source: str, environ: dict[str, str], code: int, cause: str
) -> None:
    download = start(source.format(bucket=bucket), tmp_path / "out", **environ)
    assert download.end()[0] == code
    message = json.loads(download.termination.read_bytes())
    assert (message["outcome"], message["cause"], message["exitCode"]) == ("Failed", cause, code)
    assert not (tmp_path / "out" / "READY").exists()
    assert "wrong-but-secret" not in json.dumps([download.lines, message])


def test_an_output_that_cannot_be_made_ends_with_its_cause(start: Start, bucket: str) -> None:
    assert start(f"s3://{bucket}/m", Path("/proc/model")).end()[1]["cause"] == "VolumeNotWritable"


def taken_bytes(download: Download) -> int:
    """What an ended process read; the proxy also counts what was on its way when another connection took over."""
    return next(int(line["fetched_bytes"]) for line in download.lines if line["event"] == "model_ready")


@pytest.mark.parametrize("pieces", [1, 9, 21])
def test_a_killed_download_goes_on_where_it_was(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path, pieces: int
) -> None:
    proxy.gate = gate = Gate(pieces)
    # A second connection would take over parts that the store already sends to the first, and the gate counts both.
    killed = start(f"s3://{bucket}/m", tmp_path / "out", MATRIXINFER_DOWNLOADER_CONNECTIONS="1")
    assert gate.reached.wait(30)
    # One part may still be on its way through the process.
    wait_for("the journal", lambda: noted_parts(tmp_path / ".matrixinfer-out") >= pieces - 1, 30)
    killed.fork.kill()
    assert not (tmp_path / "out" / "READY").exists()
    gate.open()
    second = start(f"s3://{bucket}/m", tmp_path / "out")
    code, message = second.end()
    assert (code, message["outcome"]) == (0, "Ready")
    assert content(tmp_path / "out") == MODEL
    # What the dead process had received but not noted yet, one part for its connection, comes again.
    assert taken_bytes(second) <= TOTAL - (pieces - 1) * PART


def test_told_to_stop_it_ends_in_time_and_goes_on_later(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    proxy.gate = gate = Gate(8)
    stopped = start(f"s3://{bucket}/m", tmp_path / "out")
    assert gate.reached.wait(30)
    stopped.fork.process.terminate()
    stopped.until("stopping")
    gate.open()
    code, message = stopped.end()
    assert (code, message["cause"]) == (16, "Cancelled")
    second = start(f"s3://{bucket}/m", tmp_path / "out")
    assert second.end()[0] == 0
    assert taken_bytes(second) < TOTAL


def test_told_to_stop_while_the_store_is_silent_it_does_not_hang(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    proxy.gate = gate = Gate(4)
    stopped = start(f"s3://{bucket}/m", tmp_path / "out", MATRIXINFER_DOWNLOADER_READ_SECONDS="600")
    assert gate.reached.wait(30)
    stopped.fork.process.terminate()
    code, message = stopped.end()
    gate.open()
    assert (code, message["cause"]) == (16, "Cancelled")


def test_many_processes_on_one_folder_fetch_every_byte_once(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    downloads = [start(f"s3://{bucket}/m", tmp_path / "out") for _ in range(4)]
    ends = [download.end() for download in downloads]
    assert [code for code, _ in ends] == [0] * 4
    assert len({message["digest"] for _, message in ends}) == 1
    assert sum(map(taken_bytes, downloads)) == TOTAL
    assert content(tmp_path / "out") == MODEL


def test_who_waits_says_for_whom_and_takes_over_when_that_dies(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    proxy.gate = gate = Gate(6)
    first = start(f"s3://{bucket}/m", tmp_path / "out")
    assert gate.reached.wait(30)
    second = start(f"s3://{bucket}/m", tmp_path / "out", MATRIXINFER_DOWNLOADER_LOG_SECONDS="1")
    assert second.until("waiting")["waits_for"].startswith("pod-0")
    first.fork.kill()
    gate.open()
    assert second.end()[0] == 0
    assert content(tmp_path / "out") == MODEL


def test_waiting_has_a_deadline(start: Start, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    proxy.gate = gate = Gate(2)
    start(f"s3://{bucket}/m", tmp_path / "out")
    assert gate.reached.wait(30)
    code, message = start(f"s3://{bucket}/m", tmp_path / "out", MATRIXINFER_DOWNLOADER_LOCK_WAIT_SECONDS="0.2").end()
    gate.open()
    assert (code, message["cause"]) == (15, "LockTimeout")
    assert "pod-0" in message["message"]


@pytest.mark.parametrize(
    "name", ["model.gguf", "config.json", "tokenizer.json"], ids=["in parts", "with sha256", "plain"]
)
def test_other_bytes_of_the_same_size_are_refused(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path, name: str
) -> None:
    def flip(handler: ProxyHandler, status: int, headers: dict[str, str], body: bytes) -> bool:
        if body and handler.path.partition("?")[0].endswith(name):
            handler.answer(status, headers, bytes([body[0] ^ 1]) + body[1:])
            return True
        return False

    proxy.fault = flip
    code, message = start(f"s3://{bucket}/m", tmp_path / "out").end()
    assert (code, message["cause"]) == (13, "IntegrityMismatch")
    assert not (tmp_path / "out" / "READY").exists()
    proxy.fault = lambda *_: False
    assert start(f"s3://{bucket}/m", tmp_path / "out").end()[0] == 0
    assert content(tmp_path / "out") == MODEL


def test_an_object_that_is_overwritten_meanwhile_is_fetched_anew(
    start: Start, proxy: Proxy, bucket: str, client: Any, tmp_path: Path
) -> None:
    fresh = random.Random(12).randbytes(len(WEIGHTS))
    once = iter((True,))

    def overwritten(handler: ProxyHandler, status: int, headers: dict[str, str], body: bytes) -> bool:
        if len(body) < 50_000 or not next(once, False):
            return False
        client.put_object(Bucket=bucket, Key="m/model.gguf", Body=fresh)
        handler.answer(status, headers, body, cut=len(body) // 2)
        return True

    proxy.fault = overwritten
    download = start(f"s3://{bucket}/m", tmp_path / "out")
    assert download.end()[0] == 0, [line.get("reason") for line in download.lines]
    assert "source_changed" in [line["event"] for line in download.lines]
    assert content(tmp_path / "out") == {**MODEL, "model.gguf": fresh}


def test_bodies_that_break_off_are_taken_up_again(start: Start, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    def cut(handler: ProxyHandler, status: int, headers: dict[str, str], body: bytes) -> bool:
        if len(body) < 50_000:
            return False
        handler.answer(status, headers, body, cut=len(body) // 2)
        return True

    proxy.fault = cut
    assert start(f"s3://{bucket}/m", tmp_path / "out").end()[0] == 0
    assert content(tmp_path / "out") == MODEL


def test_bodies_that_never_come_end_it(start: Start, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    def nothing(handler: ProxyHandler, status: int, headers: dict[str, str], body: bytes) -> bool:
        handler.answer(status, headers, body, cut=0)
        return True

    proxy.fault = nothing
    assert start(f"s3://{bucket}/m", tmp_path / "out").end()[0] == 14


def test_a_store_that_is_busy_for_a_while_is_waited_for(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    left = [2]

    def busy(handler: ProxyHandler, _status: int, _headers: dict[str, str], _body: bytes) -> bool:
        with handler.server.lock:
            left[0] -= 1
            if left[0] < 0:
                return False
        body = b"<Error><Code>SlowDown</Code></Error>"
        handler.answer(503, {"Content-Length": str(len(body)), "Content-Type": "application/xml"}, body)
        return True

    proxy.fault = busy
    download = start(f"s3://{bucket}/m", tmp_path / "out")
    assert download.end()[0] == 0
    assert [line["event"] for line in download.lines].count("retrying") == 2


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (401, "InvalidAccessKeyId", 10),
        (403, "AccessDenied", 10),
        (404, "NoSuchKey", 11),
        (416, "InvalidRange", 13),
        (429, "SlowDown", 14),
        (500, "InternalError", 14),
    ],
)
def test_what_a_store_answers_has_its_exit_code(
    start: Start, proxy: Proxy, bucket: str, tmp_path: Path, status: int, code: str, exit_code: int
) -> None:
    def answers(handler: ProxyHandler, *_: object) -> bool:
        body = f"<Error><Code>{code}</Code></Error>".encode()
        handler.answer(status, {"Content-Length": str(len(body)), "Content-Type": "application/xml"}, body)
        return True

    proxy.fault = answers
    assert start(f"s3://{bucket}/m", tmp_path / "out").end()[0] == exit_code
    assert not (tmp_path / "out" / "READY").exists()


def test_a_store_that_leads_elsewhere_is_not_followed(start: Start, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    def leads_away(handler: ProxyHandler, *_: object) -> bool:
        handler.answer(307, {"Content-Length": "0", "Location": "http://127.0.0.2:9/steal"}, b"")
        return True

    proxy.fault = leads_away
    code, message = start(f"s3://{bucket}/m", tmp_path / "out").end()
    assert (code, message["cause"]) == (17, "RedirectRefused")


def test_the_admin_port_shows_the_progress(start: Start, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    proxy.gate = gate = Gate(10)
    download = start(f"s3://{bucket}/m", tmp_path / "out")
    port = download.until("admin_listening")["port"]
    assert gate.reached.wait(30)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    gate.open()
    assert "matrixinfer_downloader_model_files 3.0" in page
    assert 'matrixinfer_downloader_phase{phase="Downloading"} 1.0' in page
    assert download.end()[0] == 0


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs root with CAP_SYS_ADMIN to mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_volume_that_is_too_small_is_found_out_before_the_first_byte(
    start: Start, proxy: Proxy, bucket: str, small_volume: Path
) -> None:
    code, message = start(f"s3://{bucket}/m", small_volume).end()
    assert (code, message["cause"]) == (12, "NoSpace")
    assert "larger" in message["message"]
    assert proxy.object_bytes == 0


def test_a_volume_that_fills_up_meanwhile_ends_it(
    start: Start, proxy: Proxy, bucket: str, client: Any, small_volume: Path
) -> None:
    client.put_object(Bucket=bucket, Key="small/w.bin", Body=WEIGHTS[: 10 * PART])
    proxy.gate = gate = Gate(3)
    download = start(f"s3://{bucket}/small", small_volume)
    assert gate.reached.wait(30)
    with suppress(OSError), (small_volume / "hog").open("wb", buffering=0) as hog:
        while True:
            hog.write(b"\0" * 4096)
    gate.open()
    code, message = download.end()
    assert (code, message["cause"]) == (12, "NoSpace")
    (small_volume / "hog").unlink()
    assert start(f"s3://{bucket}/small", small_volume).end()[0] == 0
    assert (small_volume / "w.bin").read_bytes() == WEIGHTS[: 10 * PART]


def shared(start: Start, bucket: str, output: Path, *arguments: str) -> Download:
    """A download of two workers that is large enough for them by the number of its files."""
    settings = {"PROCESSES": "2", "CONNECTIONS": "4", "LOCK_PATIENCE_SECONDS": "2"}
    environ = {f"MATRIXINFER_DOWNLOADER_{name}": value for name, value in settings.items()}
    return start(f"s3://{bucket}/m", output, *arguments, **environ)


def workers_of(download: Download) -> list[int]:
    pid = download.fork.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


@pytest.fixture
def many(client: Any, bucket: str) -> dict[str, bytes]:
    """What the bucket holds below `m/`, with so many more files that two processes share them."""
    more = {f"more/{index:03}.json": random.Random(index).randbytes(900) for index in range(140)}
    for path, body in more.items():
        client.put_object(Bucket=bucket, Key=f"m/{path}", Body=body)
    return {**MODEL, **more}


@pytest.mark.parametrize("arguments", [[], ["--cache"]], ids=["plain folder", "cache"])
def test_a_download_that_workers_share_is_the_same(
    start: Start, bucket: str, many: dict[str, bytes], tmp_path: Path, arguments: list[str]
) -> None:
    download = shared(start, bucket, tmp_path / "out", *[*arguments, *[str(tmp_path / "cache")] * len(arguments)])
    code, message = download.end()
    lone = start(f"s3://{bucket}/m", tmp_path / "lone").end()[1]
    assert code == 0
    assert [line["processes"] for line in download.lines if line["event"] == "work_shared"] == [2]
    assert message == {**lone, "source": message["source"]}
    assert content((tmp_path / "out").resolve()) == many
    assert taken_bytes(download) == sum(map(len, many.values()))


def test_what_a_killed_worker_left_undone_is_fetched_all_the_same(
    start: Start, proxy: Proxy, bucket: str, many: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.gate = gate = Gate(30)
    download = shared(start, bucket, tmp_path / "out")
    assert gate.reached.wait(30)
    os.kill(workers_of(download)[0], signal.SIGKILL)
    download.until("work_shared")
    gate.open()
    assert download.end()[0] == 0
    lost = [line for line in download.lines if line["event"] == "worker_lost"]
    assert [line["exit_code"] for line in lost] == [-9]
    assert content(tmp_path / "out") == many


@pytest.mark.parametrize("pieces", [5, 60, 130])
def test_workers_die_with_their_parent_and_the_next_process_goes_on(
    start: Start, proxy: Proxy, bucket: str, many: dict[str, bytes], tmp_path: Path, pieces: int
) -> None:
    proxy.gate = gate = Gate(pieces)
    killed = shared(start, bucket, tmp_path / "out")
    assert gate.reached.wait(30)
    workers = workers_of(killed)
    assert len(workers) == 2
    os.kill(killed.fork.process.pid, signal.SIGKILL)
    wait_for("the end of the workers", lambda: all(map(is_gone, workers)), 10)
    assert not (tmp_path / "out" / "READY").exists()
    noted = [json.loads(line)["length"] for line in lines_of_parts(tmp_path / ".matrixinfer-out")]
    gate.open()
    second = shared(start, bucket, tmp_path / "out")
    assert second.end()[0] == 0
    assert content(tmp_path / "out") == many
    assert taken_bytes(second) <= sum(map(len, many.values())) - sum(noted)


def test_told_to_stop_it_ends_its_workers_and_goes_on_later(
    start: Start, proxy: Proxy, bucket: str, many: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.gate = gate = Gate(60)
    stopped = shared(start, bucket, tmp_path / "out")
    assert gate.reached.wait(30)
    workers = workers_of(stopped)
    for pid in (*workers, stopped.fork.process.pid):
        os.kill(pid, signal.SIGTERM)
    code, message = stopped.end()
    assert (code, message["cause"]) == (16, "Cancelled")
    assert all(map(is_gone, workers))
    gate.open()
    second = shared(start, bucket, tmp_path / "out")
    assert second.end()[0] == 0
    assert taken_bytes(second) < sum(map(len, many.values()))


def test_who_lost_the_lock_ends_its_workers(
    start: Start, proxy: Proxy, bucket: str, many: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.gate = gate = Gate(30)
    robbed = shared(start, bucket, tmp_path / "out")
    assert gate.reached.wait(30)
    workers = workers_of(robbed)
    (tmp_path / ".matrixinfer-out" / "holders" / "99").mkdir()
    code, message = robbed.end()
    assert (code, message["cause"]) == (15, "LockLost")
    assert all(map(is_gone, workers))
    gate.open()


def test_a_refusal_that_one_worker_meets_is_told_as_ever(
    start: Start, proxy: Proxy, bucket: str, many: dict[str, bytes], tmp_path: Path
) -> None:
    def denied(handler: ProxyHandler, *_: object) -> bool:
        if not handler.path.endswith("more/077.json"):
            return False
        body = b"<Error><Code>AccessDenied</Code></Error>"
        handler.answer(403, {"Content-Length": str(len(body)), "Content-Type": "application/xml"}, body)
        return True

    proxy.fault = denied
    refused = [shared(start, bucket, tmp_path / "out").end(), start(f"s3://{bucket}/m", tmp_path / "lone").end()]
    assert [code for code, _ in refused] == [10, 10]
    assert refused[0][1] == refused[1][1]
    proxy.fault = lambda *_: False
    assert shared(start, bucket, tmp_path / "out").end()[0] == 0


def test_trouble_that_passes_is_counted_over_all_workers(
    start: Start, proxy: Proxy, bucket: str, many: dict[str, bytes], tmp_path: Path
) -> None:
    met: set[str] = set()

    def busy(handler: ProxyHandler, *_: object) -> bool:
        with handler.server.lock:
            if handler.path in met or not handler.path.endswith("0.json"):
                return False
            met.add(handler.path)
        handler.answer(503, {"Content-Length": "0"}, b"")
        return True

    proxy.fault = busy
    download = shared(start, bucket, tmp_path / "out")
    assert download.end()[0] == 0
    assert len(met) == 14
    assert [line["event"] for line in download.lines].count("retrying") == 14


def test_a_small_download_has_no_workers_left_to_wait(start: Start, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    proxy.gate = gate = Gate(5)
    download = shared(start, bucket, tmp_path / "out")
    assert gate.reached.wait(30)
    assert workers_of(download) == []
    gate.open()
    assert download.end()[0] == 0
