"""The HTTP client: framing, kept connections, proxies, redirects; and signatures against published ones."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from matrixinfer.devcluster.s3 import ObjectStore, sign
from matrixinfer.downloader.core.redirects import DEFAULT_HOSTS, may_redirect
from matrixinfer.downloader.wire.http import Client, RedirectRefused, TimedOut, WireError, origin_of
from matrixinfer.downloader.wire.sigv4 import Keys, escaped_path, escaped_query, signed_headers

Serve = Callable[[list[bytes]], tuple[str, list[bytes]]]
"""Starts a server that answers one request after the other, an empty answer closing the connection."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    listeners: list[socket.socket] = []

    def start(answers: list[bytes]) -> tuple[str, list[bytes]]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        heads: list[bytes] = []
        left = iter(answers)

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        while head := _head(connection):
                            heads.append(head)
                            answer = next(left, b"")
                            if not answer:
                                break
                            connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}", heads

    yield start
    for listener in listeners:
        listener.close()


def _head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = connection.recv(4096)
        if not chunk:
            return b""
        head += chunk
    return head


def client(**changes: object) -> Client:
    return Client(agent="test", connect_seconds=5, **{"read_seconds": 5.0, **changes})


def body(asked: Client, url: str, **headers: str) -> bytes:
    with asked.exchange("GET", url, headers) as answer:
        return answer.read()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (OK, b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_bodies_are_framed_as_http_says(serve: Serve, answer: bytes, content: bytes) -> None:
    url, _ = serve([answer, answer])
    asked = client()
    assert [body(asked, url), body(asked, url)] == [content, content]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000,
    ],
)
def test_an_answer_that_breaks_off_or_is_none_is_an_error(serve: Serve, answer: bytes) -> None:
    url, _ = serve([answer, b""])
    with pytest.raises(WireError):
        body(client(read_seconds=0.2), url)


def test_what_came_with_the_head_and_what_follows_fill_one_buffer(serve: Serve) -> None:
    url, _ = serve([b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000])
    buffer = memoryview(bytearray(60_000))
    with client().exchange("GET", url, {}) as answer:
        assert [answer.readinto(buffer) for _ in range(3)] == [60_000, 40_000, 0]


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_is_replaced(serve: Serve) -> None:
    url, heads = serve([OK, b"", OK])
    asked = client()
    assert body(asked, url) == b"hello"
    assert body(asked, url) == b"hello"
    assert len(heads) == 3


def test_silence_has_a_deadline(serve: Serve) -> None:
    url, _ = serve([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"])
    with pytest.raises(TimedOut):
        body(client(read_seconds=0.1), url)


def test_a_header_cannot_smuggle_another(serve: Serve) -> None:
    url, _ = serve([OK])
    with pytest.raises(WireError, match="line break"):
        body(client(), url, Evil="a\r\nX: b")


def test_a_plain_proxy_gets_the_whole_address(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, heads = serve([OK])
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    assert body(client(), "http://models.example/x?y") == b"hello"
    assert heads[0].startswith(b"GET http://models.example/x?y HTTP/1.1\r\n")


@pytest.mark.parametrize("exceptions", ["*", "127.0.0.1", "other, 127.0.0.1"])
def test_hosts_that_are_excepted_need_no_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch, exceptions: str) -> None:
    url, _ = serve([OK])
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", exceptions)
    assert body(client(), url) == b"hello"


def test_a_way_that_leads_in_circles_ends(serve: Serve) -> None:
    round_again = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /again\r\n\r\n"
    url, heads = serve([round_again] * 20)
    with pytest.raises(WireError, match="again and again"):
        body(client(), url)
    assert len(heads) < 10


def test_another_host_needs_leave_even_without_credentials(serve: Serve) -> None:
    url, _ = serve([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://169.254.169.254/latest\r\n\r\n"])
    with pytest.raises(RedirectRefused, match=r"169\.254"):
        body(client(), url)


@pytest.mark.parametrize(
    ("there", "allowed"),
    [("hub.example", True), ("cdn-lfs.huggingface.co", True), ("evilhuggingface.co", False), ("10.0.0.1", False)],
)
def test_the_hubs_own_hosts_are_allowed(there: str, allowed: bool) -> None:
    assert may_redirect(DEFAULT_HOSTS, "hub.example", there) is allowed


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://u:p@x", "http://x:y", "x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(WireError):
        origin_of(url)


def test_a_signature_is_the_one_that_the_protocol_documents() -> None:
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    host, now = "examplebucket.s3.amazonaws.com", datetime(2013, 5, 24, tzinfo=UTC)
    signed = signed_headers(keys, "us-east-1", "GET", host, "/test.txt", "", {"Range": "bytes=0-9"}, now)
    assert signed["Authorization"].endswith("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_a_signature_is_the_one_that_the_development_store_makes() -> None:
    now = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
    ours = signed_headers(Keys("a", "s"), "us-east-1", "GET", "h:1", escaped_path("/b/k é"), "", {}, now)
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    theirs = sign(ObjectStore("http://h:1", "a", "s"), "GET", "h:1", escaped_path("/b/k é"), nothing, now)
    assert ours["Authorization"] == theirs["Authorization"]


def test_a_query_is_sorted_and_escaped() -> None:
    assert escaped_query({"prefix": "a b/c", "list-type": "2"}) == "list-type=2&prefix=a%20b%2Fc"
