"""The inlet under honest and hostile clients: framing, limits, deadlines."""

import asyncio

import pytest
from tests.unit.gateway.rig import Rig, answering, post

from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet

BOTH_INLETS = True
HOST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\n"
BODY = b'{"model":"m"}'
CHUNKED = b'd\r\n{"model":"m"}\r\n0\r\n\r\n'

HOSTILE = {
    "length and chunked": HOST + b"Content-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunked and length": HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 13\r\n\r\n" + CHUNKED,
    "two lengths": HOST + b"Content-Length: 13\r\nContent-Length: 5\r\n\r\n" + BODY,
    "two equal lengths": HOST + b"Content-Length: 13\r\nContent-Length: 13\r\n\r\n" + BODY,
    "length list": HOST + b"Content-Length: 13, 13\r\n\r\n" + BODY,
    "signed length": HOST + b"Content-Length: +13\r\n\r\n" + BODY,
    "negative length": HOST + b"Content-Length: -1\r\n\r\n" + BODY,
    "hex length": HOST + b"Content-Length: 0xd\r\n\r\n" + BODY,
    "length beyond 64 bits": HOST + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
    "unknown coding": HOST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "identity": HOST + b"Transfer-Encoding: identity\r\n\r\n" + BODY,
    "gzip before chunked": HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
    "chunked twice": HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunked not last": HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "chunked in 1.0": b"POST /v1/x HTTP/1.0\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "space before colon": HOST + b"Content-Length : 13\r\n\r\n" + BODY,
    "vertical tab in coding": HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
    "folded header": HOST + b"X-A: b\r\n c\r\nContent-Length: 13\r\n\r\n" + BODY,
    "folded coding": HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "bare line feeds": b"POST /v1/x HTTP/1.1\nHost: gw\nContent-Length: 13\n\n" + BODY,
    "bare carriage return": HOST + b"X-A: b\rContent-Length: 0\r\n\r\n" + BODY,
    "nul in header": HOST + b"X-A: b\0c\r\nContent-Length: 13\r\n\r\n" + BODY,
    "empty header name": HOST + b": b\r\nContent-Length: 13\r\n\r\n" + BODY,
    "bad chunk size": HOST + b"Transfer-Encoding: chunked\r\n\r\n0xd\r\n" + BODY + b"\r\n0\r\n\r\n",
    "huge chunk size": HOST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "line feed after chunk size": HOST + b"Transfer-Encoding: chunked\r\n\r\nd\n" + BODY + b"\n0\n\n",
    "chunk longer than it says": HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n" + BODY + b"\r\n0\r\n\r\n",
    "no host": b"POST /v1/x HTTP/1.1\r\nContent-Length: 13\r\n\r\n" + BODY,
    "two hosts": HOST + b"Host: other\r\nContent-Length: 13\r\n\r\n" + BODY,
    "http 2.0": b"POST /v1/x HTTP/2.0\r\nHost: gw\r\nContent-Length: 13\r\n\r\n" + BODY,
    "http 0.9": b"GET /v1/models\r\n\r\n",
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "connect": b"CONNECT example:443 HTTP/1.1\r\nHost: example:443\r\n\r\n",
    "lower-case method": b"post /v1/x HTTP/1.1\r\nHost: gw\r\n\r\n",
    "binary": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "odd expectation": HOST + b"Expect: the-unexpected\r\nContent-Length: 13\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_two_parsers_could_read_differently_is_refused(rig: Rig, name: str) -> None:
    """Refused, the connection closed, and neither this nor what follows it reaches an engine."""
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(HOSTILE[name] + post())
    answer = await client.answer()
    assert 400 <= answer.status < 600
    assert answer.headers[b"connection"] == b"close"
    assert answer.error["message"]
    assert await client.is_closed()
    assert engine.asked == []


async def test_requests_of_one_connection_are_answered_in_order(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(post(path="/v1/a") + post(path="/v1/b") + b"GET /v1/models HTTP/1.1\r\nhost: gw\r\n\r\n")
    answers = [await client.answer() for _ in range(3)]
    assert [a.status for a in answers] == [200, 200, 200]
    assert [a.line.split()[1] for a in engine.asked] == [b"/v1/a", b"/v1/b"]
    assert b'"list"' in answers[2].body


@pytest.mark.parametrize("size", [70_000, 500_000])
async def test_large_requests_that_come_one_behind_the_other_are_all_answered(rig: Rig, size: int) -> None:
    """The body of the second is not what the first one carries besides its own."""
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(post(b'{"model":"m","prompt":"%s"}' % (b"x" * size)) * 4)
    assert [(await client.answer()).status for _ in range(4)] == [200] * 4
    assert [len(asked.body) for asked in engine.asked] == [size + 25] * 4


async def test_many_pipelined_requests_do_not_pile_up(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(post() * 300)
    for _ in range(300):
        assert (await client.answer()).status == 200


async def test_a_body_may_come_in_chunks_and_in_drops(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    data = (
        HOST
        + b"Transfer-Encoding: chunked\r\n\r\n7;ext=1\r\n"
        + BODY[:7]
        + b"\r\n6\r\n"
        + BODY[7:]
        + b"\r\n0\r\nT: x\r\n\r\n"
    )
    for at in range(0, len(data), 11):
        client.send(data[at : at + 11])
        await asyncio.sleep(0)
    assert (await client.answer()).status == 200
    assert engine.asked[0].body == BODY
    assert b"transfer-encoding" not in engine.asked[0].headers
    assert b"t" not in engine.asked[0].headers


async def test_a_large_body_arrives_byte_for_byte(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    body = b'{"model":"m","x":"%s"}' % b"".join(b"%d," % i for i in range(200_000))
    assert (await rig.ask(post(body))).status == 200
    assert engine.asked[0].body == body


async def test_http_1_0_is_closed_after_the_answer_unless_asked_otherwise(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(post().replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    answer = await client.answer()
    assert answer.headers[b"connection"] == b"close"
    assert await client.is_closed()
    client = await rig.client()
    client.send(post(connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert (await client.answer()).headers[b"connection"] == b"keep-alive"
    client.send(post())
    assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    ],
)
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_an_answer_without_a_body_leaves_no_byte_for_the_next(rig: Rig, answer: bytes, version: bytes) -> None:
    await rig.engine(answering(answer))
    await rig.start()
    client = await rig.client()
    for _ in range(2):
        client.send(post(connection="keep-alive").replace(b"HTTP/1.1", version, 1))
        status, headers = await client.head()
        assert status in (204, 304)
        assert {b"content-length", b"transfer-encoding", b"link"}.isdisjoint(headers)


async def test_a_client_that_expects_100_is_told_to_go_on(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(HOST + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n")
    assert await client.head() == (100, {})
    client.send(BODY)
    assert (await client.answer()).status == 200


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(rig: Rig) -> None:
    """BEAT-02: a limit on bodies."""
    await rig.engine()
    await rig.start(body_bytes=2000)
    client = await rig.client()
    client.send(HOST + b"Expect: 100-continue\r\nContent-Length: 2001\r\n\r\n")
    assert (await client.answer()).status == 413
    client = await rig.client()
    client.send(HOST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"3e8\r\n" + b"x" * 1000 + b"\r\n") * 3)
    assert (await client.answer()).status == 413


async def test_all_bodies_together_have_a_bound(rig: Rig) -> None:
    """BEAT-02: a limit on what a worker holds of all clients."""
    engine = await rig.engine()
    await rig.start(buffered_bytes=5000)
    waiting = await rig.client()
    waiting.send(HOST + b"Content-Length: 4000\r\n\r\n" + b"x" * 3999)
    await rig.until(lambda: rig.inlet.buffered_bytes == 3999)
    refused = await rig.ask(post(b"y" * 2000))
    assert (refused.status, refused.headers[b"retry-after"]) == (503, b"1")
    waiting.close()
    await rig.until(lambda: not rig.inlet.buffered_bytes)
    assert (await rig.ask()).status == 200
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    "line", [b"X-Long: " + b"a" * 3000 + b"\r\n", b"".join(b"X-%d: a\r\n" % i for i in range(400))]
)
async def test_a_head_that_is_too_large_is_refused(rig: Rig, line: bytes) -> None:
    """BEAT-02: a limit on heads."""
    await rig.engine()
    await rig.start(head_bytes=2000)
    client = await rig.client()
    client.send(HOST + line + b"Content-Length: 13\r\n\r\n" + BODY)
    assert (await client.answer()).status == 431
    client = await rig.client()
    client.send(HOST + line)
    assert (await client.answer()).status == 431


@pytest.mark.parametrize("part", [HOST + b"X-A", HOST + b"Content-Length: 13\r\n\r\n{"])
async def test_a_request_that_does_not_come_is_answered_with_408(rig: Rig, part: bytes) -> None:
    """BEAT-02: deadlines for heads and for bodies."""
    await rig.engine()
    await rig.start(head_seconds=0.05, body_seconds=0.05)
    client = await rig.client()
    client.send(part)
    assert (await client.answer()).status == 408
    assert await client.is_closed()


async def test_an_idle_connection_is_closed_in_silence(rig: Rig) -> None:
    """BEAT-02: a deadline for the next request."""
    await rig.engine()
    await rig.start(keep_alive_seconds=0.05)
    client = await rig.client()
    client.send(post())
    assert (await client.answer()).status == 200
    assert await client.is_closed()


async def test_a_connection_too_many_is_told_so(rig: Rig) -> None:
    """BEAT-02: a limit on connections."""
    await rig.engine()
    await rig.start(connections=1)
    first, second = await rig.client(), await rig.client()
    assert (await second.answer()).status == 503
    first.send(post())
    assert (await first.answer()).status == 200


async def test_an_offer_of_another_protocol_is_declined_and_the_body_read(rig: Rig, make_inlet: object) -> None:
    """Java's client offers h2c on every request without TLS. Over aiohttp, such a request is a connection's last."""
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    offer = {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "HTTP2_Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA",
    }
    client.send(
        post(**offer) + b"GET /v1/models HTTP/1.1\r\nhost: gw\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" + post()
    )
    answers = 1 if make_inlet is AiohttpInlet else 3
    assert [(await client.answer()).status for _ in range(answers)] == [200] * answers
    assert [asked.body for asked in engine.asked] == [BODY, BODY][:answers]
    if make_inlet is AiohttpInlet:
        assert await client.is_closed()
    assert {b"upgrade", b"http2-settings", b"connection"}.isdisjoint(engine.asked[0].headers)


async def test_an_absolute_target_is_understood(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    assert (await rig.ask(post(path="http://gw/v1/x?y=1"))).status == 200
    assert engine.asked[0].line == b"POST /v1/x?y=1 HTTP/1.1"


async def test_draining_closes_idle_connections_and_finishes_busy_ones(rig: Rig) -> None:
    release = asyncio.Event()

    async def slow(_asked: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na")
        await release.wait()
        writer.write(b"b")

    await rig.engine(slow)
    await rig.start()
    idle, busy = await rig.client(), await rig.client()
    busy.send(post())
    await busy.head()
    rig.stopping.set()
    assert await idle.is_closed()
    assert not rig.serving.done()
    release.set()
    assert await busy.reader.readexactly(2) == b"ab"
    assert await busy.is_closed()
    await rig.serving
    with pytest.raises(ConnectionError):
        await rig.client()


async def test_while_closing_answers_ask_for_another_connection(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(post())
    assert b"connection" not in (await client.answer()).headers
    rig.inlet.draining = True
    client.send(post())
    assert (await client.answer()).headers[b"connection"] == b"close"
    assert (await rig.ask()).status == 200
