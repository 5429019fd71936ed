"""Deadlines, status checks, credentials and lines of any length."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from matrixinfer.kube.errors import (
    AlreadyExists,
    ConfigError,
    DeadlineExceeded,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.kube.transport import Credentials, KubernetesCredentials, Transport, assemble_lines

POD = Key("default", "a")


async def _hang(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    raise AssertionError("unreachable")


async def test_a_hanging_server_is_given_up_at_the_deadline(stub: Any) -> None:
    stub.answer = _hang
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
        await stub.client.get(PODS, POD, deadline_seconds=0.05)


async def test_a_body_that_never_ends_is_given_up_at_the_deadline(stub: Any) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"metadata"')
        await asyncio.sleep(60)
        return response

    stub.answer = half
    with pytest.raises(DeadlineExceeded):
        await stub.client.get(PODS, POD, deadline_seconds=0.05)


async def test_a_watch_that_is_never_answered_is_given_up_at_the_deadline(stub: Any) -> None:
    stub.answer = _hang
    watch = stub.client.watch(PODS, resource_version="1", deadline_seconds=0.05)
    with pytest.raises(DeadlineExceeded):
        await watch.__aenter__()


async def test_a_refused_connection_is_unreachable(unused_tcp_port: int) -> None:
    async with Transport(Credentials(f"http://127.0.0.1:{unused_tcp_port}"), user_agent="t") as transport:
        with pytest.raises(Unreachable):
            await transport.request("GET", "/", deadline_seconds=1)


async def test_a_connection_that_is_cut_is_unreachable(stub: Any) -> None:
    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    stub.answer = cut
    with pytest.raises(Unreachable):
        await stub.client.create(PODS, {"metadata": {"name": "a", "namespace": "default"}})


async def test_a_409_is_never_a_normal_answer(stub: Any, json_answer: Any, failure: Any) -> None:
    async def taken(request: web.Request) -> web.Response:
        return json_answer(failure(409, "AlreadyExists", "pods a exists"), 409)

    stub.answer = taken
    with pytest.raises(AlreadyExists, match="pods a exists"):
        await stub.client.create(PODS, {"metadata": {"name": "a", "namespace": "default"}})


async def test_a_refused_watch_raises_its_status(stub: Any, json_answer: Any, failure: Any) -> None:
    async def absent(request: web.Request) -> web.Response:
        return json_answer(failure(404, "NotFound"), 404)

    stub.answer = absent
    with pytest.raises(NotFound):
        await stub.client.watch(PODS, resource_version="1").__aenter__()


async def test_retry_after_is_kept(stub: Any, json_answer: Any, failure: Any) -> None:
    async def busy(request: web.Request) -> web.Response:
        return json_answer(failure(429, "TooManyRequests"), 429, **{"Retry-After": "2"})

    stub.answer = busy
    with pytest.raises(TooManyRequests) as caught:
        await stub.client.get(PODS, POD)
    assert caught.value.retry_after == 2.0


async def test_requests_never_wait_for_watches(stub: Any, json_answer: Any) -> None:
    """Watches have connections of their own: a pool of one still answers while three watches are open."""

    async def reply(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return json_answer({"metadata": {"name": "a"}})
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    stub.answer = reply
    async with (
        Transport(Credentials(stub.url), user_agent="t", pool_size=1) as transport,
        transport.stream("/a", params={"watch": "1"}, deadline_seconds=1),
        transport.stream("/b", params={"watch": "1"}, deadline_seconds=1),
        transport.stream("/c", params={"watch": "1"}, deadline_seconds=1),
    ):
        assert await transport.request("GET", "/d", deadline_seconds=1)


def _kubeconfig(folder: Path, server: str, user: dict[str, Any]) -> Path:
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


async def test_a_rotated_token_file_is_read_again_after_a_minute(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    now = [0.0]
    credentials = KubernetesCredentials(
        _kubeconfig(tmp_path, "http://127.0.0.1:1", {"tokenFile": str(token)}), monotonic=lambda: now[0]
    )
    await credentials.load()
    assert await credentials.authorization() == "Bearer first"
    token.write_text("second")
    now[0] = 59.0
    assert await credentials.authorization() == "Bearer first"
    now[0] = 61.0
    assert await credentials.authorization() == "Bearer second"


async def test_a_401_renews_the_token_at_once_and_is_sent_again(
    stub: Any, json_answer: Any, failure: Any, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old")

    async def picky(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != "Bearer new":
            return json_answer(failure(401, "Unauthorized"), 401)
        return json_answer({"metadata": {"name": "a"}})

    stub.answer = picky
    transport = await Transport.open(_kubeconfig(tmp_path, stub.url, {"tokenFile": str(token)}), user_agent="t")
    async with transport:
        token.write_text("new")
        assert await transport.request("GET", "/x", deadline_seconds=1)
        assert len(stub.requests) == 2
        token.write_text("bad")
        await transport.credentials.renew()
        with pytest.raises(Unauthorized):
            await transport.request("GET", "/x", deadline_seconds=1)
        assert len(stub.requests) == 4, "sent twice, not for ever"


async def test_a_token_file_that_is_missing_for_a_moment_keeps_the_old_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    now = [0.0]
    credentials = KubernetesCredentials(
        _kubeconfig(tmp_path, "http://127.0.0.1:1", {"tokenFile": str(token)}), monotonic=lambda: now[0]
    )
    await credentials.load()
    token.unlink()
    now[0] = 100.0
    assert await credentials.authorization() == "Bearer first"
    token.write_text("second")
    now[0] = 102.0
    assert await credentials.authorization() == "Bearer second"


async def test_a_kubeconfig_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    now = [0.0]
    path = _kubeconfig(tmp_path, "http://127.0.0.1:1", {"token": "one"})
    credentials = KubernetesCredentials(path, monotonic=lambda: now[0])
    await credentials.load()
    _kubeconfig(tmp_path, "http://127.0.0.1:2", {"token": "two"})
    os.utime(path, ns=(1, 1))
    now[0] = 100.0
    assert await credentials.authorization() == "Bearer two"
    assert credentials.host == "http://127.0.0.1:2"


async def test_a_missing_kubeconfig_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read credentials"):
        await Transport.open(tmp_path / "absent", user_agent="t")


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_lines_are_put_together_from_any_chunks() -> None:
    found = [line async for line in assemble_lines(_pieces(b"a", b"b\nc\n", b"\n", b"d", b"", b"e\nf"))]
    assert found == [b"ab", b"c", b"de"], "the torn last line is dropped"


async def test_a_line_of_several_megabytes_passes(stub: Any) -> None:
    line = b"x" * (3 << 20)

    async def big(request: web.Request) -> web.StreamResponse:
        return web.Response(body=line + b"\nend\n")

    stub.answer = big
    async with (
        Transport(Credentials(stub.url), user_agent="t") as transport,
        transport.stream("/", params={}, deadline_seconds=1) as lines,
    ):
        assert [len(found) async for found in lines] == [len(line), 3]
