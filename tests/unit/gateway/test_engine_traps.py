"""What real engines were seen to do, one test each: vLLM 0.32 that is told to stop, and llama.cpp's connections."""

import asyncio
from dataclasses import replace

import msgspec
from tests.unit.gateway.rig import OK, Asked, Rig, post

from matrixinfer.gateway.core.budget import BudgetLimits
from matrixinfer.gateway.core.types import TrafficPolicy

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
ONE_EVENT = b"9\r\ndata: 1\n\n\r\n"
STREAM = post(b'{"model":"m","stream":true}')
SHUTTING_DOWN = b'{"error":{"message":"cannot schedule new futures after shutdown","code":500}}'


async def shutting_down(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(SHUTTING_DOWN) + SHUTTING_DOWN)


async def test_vllm_told_to_stop_leaves_its_stream_open_without_a_word(rig: Rig) -> None:
    """SIGTERM with --shutdown-timeout 0: neither a chunk nor an end ever comes. The deadline between pieces ends it."""

    async def dies_silently(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + CHUNKED + ONE_EVENT)
        await asyncio.Event().wait()

    dying, good = await rig.engine(dies_silently), await rig.engine()
    rig.policy = TrafficPolicy(idle_seconds=0.1)
    await rig.start()
    rig.load(1)
    client = await rig.client()
    client.send(STREAM)
    await client.head()
    assert await client.chunk() == b"data: 1\n\n"
    # Its socket listens no more; whoever comes meanwhile is served by the other one.
    assert dying.server is not None
    dying.server.close()
    rig.load(0, 9)
    assert (await rig.ask()).status == 200
    rest, complete = await client.chunks()
    assert not complete
    event = next(part for part in rest.split(b"\n\n") if part)
    assert msgspec.json.decode(event.removeprefix(b"data: "))["error"]["code"] == "idle_timeout"
    await dying.lost.wait()
    assert len(good.asked) == 1


async def test_vllm_that_shuts_down_answers_500_and_another_endpoint_answers(rig: Rig) -> None:
    """--shutdown-timeout 20: /health stays 200 all the while, a new request gets a 500 that says it cannot."""
    dying, good = await rig.engine(shutting_down), await rig.engine()
    await rig.start()
    rig.load(1)
    for request in (post(), STREAM):
        assert (await rig.ask(request)).status == 200
    assert len(dying.asked) == len(good.asked) == 2
    assert all(record.failures == ["pod-0: status"] for record in rig.records)


async def test_a_dying_server_that_answers_200_on_health_is_left_alone_for_what_it_does(rig: Rig) -> None:
    dying, good = await rig.engine(shutting_down), await rig.engine()
    await rig.start()
    rig.load(1)
    for _ in range(20):
        assert (await rig.ask()).status == 200
    assert len(dying.asked) == 5
    assert len(good.asked) == 20


async def test_an_engines_500_for_any_other_reason_is_the_clients(rig: Rig) -> None:
    async def out_of_memory(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\nboom")

    engines = [await rig.engine(out_of_memory) for _ in range(2)]
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.body, sum(len(engine.asked) for engine in engines)) == (500, b"boom", 1)


async def test_llama_cpp_closes_after_each_stream_although_it_promised_to_keep_the_connection(rig: Rig) -> None:
    """The close may cross the next request: one fresh connection is tried then, and costs neither retry nor budget."""
    crossing = asyncio.Event()

    async def promise_and_close(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if engine.asked.index(asked) % 2 and not crossing.is_set():
            # The request that was on its way when the engine closed.
            crossing.set()
            writer.transport.abort()
            return
        writer.write(STREAM_HEAD + b"keep-alive: timeout=5, max=100\r\n" + CHUNKED + ONE_EVENT + b"0\r\n\r\n")

    engine = await rig.engine(promise_and_close)
    rig.policy = TrafficPolicy(retry_attempts=0)
    rig.defaults = replace(rig.defaults, retry_budget=BudgetLimits(0, 0))
    await rig.start()
    for _ in range(2):
        answer = await rig.ask(STREAM)
        assert (answer.status, answer.body, answer.complete) == (200, b"data: 1\n\n", True)
    assert crossing.is_set()
    assert [(record.stale_connections, record.retries) for record in rig.records] == [(0, 0), (1, 0)]
    assert engine.connections == 2


async def test_a_connection_that_closes_again_and_again_on_use_is_an_endpoint_that_fails(rig: Rig) -> None:
    async def answer_once(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked is engine.asked[0]:
            writer.write(OK)
        else:
            writer.transport.abort()

    engine = await rig.engine(answer_once)
    await rig.engine()
    await rig.start()
    rig.load(1)
    assert (await rig.ask()).status == 200
    assert (await rig.ask()).status == 200
    record = rig.records[-1]
    assert (record.stale_connections, record.retries, record.pod) == (1, 1, "pod-1")
    assert len(engine.asked) == 3
