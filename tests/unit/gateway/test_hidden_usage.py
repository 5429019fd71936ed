"""Counts that only the gateway asked for: the engine gets the option, the client gets what it would have got."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.gateway.rig import Rig, answering, post
from tests.unit.gateway.test_usage import DONE, content, stream

from matrixinfer.gateway.core.hiddenusage import HiddenUsage, with_usage

USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\n\n'
SPACED = b'data: {"id": "x", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}\r\n\r\n'
TALKS_OF_IT = b'data: {"choices":[{"delta":{"content":"say \\"prompt_tokens\\""}}],"usage":null}\n\n'
LAST_WITH_USAGE = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n'
RAW_MENTION = b': "prompt_tokens" in a comment\n\n'
EVENTS = (content(1), content(2), TALKS_OF_IT, LAST_WITH_USAGE, RAW_MENTION, DONE, b"data: no json\n\n")


@given(st.lists(st.sampled_from(EVENTS)), st.sampled_from((USAGE, SPACED)), st.randoms(use_true_random=False))
@example([content(1), DONE], USAGE, None)
def test_the_event_is_taken_out_and_every_other_byte_stays_however_the_stream_is_cut(
    events: list[bytes], usage: bytes, chance: object
) -> None:
    at = len(events) // 2
    whole = b"".join((*events[:at], usage, *events[at:]))
    cuts = sorted(chance.randrange(len(whole) + 1) for _ in range(7)) if chance else []  # type: ignore[attr-defined]
    pieces = [whole[a:b] for a, b in zip((0, *cuts), (*cuts, len(whole)), strict=True)]
    hidden = HiddenUsage()
    seen = b"".join(hidden.keep(piece) for piece in pieces) + hidden.rest()
    assert seen == b"".join(events)


def test_what_is_no_event_is_not_held_for_ever() -> None:
    hidden = HiddenUsage()
    assert hidden.keep(b"data: " + b"x" * 70_000) == b"data: " + b"x" * 70_000
    assert hidden.keep(content(1)) == content(1)
    assert hidden.rest() == b""


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=1, max_size=4), st.sampled_from(["", " ", "\n\t"]))
def test_the_option_is_added_and_nothing_else_changes(members: dict[str, int], space: str) -> None:
    body = space.encode() + msgspec.json.encode(members) + space.encode()
    asked = with_usage(body)
    assert msgspec.json.decode(asked) == {"stream_options": {"include_usage": True}, **members}
    assert asked.replace(b'"stream_options":{"include_usage":true},', b"", 1) == body


STREAMING = b'{"model":"m","stream":true,"seed":9007199254740993}'


async def test_a_client_that_did_not_ask_sees_what_it_would_have_seen_and_is_counted_exactly(rig: Rig) -> None:
    """BEAT-12, 20: the option is added beside what the client wrote; the count is the engine's."""
    engine = await rig.engine(answering(*stream(content(1), content(2) + USAGE[:40], USAGE[40:] + DONE)))
    await rig.start()
    answer = await rig.ask(post(STREAMING))
    assert answer.body == content(1) + content(2) + DONE
    assert b'"stream_options":{"include_usage":true},' in engine.asked[0].body
    assert b'"seed":9007199254740993' in engine.asked[0].body
    record = await rig.record()
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (11, 3, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}',
        b'{"model":"m","stream":true,"stream_options":{"include_obfuscation":false}}',
        b'{"model":"m","stream":true,"stream_options":null}',
        b'{"model":"m","stream":true,"\\u0073tream_options":{"include_usage":true}}',
        b'{"model":"m","stream":false}',
        b'{"model":"m"}',
    ],
)
async def test_what_the_client_says_of_its_stream_stays_as_it_is(rig: Rig, body: bytes) -> None:
    """BEAT-12."""
    engine = await rig.engine(answering(*stream(content(1), USAGE, DONE)))
    await rig.start()
    answer = await rig.ask(post(body))
    assert engine.asked[0].body == body
    assert answer.body == content(1) + USAGE + DONE


async def test_other_surfaces_are_not_asked(rig: Rig) -> None:
    engine = await rig.engine(answering(*stream(content(1), DONE)))
    await rig.start()
    await rig.ask(post(STREAMING, path="/v1/responses"))
    assert engine.asked[0].body == STREAMING


async def test_an_answer_that_is_no_stream_is_not_touched(rig: Rig) -> None:
    body = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    await rig.engine(answering(head + body))
    await rig.start()
    assert (await rig.ask(post(STREAMING))).body == body
