"""Token counts from the two ends of an answer: every form, and everything that only looks like one."""

import asyncio
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.gateway.rig import Asked, Rig, StubEngine, answering, post

from matrixinfer.gateway.core.usage import END_BYTES, Answer, Usage, usage_of
from matrixinfer.gateway.wire.relay import Deadlines, Relay

CHAT = b"/v1/chat/completions"


def of(document: bytes, **known: Any) -> Usage | None:
    first, last = document[:END_BYTES], document[-END_BYTES:]
    return usage_of(Answer(**{"path": CHAT, "first": first, "last": last, **known}), request_bytes=400)


FORMS = {
    "OpenAI chat": (
        (
            b'{"id":"x","choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":12,"total_tokens":19,'
            b'"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":8}},"kv_transfer_params":null}'
        ),
        Usage(12, 7, 8),
    ),
    "without details": (
        b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": null}}',
        Usage(3, 2),
    ),
    "responses": (
        (
            b'{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":4,"input_tokens_per_turn":[]},'
            b'"output_tokens":6,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":15},"user":null}'
        ),
        Usage(9, 6, 4),
    ),
    "Anthropic, whose input leaves out what was cached": (
        (
            b'{"type":"message","usage":{"input_tokens":2,"cache_creation_input_tokens":3,"cache_read_input_tokens":10,'
            b'"output_tokens":6,"cache_creation":{"ephemeral_5m_input_tokens":3}}}'
        ),
        Usage(15, 6, 10),
    ),
    "embeddings, counted before a long list": (
        b'{"object":"list","usage":{"prompt_tokens":4,"total_tokens":4},"data":[' + b"0.5," * 9000 + b"0]}",
        Usage(4, 0),
    ),
    "rerank": (b'{"id":"r","usage":{"total_tokens":56},"results":[]}', Usage(56, 0)),
    "the last of many": (
        (
            b'data: {"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
            b'data: {"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
        ),
        Usage(5, 2),
    ),
    "null in every piece but one": (
        b'data: {"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: {"usage":null}\n\n',
        Usage(5, 2),
    ),
    "a text that speaks of it": (
        (
            b'{"choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":99}"}}],'
            b'"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        ),
        Usage(1, 1),
    ),
    "numbers that are none": (b'{"usage":{"prompt_tokens":"many","completion_tokens":1}}', Usage(100, 0, 0, True)),
    "less than nothing": (b'{"usage":{"prompt_tokens":-5,"completion_tokens":1}}', Usage(100, 0, 0, True)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read(name: str) -> None:
    document, expected = FORMS[name]
    assert of(document) == expected


def test_anthropic_streams_say_the_prompt_first_and_the_answer_last() -> None:
    begin = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3,'
        b'"cache_read_input_tokens":20,"output_tokens":1}}}\n\n'
    )
    end = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":41}}\n\n'
    stream = begin + b"event: ping\ndata: {}\n\n" * 2000 + end
    assert of(stream, path=b"/v1/messages", pieces=2002, is_stream=True) == Usage(23, 41, 20)


def test_a_stream_that_its_client_left_is_counted_by_its_pieces() -> None:
    begin = b'data: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    cut = of(begin, path=b"/v1/messages", pieces=30, is_stream=True, is_complete=False)
    assert cut == Usage(3, 30, 0, is_estimate=True)
    assert of(b"data: {}\n\n", pieces=30, is_stream=True, is_complete=False) == Usage(100, 30, 0, is_estimate=True)


def test_an_answer_that_is_not_made_of_tokens_has_no_estimate() -> None:
    assert of(b"RIFF....", path=b"/v1/audio/speech") is None
    assert of(b'{"count":3}', path=b"/v1/tokenize") is None


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_no_bytes_are_too_strange(first: bytes, last: bytes) -> None:
    usage = usage_of(Answer(CHAT, first, last), 0)
    assert usage is not None
    assert min(usage.prompt, usage.completion, usage.cached) >= 0


@given(st.binary(max_size=60).map(lambda noise: b'"usage":{' + noise * 200))
def test_a_hostile_engine_cannot_make_it_slow(noise: bytes) -> None:
    """Runs within Hypothesis' deadline of 200 ms: no pattern here backtracks."""
    usage_of(Answer(CHAT, noise[:END_BYTES], noise[-END_BYTES:]), 0)


def stream(*events: bytes) -> tuple[bytes, ...]:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return head, *(b"%x\r\n%b\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"


def content(number: int, usage: bytes = b"") -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"t%d"}}]%b}\n\n' % (number, usage)


DONE = b"data: [DONE]\n\n"


async def test_usage_of_a_stream_is_recorded(rig: Rig) -> None:
    """BEAT-20."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":40,"total_tokens":51}}\n\n'
    await rig.engine(answering(*stream(*(content(i) for i in range(40)), usage, DONE)))
    await rig.start()
    answer = await rig.ask(post(b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'))
    assert usage in answer.body
    record = await rig.record()
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (11, 40, False)
    report = rig.stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
    series = report.series["m", "ns/r", "s"]
    assert series.tokens == {("prompt", False): 11, ("completion", False): 40, ("cached", False): 0}
    assert series.per_token is not None
    assert sum(series.per_token.counts) == 1


async def test_usage_that_comes_with_every_piece_is_counted_once_and_no_piece_is_lost(rig: Rig) -> None:
    """BEAT-21."""
    usage = b',"usage":{"prompt_tokens":11,"completion_tokens":%d}'
    pieces = [content(i, usage % (i + 1)) for i in range(20)]
    await rig.engine(answering(*stream(*pieces, DONE)))
    await rig.start()
    answer = await rig.ask(post(b'{"model":"m","stream":true,"stream_options":{"continuous_usage_stats":true}}'))
    assert answer.body == b"".join((*pieces, DONE))
    record = await rig.record()
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (11, 20, False)


async def test_a_client_that_leaves_is_counted(rig: Rig) -> None:
    """BEAT-23."""
    sent = stream(*(content(i) for i in range(30)))[:-1]

    async def behave(asked: Asked, writer: Any) -> None:
        for piece in sent:
            writer.write(piece)
        await engine.lost.wait()

    engine: StubEngine = await rig.engine(behave)
    await rig.start()
    client = await rig.client()
    client.send(post(b'{"model":"m","stream":true,"pad":"' + b"x" * 400 + b'"}'))
    await client.head()
    for _ in range(30):
        await client.chunk()
    client.close()
    record = await rig.record()
    assert (record.outcome, record.completion_tokens, record.tokens_estimated) == ("client_gone", 30, True)
    assert record.prompt_tokens > 100


async def test_an_answer_of_fifty_megabytes_leaves_nothing_behind() -> None:
    """BEAT-22: what is kept of an answer has a bound, whatever the answer's size and the size of its pieces."""

    class Nowhere:
        def __getattr__(self, _name: str) -> Any:
            return lambda *_: None

    nowhere: Any = Nowhere()
    deadlines = Deadlines(60, 60, 1e9)
    relay = Relay(
        nowhere,
        nowhere,
        deadlines,
        [],
        lambda: 0.0,
        asyncio.get_running_loop(),
        may_hold=False,
        began=lambda _: None,
        observe_gap=lambda _: None,
        phase=0,
    )
    relay.head(200, [(b"content-type", b"application/json")], 50 << 20)
    tracemalloc.start()
    try:
        for _ in range(200):
            relay.body(b"x" * (256 << 10))
            relay.flush()
        relay.body(b'"usage":{"prompt_tokens":1,"completion_tokens":2}}')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        relay.stop()
    assert peak < 1 << 20
    assert len(relay.first_bytes) <= END_BYTES
    assert of(relay.last_bytes) == Usage(1, 2)
