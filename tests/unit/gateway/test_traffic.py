"""Requests through a worker: what engines get, what clients get, what is tried again, what is cut."""

import asyncio
import socket

import msgspec
import pytest
from structlog.testing import capture_logs
from tests.unit.gateway.rig import OK, Asked, Rig, answer_ok, answering, post

from matrixinfer.gateway.core.load import Burden
from matrixinfer.gateway.core.types import TrafficPolicy
from matrixinfer.gateway.wire.pool import PoolLimits

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = post(b'{"model":"m","stream":true}')


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


# -- what engines and clients get ---------------------------------------------------------------------------------


async def test_bytes_go_through_as_they_came(rig: Rig) -> None:
    answer_body = b'{ "big": 9007199254740993,\n "b": 1.0e5, "a": "\\u00e9" }'
    engine = await rig.engine(
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer_body), answer_body)
    )
    await rig.start()
    body = b'{"seed":9007199254740993 , "z":1,"model":"m","a":{"model":"x"}}'
    answer = await rig.ask(post(body))
    assert engine.asked[0].body == body
    assert answer.body == answer_body
    assert rig.in_flight() == [0] * 64


async def test_the_model_is_rewritten_where_the_server_asks_for_it_and_for_no_adapter(rig: Rig) -> None:
    engine = await rig.engine()
    rig.model = "org/Real"
    await rig.start()
    await rig.ask(post(b'{"model":"m", "x": "m"}'))
    await rig.ask(post(b'{"model":"lora"}'))
    assert [asked.body for asked in engine.asked] == [b'{"model":"org/Real", "x": "m"}', b'{"model":"lora"}']
    assert engine.asked[0].headers[b"content-length"] == b"30"


async def test_an_engine_gets_neither_credentials_nor_hop_by_hop_headers(rig: Rig) -> None:
    """BEAT-13, 14: nor a wish for compression, which would hide what the answer says of tokens."""
    engine = await rig.engine()
    await rig.start()
    await rig.ask(
        post(
            authorization="Bearer secret",
            x_api_key="secret",
            cookie="a=b",
            connection="keep-alive, X-Hop",
            x_hop="1",
            te="trailers",
            accept_encoding="gzip",
            x_mine="2",
            x_request_id="abc",
        )
    )
    headers = engine.asked[0].headers
    dropped = {b"authorization", b"x-api-key", b"cookie", b"connection", b"x-hop", b"te", b"accept-encoding"}
    assert dropped.isdisjoint(headers)
    assert headers[b"x-mine"] == b"2"
    assert headers[b"x-request-id"] == b"abc"
    assert headers[b"host"] == f"{engine.address}:{engine.port}".encode()


async def test_a_client_gets_its_request_id_and_no_hop_by_hop_header(rig: Rig) -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: X-Hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-mine: 2\r\n"
    head += b"x-request-id: theirs\r\n"
    await rig.engine(answering(head + b"content-length: 0\r\n\r\n"))
    await rig.start()
    answer = await rig.ask(post(x_request_id="abc"))
    assert answer.headers == {b"x-mine": b"2", b"x-request-id": b"abc", b"content-length": b"0"}
    made = await rig.ask(post(x_request_id="not visible"))
    assert made.headers[b"x-request-id"].startswith(b"made-")
    refused = await rig.ask(post(b'{"model":"nobody"}', x_request_id="abc"))
    assert refused.headers[b"x-request-id"] == b"abc"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk(b"one")
        + chunk(b"two")
        + b"0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nonetwo",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nonetwo",
    ],
)
async def test_every_framing_of_an_answer_arrives(rig: Rig, answer: bytes) -> None:
    await rig.engine(answering(*(answer[i : i + 7] for i in range(0, len(answer), 7))))
    await rig.start()
    got = await rig.ask()
    assert (got.status, got.body, got.complete) == (200, b"onetwo", True)


async def test_an_answer_that_ends_with_the_connection_is_complete(rig: Rig) -> None:
    async def until_closed(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        await writer.drain()
        writer.close()

    engine = await rig.engine(until_closed)
    await rig.start()
    got = await rig.ask()
    assert (got.body, got.complete, got.headers[b"transfer-encoding"]) == (b"all of it", True, b"chunked")
    client = await rig.client()
    client.send(post().replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert (await client.answer()).body == b"all of it"
    assert engine.connections == 2


async def test_the_board_follows_an_answer_from_the_prompt_to_the_last_token(rig: Rig) -> None:
    go = asyncio.Event()

    async def in_pieces(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        go.clear()
        writer.write(STREAM_HEAD)
        for _ in range(30):
            writer.write(chunk(b"data: {}\n\n"))
            await writer.drain()
            await asyncio.sleep(0.002)
        await go.wait()
        writer.write(b"0\r\n\r\n")

    engine = await rig.engine(in_pieces)
    await rig.start()
    body = b'{"model":"m","stream":true,"max_tokens":100,"prompt":"%s"}' % (b"x" * 400)
    asking = rig.tasks.create_task(rig.ask(post(body, path="/v1/completions")))
    await rig.until(lambda: engine.asked)
    rig.handler.note_progress()
    before = rig.loads()
    assert before.prefill_tokens[0] >= 100
    assert before.decode_tokens[0] == 100
    go.set()
    await rig.until(lambda: not rig.loads().prefill_tokens[0])
    await rig.until(lambda: rig.handler.note_progress() and rig.loads().decode_tokens[0] <= 100 - 25)
    assert rig.loads().requests[0] == 1
    go.set()
    await asking
    after = rig.loads()
    assert (after.requests[0], after.prefill_tokens[0], after.decode_tokens[0]) == (0, 0, 0)
    assert rig.handler.note_progress() == pytest.approx(0.2)


async def test_pieces_arrive_one_by_one(rig: Rig) -> None:
    go = asyncio.Event()

    async def behave(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: 1\n\n"))
        await go.wait()
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    await rig.engine(behave)
    await rig.start()
    client = await rig.client()
    client.send(STREAM)
    status, headers = await client.head()
    assert (status, headers[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
    assert await client.chunk() == b"data: 1\n\n"
    go.set()
    assert await client.chunks() == (b"data: 2\n\n", True)
    record = await rig.record()
    assert (record.outcome, record.stream, record.bytes_out, record.pod) == ("ok", True, 18, "pod-0")
    assert 0 <= record.overhead_ms <= record.first_byte_ms <= record.total_ms


async def test_connections_to_engines_are_used_again(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    for _ in range(5):
        assert (await rig.ask()).status == 200
    assert (engine.connections, len(engine.asked)) == (1, 5)


async def test_an_engines_refusal_is_passed_on_verbatim_and_asked_for_once(rig: Rig) -> None:
    body = b'{"object":"error","message":"too long","param":"input_tokens"}'
    engine = await rig.engine(answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(body) + body))
    await rig.engine()
    await rig.start()
    rig.publish(without=(rig.engines[1],))
    answer = await rig.ask()
    assert (answer.status, answer.body) == (400, body)
    assert len(engine.asked) == 1
    assert (await rig.record()).outcome == "engine_error"


@pytest.mark.parametrize(
    ("request_bytes", "status", "code", "param"),
    [
        (post(b'{"model":"nobody"}'), 404, "model_not_found", "model"),
        (post(b"{}"), 400, None, "model"),
        (post(b"nonsense"), 400, None, None),
        (post(path="/v2/x"), 404, "not_found", None),
        (post(path="/v1/%2e%2e/metrics"), 400, None, None),
        (post(path="/v1/load_lora_adapter"), 404, "not_found", None),
        (post(path="/v1/models"), 405, "method_not_allowed", None),
        (b"GET /v1/chat/completions HTTP/1.1\r\nhost: gw\r\n\r\n", 405, "method_not_allowed", None),
        (post(content_type="multipart/form-data; boundary=x"), 400, None, None),
        (post(content_type="multipart/form-data"), 400, None, None),
        (post(content_encoding="gzip"), 415, "unsupported_media_type", None),
        (b"GET /v1/models/nobody HTTP/1.1\r\nhost: gw\r\n\r\n", 404, "model_not_found", "model"),
    ],
)
async def test_refusals_are_openai_errors(
    rig: Rig, request_bytes: bytes, status: int, code: str | None, param: str | None
) -> None:
    """BEAT-24: an object with a message, a type, a parameter and a code."""
    engine = await rig.engine()
    await rig.start()
    answer = await rig.ask(request_bytes)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers[b"content-type"] == b"application/json"
    assert engine.asked == []


async def test_models_are_listed_with_their_adapters(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    answer = await rig.ask(b"GET /v1/models HTTP/1.1\r\nhost: gw\r\n\r\n")
    cards = {card["id"]: card for card in msgspec.json.decode(answer.body)["data"]}
    assert cards["lora"]["parent"] == "m"
    assert cards["m"] == {"id": "m", "created": 1, "object": "model", "owned_by": "matrixinfer"}
    one = await rig.ask(b"GET /v1/models/m HTTP/1.1\r\nhost: gw\r\n\r\n")
    assert msgspec.json.decode(one.body) == cards["m"]


# -- which endpoint -----------------------------------------------------------------------------------------------


async def test_simultaneous_requests_spread_over_the_endpoints(rig: Rig) -> None:
    release = asyncio.Event()

    async def wait(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(OK)

    for _ in range(4):
        await rig.engine(wait)
    await rig.start()
    asking = [rig.tasks.create_task(rig.ask()) for _ in range(8)]
    await rig.until(lambda: sum(len(engine.asked) for engine in rig.engines) == 8)
    assert [len(engine.asked) for engine in rig.engines] == [2, 2, 2, 2]
    assert rig.in_flight()[:4] == [2, 2, 2, 2]
    release.set()
    assert [(await task).status for task in asking] == [200] * 8
    assert rig.in_flight() == [0] * 64


async def test_full_endpoints_mean_429_with_retry_after(rig: Rig) -> None:
    """BEAT-25, 26."""
    release = asyncio.Event()

    async def wait(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(OK)

    engine = await rig.engine(wait)
    rig.policy = TrafficPolicy(max_in_flight_per_endpoint=1)
    await rig.start()
    first = rig.tasks.create_task(rig.ask())
    await rig.until(lambda: engine.asked)
    refused = await rig.ask()
    assert (refused.status, refused.headers[b"retry-after"], refused.error["code"]) == (429, b"1", "overloaded")
    release.set()
    assert (await first).status == 200


async def test_no_endpoint_means_503_with_retry_after(rig: Rig) -> None:
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.error["code"], answer.headers[b"retry-after"]) == (503, "no_endpoints", b"5")


# -- what is tried again ------------------------------------------------------------------------------------------


async def reset(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def die_in_head(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    await writer.drain()
    writer.close()


SHUTTING_DOWN = b'{"error":{"message":"cannot schedule new futures after shutdown","code":500}}'
FAILING = {
    "reset": reset,
    "dies in its head": die_in_head,
    "not http": answering(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "switches protocols": answering(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
    "503": answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno"),
    "502": answering(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"),
    "shutting down": answering(b"HTTP/1.1 500 Oops\r\ncontent-length: %d\r\n\r\n" % len(SHUTTING_DOWN) + SHUTTING_DOWN),
}


@pytest.mark.parametrize("name", FAILING)
async def test_before_the_first_byte_another_endpoint_is_asked_with_the_whole_request(rig: Rig, name: str) -> None:
    bad, good = await rig.engine(FAILING[name]), await rig.engine()
    await rig.start()
    rig.board.row(0).enter(1, Burden())
    answer = await rig.ask()
    assert (answer.status, answer.body) == (200, b'{"ok":true}')
    assert len(bad.asked) == 1
    assert [asked.body for asked in good.asked] == [b'{"model":"m"}']
    record = await rig.record()
    assert (record.retries, record.pod, len(record.failures)) == (1, "pod-1", 1)


async def test_an_endpoint_that_does_not_listen_is_passed_over(rig: Rig) -> None:
    await rig.engine(listening=False)
    await rig.engine()
    await rig.start()
    rig.board.row(0).enter(1, Burden())
    assert (await rig.ask()).status == 200
    assert (await rig.record()).failures[0].startswith("pod-0: connect")


async def test_retries_are_bounded_and_the_engines_last_word_is_passed_on(rig: Rig) -> None:
    for _ in range(5):
        await rig.engine(FAILING["503"])
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.body) == (503, b"no")
    assert sum(len(engine.asked) for engine in rig.engines) == 3


async def test_when_all_fail_without_an_answer_the_client_is_told_when_to_come_back(rig: Rig) -> None:
    await rig.engine(reset)
    rig.policy = TrafficPolicy(retry_attempts=1, retry_interval_seconds=0)
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.error["code"], answer.headers[b"retry-after"]) == (503, "reset", b"1")
    assert len(rig.engines[0].asked) == 2


async def test_an_engines_own_500_is_not_repeated(rig: Rig) -> None:
    engine = await rig.engine(answering(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\nboom"))
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.body, len(engine.asked)) == (500, b"boom", 1)


async def test_a_large_error_is_relayed_and_not_kept(rig: Rig) -> None:
    body = b"x" * 200_000
    await rig.engine(answering(b"HTTP/1.1 503 Busy\r\ncontent-length: %d\r\n\r\n" % len(body), body))
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.body) == (503, body)


async def test_a_kept_connection_that_fails_on_reuse_is_replaced_once(rig: Rig) -> None:
    """llama.cpp closes after each stream while its header promises to keep the connection."""

    async def lie(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if len(engine.asked) in (1, 3):
            writer.write(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5, max=100\r\n\r\n", 1))
        else:
            writer.transport.abort()
            engine.behave = answer_ok

    engine = await rig.engine(lie)
    rig.policy = TrafficPolicy(retry_attempts=0)
    await rig.start()
    assert (await rig.ask()).status == 200
    assert (await rig.ask()).status == 200
    record = await rig.record()
    assert (rig.records[-1].stale_connections, record.retries) == (1, 0)
    assert (engine.connections, len(engine.asked)) == (2, 3)


async def test_a_connection_that_the_engine_closed_meanwhile_is_not_used(rig: Rig) -> None:
    async def close_after(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    engine = await rig.engine(close_after)
    await rig.start()
    await rig.ask()
    await rig.until(lambda: not rig.pool.size)
    assert (await rig.ask()).status == 200
    assert (engine.connections, rig.records[-1].stale_connections) == (2, 0)


async def test_bytes_behind_an_answer_never_reach_the_next_client(rig: Rig) -> None:
    engine = await rig.engine(answering(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"))
    await rig.start()
    assert (await rig.ask()).body == b'{"ok":true}'
    assert (await rig.ask()).body == b'{"ok":true}'
    assert engine.connections == 2


async def test_an_idle_connection_is_closed_in_time(rig: Rig) -> None:
    engine = await rig.engine()
    rig.pool_limits = PoolLimits(idle_seconds=0.02)
    await rig.start()
    await rig.ask()
    await asyncio.sleep(0.03)
    rig.pool.sweep(asyncio.get_running_loop().time(), rig.handler.peers())
    await engine.lost.wait()
    assert (await rig.ask()).status == 200
    assert engine.connections == 2


# -- deadlines ----------------------------------------------------------------------------------------------------


async def silence(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def one_piece_then_silence(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunk(b"data: 1\n\n"))
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (TrafficPolicy(first_byte_seconds=0.05), "first_byte_timeout"),
        (TrafficPolicy(total_seconds=0.05), "total_timeout"),
    ],
)
async def test_an_engine_that_never_answers_costs_a_504(rig: Rig, policy: TrafficPolicy, code: str) -> None:
    engine = await rig.engine(silence)
    rig.policy = policy
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.error["code"]) == (504, code)
    assert len(engine.asked) == 1
    await engine.lost.wait()


@pytest.mark.parametrize(
    ("policy", "code"),
    [(TrafficPolicy(idle_seconds=0.05), "idle_timeout"), (TrafficPolicy(total_seconds=0.08), "total_timeout")],
)
async def test_a_stream_that_falls_silent_ends_with_an_error_event_and_no_end(
    rig: Rig, policy: TrafficPolicy, code: str
) -> None:
    """vLLM, told to stop, may leave a stream open without a word."""
    engine = await rig.engine(one_piece_then_silence)
    rig.policy = policy
    await rig.start()
    client = await rig.client()
    client.send(STREAM)
    await client.head()
    body, complete = await client.chunks()
    assert not complete
    first, error = [event for event in body.split(b"\n\n") if event]
    assert first == b"data: 1"
    assert msgspec.json.decode(error.removeprefix(b"data: "))["error"]["code"] == code
    await engine.lost.wait()
    assert (await rig.record()).outcome == code


async def test_an_answer_that_breaks_off_is_seen_to_be_incomplete(rig: Rig) -> None:
    async def break_off(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.transport.abort()

    await rig.engine(break_off)
    good = await rig.engine()
    await rig.start()
    rig.board.row(0).enter(1, Burden())
    answer = await rig.ask()
    assert (answer.status, answer.complete, answer.body) == (200, False, b"half")
    assert good.asked == []


async def test_an_endpoint_that_is_gone_ends_what_waits_for_it(rig: Rig) -> None:
    """The pod's node is dead: no reset ever comes. Its object's end is the sign."""
    dead, good = await rig.engine(silence), await rig.engine()
    await rig.start()
    rig.board.row(0).enter(1, Burden())
    asking = rig.tasks.create_task(rig.ask())
    await rig.until(lambda: dead.asked)
    rig.publish(without=(dead,), gone=("uid-0",))
    assert (await asking).status == 200
    assert len(good.asked) == 1
    assert rig.in_flight()[0] == 0


async def test_an_endpoint_that_was_withdrawn_finishes_what_it_has(rig: Rig) -> None:
    go = asyncio.Event()

    async def slow(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(OK)

    old = await rig.engine(slow)
    await rig.start()
    asking = rig.tasks.create_task(rig.ask())
    await rig.until(lambda: old.asked)
    new = await rig.engine()
    rig.publish(without=(old,))
    assert (await rig.ask()).status == 200
    assert len(new.asked) == 1
    go.set()
    assert (await asking).status == 200


# -- clients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behave", [silence, one_piece_then_silence])
async def test_a_client_that_leaves_ends_the_engines_work(rig: Rig, behave: object) -> None:
    engine = await rig.engine(behave)  # type: ignore[arg-type]
    await rig.start()
    client = await rig.client()
    client.send(STREAM)
    await rig.until(lambda: engine.asked)
    client.close()
    await engine.lost.wait()
    record = await rig.record()
    assert (record.outcome, record.status) == ("client_gone", 499)
    assert rig.in_flight() == [0] * 64


@pytest.mark.parametrize("made", [True, False], ids=["new connection", "kept connection"])
async def test_a_client_that_leaves_with_the_last_event_has_had_its_answer(rig: Rig, made: bool) -> None:
    """Many do: what ends the stream on the wire may come later, and tells them nothing."""

    async def says_all_and_stays(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b'data: {"x":1}\n\n') + chunk(b"data: [DONE]\n\n"))
        await asyncio.Event().wait()

    engine = await rig.engine()
    await rig.start()
    if not made:
        await rig.ask()
    engine.behave = says_all_and_stays
    rig.records.clear()
    client = await rig.client()
    client.send(STREAM)
    await client.head()
    received = b""
    while not received.endswith(b"[DONE]\n\n"):
        received += await client.chunk()
    client.close()
    await engine.lost.wait()
    record = await rig.record()
    assert (record.outcome, record.status) == ("ok", 200)
    assert engine.connections == 1
    assert rig.in_flight() == [0] * 64
    report = rig.stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
    assert {series.client_gone for series in report.series.values()} == {0}


async def test_a_slow_client_slows_the_engine_and_fills_no_memory(rig: Rig) -> None:
    written = 0

    async def flood(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        for _ in range(2000):
            writer.write(chunk(b"x" * 65536))
            await writer.drain()
            written += 65536
        writer.write(b"0\r\n\r\n")

    await rig.engine(flood)
    await rig.start()
    client = await rig.client(limit=4096)
    client.send(STREAM)
    await client.head()
    before = -1
    while written != before:
        before = written
        await asyncio.sleep(0.02)
    # Socket buffers and two bounded buffers of ours; the rest waits in the engine.
    assert written < 40 * 2**20
    client.close()


async def test_a_client_that_reads_nothing_is_given_up(rig: Rig) -> None:
    """BEAT-02: a deadline for what is written."""

    async def flood(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunk(b"x" * 65536))
            await writer.drain()

    engine = await rig.engine(flood)
    await rig.start(write_stall_seconds=0.05)
    client = await rig.client(limit=1024)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(STREAM)
    await client.head()
    await engine.lost.wait()
    assert (await rig.record()).outcome == "client_stalled"


async def test_a_fault_of_ours_costs_one_request(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.engine()
    await rig.start()
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(rig.pool, "take", lambda *_: 1 / 0)
        answer = await rig.ask()
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert [line["event"] for line in logs] == ["request_failed"]
    assert (await rig.ask()).status == 200
    assert rig.in_flight() == [0] * 64


async def test_every_request_is_counted_under_a_name_that_exists(rig: Rig) -> None:
    await rig.engine()
    await rig.start()
    await rig.ask()
    await rig.ask(post(b'{"model":"made up by a client"}'))
    report = rig.stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
    ended = {key: {c: n for c, n in series.requests.items() if n} for key, series in report.series.items()}
    assert {key: requests for key, requests in ended.items() if requests} == {
        ("m", "ns/r", "s"): {("200", "ok"): 1},
        ("", "", ""): {("404", "model_not_found"): 1},
    }
    assert {series.in_flight for series in report.series.values()} == {0}
    timed = {key for key, series in report.series.items() if series.first_token and series.overhead}
    assert timed == {("m", "ns/r", "s")}
