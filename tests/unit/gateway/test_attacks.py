"""Clients that mean harm, or are merely broken: what they can make an inlet hold, say twice, or pass on."""

import asyncio
import logging
import socket
import struct

import pytest
from tests.unit.gateway.rig import OK, Asked, Rig, answering, post

from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet
from matrixinfer.gateway.wire.message import Exchange

BOTH_INLETS = True
HOST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\n"
BODY = b'{"model":"m"}'
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: gw\r\n\r\n"
IN_CHUNKS = HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 9000, HOST + b"Transfer-Encoding: xchunked\r\n\r\n" + b"z" * 9000, HOST + b"A: " + b"a" * 9000],
    ids=["garbage", "unknown coding", "long header"],
)
async def test_a_refusal_is_the_last_word_and_said_once(rig: Rig, data: bytes) -> None:
    await rig.engine()
    await rig.start(head_bytes=2000)
    client = await rig.client()
    client.send(data)
    assert 400 <= (await client.answer()).status < 600
    assert await client.is_closed()


@pytest.mark.parametrize("target", ["/v1/x#y", "/v1/x?a=\xe9", "http://", "http:///v1/x", "ftp://gw/v1/x", "//gw/v1/x"])
async def test_a_target_that_servers_read_differently_is_refused(rig: Rig, target: str) -> None:
    engine = await rig.engine()
    await rig.start()
    assert (await rig.ask(post(path=target))).status == 400
    assert engine.asked == []


async def test_the_answer_to_a_head_request_has_no_body(rig: Rig) -> None:
    """Else the next answer on the connection begins with it."""
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(b"HEAD /v1/models HTTP/1.1\r\nhost: gw\r\n\r\n" + HEALTH)
    status, headers = await client.head()
    assert (status, int(headers[b"content-length"]) > 0) == (200, True)
    assert (await client.answer()).status == 200


async def test_offers_of_another_protocol_in_a_row_are_all_declined(rig: Rig, make_inlet: object) -> None:
    """aiohttp loses what comes in one read behind an offer, so over it the first one is the connection's last."""
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n") * 1200)
    for _ in range(1 if make_inlet is AiohttpInlet else 1200):
        assert (await client.answer()).status == 200
    assert make_inlet is not AiohttpInlet or await client.is_closed()


@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"0\r\nT: t", b"t"), (b"1;e", b"e"), (b"0", b"0")],
    ids=["trailer", "chunk extension", "digits of a chunk size"],
)
async def test_what_comes_besides_a_body_has_a_bound(rig: Rig, begin: bytes, more: bytes) -> None:
    await rig.engine()
    await rig.start(head_bytes=2000)
    client = await rig.client()
    client.send(IN_CHUNKS + begin)
    for _ in range(9):
        client.send(more * 1000)
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.answer()).status in (400, 413, 431)
    assert await client.is_closed()


async def test_a_trailer_never_becomes_a_header_of_the_next_request(rig: Rig, make_inlet: object) -> None:
    """aiohttp confuses the two, so over it a request in chunks is its connection's last."""
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(IN_CHUNKS + b"d\r\n" + BODY + b"\r\n0\r\nX-Tenant: other\r\n\r\n" + post())
    assert (await client.answer()).status == 200
    if make_inlet is AiohttpInlet:
        assert await client.is_closed()
    else:
        assert (await client.answer()).status == 200
    assert all(b"x-tenant" not in asked.headers for asked in engine.asked)


async def test_header_lines_are_limited_in_number(rig: Rig) -> None:
    await rig.engine()
    await rig.start(head_fields=20)
    lines = b"".join(b"a%d: b\r\n" % i for i in range(20))
    client = await rig.client()
    client.send(HOST + lines + b"\r\n")
    assert (await client.answer()).status == 431


async def test_white_space_around_a_value_is_not_part_of_it(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(HOST + b"X-Request-Id:  abc \t \r\nTransfer-Encoding: chunked \r\n\r\nd\r\n" + BODY + b"\r\n0\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.headers[b"x-request-id"]) == (200, b"abc")
    assert engine.asked[0].body == BODY


INJECTIONS = {
    "model name": post(rb'{"model":"x\r\nset-cookie: a=b\r\n\r\n<script>"}'),
    "path": post(path="/%0d%0aset-cookie:a=b"),
    "model path": b"GET /v1/models/%0d%0aset-cookie:%20a=b HTTP/1.1\r\nhost: gw\r\n\r\n",
    "method": b"X-METHOD /v1/models HTTP/1.1\r\nhost: gw\r\n\r\n",
    "media type": post(content_type="multipart/x;\tset-cookie: a=b"),
    "request id": post(x_request_id="a\x85set-cookie: a=b"),
    "long request id": post(x_request_id="a" * 5000),
}


@pytest.mark.parametrize("name", INJECTIONS)
async def test_nothing_that_is_echoed_becomes_a_header(rig: Rig, name: str) -> None:
    await rig.engine()
    await rig.start()
    answer = await rig.ask(INJECTIONS[name])
    assert set(answer.headers) <= {b"content-type", b"content-length", b"x-request-id", b"connection", b"allow"}
    assert len(answer.headers.get(b"x-request-id", b"")) <= 128
    assert b"set-cookie" not in b"".join(answer.headers.values())


async def test_bodies_count_against_the_budget_until_their_answers_begin(rig: Rig) -> None:
    """A request that waits for its endpoint holds its body: it may have to be sent again."""
    begin, finish = asyncio.Event(), asyncio.Event()

    async def slow(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await begin.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        await finish.wait()
        writer.write(b"k")

    engine = await rig.engine(slow)
    await rig.start(buffered_bytes=5000)
    client = await rig.client()
    client.send(post(BODY.ljust(4000)))
    await rig.until(lambda: engine.asked)
    assert (await rig.ask(post(BODY.ljust(2000)))).status == 503
    begin.set()
    await client.head()
    other = await rig.client()
    other.send(post(BODY.ljust(4900)))
    assert (await other.head())[0] == 200
    finish.set()
    # The refusal has a line too.
    await rig.until(lambda: len(rig.records) > 1)
    assert rig.records[-1].bytes_in in (4000, 4900)


async def test_a_pipelined_expectation_is_met_when_its_turn_comes(rig: Rig) -> None:
    release = asyncio.Event()

    async def slow(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(OK)

    await rig.engine(slow)
    await rig.start()
    client = await rig.client()
    client.send(post() + HOST + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n")
    release.set()
    assert (await client.answer()).status == 200
    assert (await client.head())[0] == 100
    client.send(BODY)
    assert (await client.answer()).status == 200


async def test_a_fault_outside_of_the_handlers_guard_costs_one_connection(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await rig.engine()
    await rig.start()
    rig.serving.cancel()
    calls = 0

    async def breaks_once(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError
        await rig.handler(exchange)

    await rig.serve(breaks_once)
    unlucky, lucky = await rig.client(), await rig.client()
    with caplog.at_level(logging.CRITICAL):
        unlucky.send(post())
        assert await unlucky.is_closed()
    lucky.send(post())
    assert (await lucky.answer()).status == 200
    assert len(engine.asked) == 1


async def test_a_client_that_resets_as_its_answer_is_cut_costs_one_connection(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    rig.serving.cancel()

    async def cut_once(exchange: Exchange) -> None:
        if resetting.fileno() < 0:
            await rig.handler(exchange)
            return
        exchange.begin(200, [], 100)
        exchange.flush()
        await asyncio.sleep(0)
        resetting.close()
        exchange.cut()

    await rig.serve(cut_once)
    with socket.socket() as resetting:
        resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        resetting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(resetting, ("127.0.0.1", rig.port))
        await asyncio.get_running_loop().sock_sendall(resetting, post())
        await rig.until(lambda: resetting.fileno() < 0)
    assert (await rig.ask()).status == 200


async def test_a_client_that_closes_its_half_is_one_that_left(rig: Rig) -> None:
    """Nobody can tell the two apart in time, and the engine's work is worth more than the rare client that waits on."""
    never = asyncio.Event()

    async def silent(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
        await never.wait()

    engine = await rig.engine(silent)
    await rig.start()
    client = await rig.client()
    client.send(post())
    await rig.until(lambda: engine.asked)
    client.writer.write_eof()
    await engine.lost.wait()
    assert await client.is_closed()


async def test_every_refused_connection_is_told_why_until_there_are_too_many(rig: Rig) -> None:
    await rig.engine()
    await rig.start(connections=1)
    first = await rig.client()
    refused = [await rig.client() for _ in range(20)]
    assert {(await client.answer()).status for client in refused} == {503}
    first.send(HEALTH)
    assert (await first.answer()).status == 200


# -- engines ------------------------------------------------------------------------------------------------------

S = b"HTTP/1.1 200 OK\r\n"
IN_PIECES = S + b"transfer-encoding: chunked\r\n\r\n"
NO_ANSWERS = {
    "length and chunked": S + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked and length": S + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": S + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok",
    "unknown coding": S + b"transfer-encoding: xchunked\r\n\r\nok",
    "gzip before chunked": S + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": S + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "folded header": S + b"a: b\r\n c\r\ncontent-length: 2\r\n\r\nok",
    "header with a line feed": S + b"a: b\nset-cookie: c\r\ncontent-length: 2\r\n\r\nok",
    "header with a nul": S + b"a: b\0\r\ncontent-length: 2\r\n\r\nok",
    "status 000": b"HTTP/1.1 000 None\r\ncontent-length: 2\r\n\r\nok",
    "status 999": b"HTTP/1.1 999 None\r\ncontent-length: 2\r\n\r\nok",
    "http 2": b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "http 0.9": b"<html>",
    "another protocol": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "interim answer with a body": b"HTTP/1.1 110 Odd\r\ncontent-length: 24\r\n\r\nHTTP/1.1 200 OK\r\na: b\r\n\r\n" + OK,
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 12_000,
    "a head without end": S + b"a: " + b"a" * 300_000,
    "headers without end": S + b"a: b\r\n" * 50_000,
}


@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_an_engines_answer_that_two_parsers_could_read_differently_is_none(rig: Rig, name: str) -> None:
    """Another endpoint is asked, and the client never sees a byte of it."""
    await rig.engine(answering(NO_ANSWERS[name]))
    await rig.start()
    refused = await rig.ask()
    assert (refused.status, refused.error["code"]) == (503, "bad_response")
    await rig.engine()
    rig.publish(without=(rig.engines[0],))
    assert (await rig.ask()).body == b'{"ok":true}'


@pytest.mark.parametrize(
    "flood",
    [b"0\r\nT: " + b"t" * 400_000, b"5;" + b"e" * 400_000, b"0" * 400_000],
    ids=["trailer", "chunk extension", "digits of a chunk size"],
)
async def test_what_an_engine_sends_besides_its_answer_has_a_bound(rig: Rig, flood: bytes) -> None:
    await rig.engine(answering(IN_PIECES + b"5\r\nhello\r\n", flood))
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.body, answer.complete) == (200, b"hello", False)
    await rig.until(lambda: not rig.pool.size)


async def test_trailers_of_an_engine_are_dropped(rig: Rig) -> None:
    await rig.engine(answering(IN_PIECES + b"5\r\nhello\r\n0\r\nset-cookie: a=b\r\n\r\n"))
    await rig.start()
    answer = await rig.ask()
    assert (answer.body, answer.complete) == (b"hello", True)
    assert rig.pool.size == 1


async def test_an_engine_that_answers_before_it_has_read_the_request_is_let_go(rig: Rig) -> None:
    """Its answer is passed on; the connection must not wait for it to read the rest."""
    held: list[asyncio.StreamWriter] = []

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")

    engine = await rig.engine(listening=False)
    engine.server = await asyncio.start_server(deaf, engine.address, engine.port)
    await rig.start()
    answer = await rig.ask(post(BODY.ljust(16_000_000)))
    assert (answer.body, answer.status) == (b"no", 413)
    await rig.until(lambda: not rig.pool.size)
    for writer in held:
        writer.transport.abort()
