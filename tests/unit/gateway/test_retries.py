"""When a request is sent again, and when that would do harm: the known weaknesses of such gateways, by name."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from tests.unit.gateway.rig import OK, Asked, Rig, answer_ok, answering, post

from matrixinfer.gateway.core.budget import BudgetLimits
from matrixinfer.gateway.core.types import TrafficPolicy

BUSY = answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy")
TOO_LONG = b'{"error":{"message":"the prompt has 9000 tokens","code":400}}'


async def reset(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429])
async def test_beat_28_an_engines_4xx_is_passed_on_byte_for_byte_after_one_call(rig: Rig, status: int) -> None:
    head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(TOO_LONG))
    engines = [await rig.engine(answering(head + TOO_LONG)) for _ in range(3)]
    await rig.start()
    answer = await rig.ask()
    assert (answer.status, answer.body) == (status, TOO_LONG)
    assert sum(len(engine.asked) for engine in engines) == 1


async def test_beat_29_each_endpoint_gets_the_whole_body_and_no_connection_is_left_open(rig: Rig) -> None:
    bad, good = await rig.engine(BUSY), await rig.engine()
    await rig.start()
    rig.load(1, 9)
    # No prompt that would have a home of its own: the idle endpoint is asked first.
    body = b'{"model":"m","documents":"' + b"x" * 300_000 + b'"}'
    for _ in range(20):
        assert (await rig.ask(post(body, "/v1/rerank"))).status == 200
    assert {asked.body for engine in (bad, good) for asked in engine.asked} == {body}
    assert (bad.connections, good.connections) == (1, 1)


async def test_beat_27_when_all_fail_the_client_gets_one_document(rig: Rig) -> None:
    for _ in range(3):
        await rig.engine(reset)
    await rig.start()
    client = await rig.client()
    client.send(post(connection="close"))
    answer = await client.answer()
    assert answer.status == 503
    assert set(msgspec.json.decode(answer.body)) == {"error"}
    assert await client.reader.read() == b""


@pytest.mark.parametrize("attempts", [0, 1, 3])
async def test_beat_38_the_servers_attempts_are_honoured(rig: Rig, attempts: int) -> None:
    engines = [await rig.engine(BUSY) for _ in range(5)]
    rig.policy = TrafficPolicy(retry_attempts=attempts, retry_interval_seconds=0)
    await rig.start()
    assert (await rig.ask()).body == b"busy"
    assert sum(len(engine.asked) for engine in engines) == 1 + attempts


async def test_beat_38_the_servers_interval_is_honoured(rig: Rig) -> None:
    asked_at = []

    async def note(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        asked_at.append(asyncio.get_running_loop().time())
        await BUSY(_asked, writer)

    for _ in range(3):
        await rig.engine(note)
    rig.policy = TrafficPolicy(retry_attempts=2, retry_interval_seconds=0.03)
    await rig.start()
    await rig.ask()
    assert len(asked_at) == 3
    # Both loops round timers to milliseconds.
    assert min(b - a for a, b in pairwise(asked_at)) >= 0.028


async def test_a_pause_that_ends_after_the_request_does_is_not_begun(rig: Rig) -> None:
    """The client hears at once what went wrong, and not at its deadline that it had one."""
    engines = [await rig.engine(BUSY) for _ in range(2)]
    rig.policy = TrafficPolicy(retry_attempts=2, retry_interval_seconds=30)
    await rig.start()
    assert (await rig.ask(post(**{"x-request-timeout": "20"}))).body == b"busy"
    assert sum(len(engine.asked) for engine in engines) == 1


@pytest.mark.parametrize("behave", [BUSY, reset])
async def test_beat_40_an_overloaded_server_is_sent_at_most_a_fifth_more(rig: Rig, behave: object) -> None:
    engines = [await rig.engine(behave) for _ in range(4)]  # type: ignore[arg-type]
    rig.defaults = replace(rig.defaults, retry_budget=BudgetLimits(0.2, 0.0))
    await rig.start()
    for _ in range(100):
        assert (await rig.ask()).status == 503
    assert 100 < sum(len(engine.asked) for engine in engines) <= 120
    assert any("the retry budget is spent" in record.failures for record in rig.records)


async def test_beat_40_a_pod_that_goes_away_with_all_its_requests_does_not_exhaust_the_budget(rig: Rig) -> None:
    async def silence(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    dying, good = await rig.engine(silence), await rig.engine()
    rig.defaults = replace(rig.defaults, retry_budget=BudgetLimits(0.0, 0.0))
    await rig.start()
    good_is_busy = rig.load(1, 50)
    asking = [rig.tasks.create_task(rig.ask()) for _ in range(20)]
    await rig.until(lambda: len(dying.asked) == 20)
    good_is_busy()
    rig.publish(without=(dying,))
    dying.stop()
    assert {(await task).status for task in asking} == {200}
    assert len(good.asked) == 20


async def test_beat_40_a_refused_connection_costs_nothing_of_the_budget(rig: Rig) -> None:
    """The request was never sent, so sending it elsewhere multiplies no work."""
    await rig.engine(listening=False)
    good = await rig.engine()
    limits = BudgetLimits(0.0, 0.0)
    rig.defaults = replace(rig.defaults, retry_budget=limits, breaker=replace(rig.defaults.breaker, failures=0))
    await rig.start()
    rig.load(1, 50)
    assert [(await rig.ask()).status for _ in range(20)] == [200] * 20
    assert len(good.asked) == 20
    assert all(record.retries == 1 for record in rig.records)


@pytest.mark.parametrize("cut", [b"", b"5\r\nhello\r\n"])
async def test_beat_41_nothing_is_asked_again_once_a_byte_is_out(rig: Rig, cut: bytes) -> None:
    async def begin_and_die(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + cut)
        await writer.drain()
        writer.transport.abort()

    await rig.engine(begin_and_die)
    other = await rig.engine()
    await rig.start()
    rig.load(1)
    answer = await rig.ask()
    assert not answer.complete
    assert answer.body in (b"", b"hello")
    assert other.asked == []


async def test_a_stream_that_an_engine_begins_anew_on_the_same_connection_reaches_nobody(rig: Rig) -> None:
    await rig.engine(answering(OK + OK))
    await rig.start()
    assert (await rig.ask()).body == b'{"ok":true}'
    assert (await rig.ask()).body == b'{"ok":true}'


async def test_what_a_kept_connection_took_to_fail_is_not_the_gateways_own_time(rig: Rig) -> None:
    async def hesitate_and_close(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if engine.connections == 1 and len(engine.asked) == 2:
            await asyncio.sleep(0.5)
            writer.transport.abort()
            return
        await answer_ok(asked, writer)

    engine = await rig.engine(hesitate_and_close)
    await rig.start()
    assert [(await rig.ask()).status for _ in range(2)] == [200, 200]
    record = rig.records[-1]
    assert (record.stale_connections, record.retries) == (1, 0)
    assert record.overhead_ms < 400
