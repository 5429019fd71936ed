"""What a line of the access log holds of a request, and what it never holds."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from tests.unit.gateway.rig import Rig, answering, post
from tests.unit.gateway.test_usage import DONE, content, stream

from matrixinfer.gateway.access import AccessLog

PROMPT, ANSWER, KEY, COOKIE = (
    "tell-nobody-about-the-prompt",
    "the-answer-is-private",
    "sk-live-0123456789",
    "session-42",
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def lines_of(rig: Rig, pipe: tuple[int, int], *requests: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    """The lines that these requests wrote, as bytes and decoded."""
    log = AccessLog(pipe[1])
    rig.write = log.write  # type: ignore[method-assign]
    await rig.start()
    for request in requests:
        await rig.ask(request)
    await asyncio.to_thread(log.close, 5)
    raw = os.read(pipe[0], 1 << 16)
    return raw, [msgspec.json.decode(line) for line in raw.splitlines()]


async def test_neither_prompts_nor_answers_nor_credentials_get_into_a_log(rig: Rig, pipe: tuple[int, int]) -> None:
    """BEAT-81: whole requests, refused ones and failed ones; the log of the process as well as the lines."""
    await rig.engine(answering(*stream(content(1), ANSWER.encode(), DONE)))
    secret = {"authorization": f"Bearer {KEY}", "x_api_key": KEY, "cookie": COOKIE, "x_matrixinfer_explain": "1"}
    with capture_logs() as logs:
        raw, lines = await lines_of(
            rig,
            pipe,
            post(b'{"model":"m","stream":true,"prompt":"%s"}' % PROMPT.encode(), **secret),
            post(b'{"model":"absent","prompt":"%s"}' % PROMPT.encode(), **secret),
            post(b'{"prompt":"%s"' % PROMPT.encode(), **secret),
            post(b'{"model":"m"}', path=f"/v1/chat/completions?key={KEY}", **secret),
        )
    assert [line["status"] for line in lines] == [200, 404, 400, 200]
    for forbidden in (PROMPT, ANSWER, KEY, COOKIE):
        assert forbidden.encode() not in raw
        assert forbidden not in str(logs)


async def test_a_line_says_what_happened_in_which_phase(rig: Rig, pipe: tuple[int, int]) -> None:
    """BEAT-96: the pod that answered, not the one that was chosen first; tokens, phases and failures."""
    await rig.engine(listening=False)
    await rig.engine(answering(*stream(content(1), content(2), DONE)))
    requests = [post(b'{"model":"m","stream":true}', x_request_id=f"r{n}") for n in range(30)]
    _, lines = await lines_of(rig, pipe, *requests)
    line = next(line for line in lines if line.get("retries"))
    assert line["pod"] == "pod-1"
    assert line["failures"][0].startswith("pod-0: connect")
    assert line["completion_tokens"] == 3
    assert line["tokens_estimated"]
    assert 0 <= line["overhead_ms"] <= line["first_byte_ms"] <= line["total_ms"]
    assert line["connect_ms"] >= 0
    assert line["decision"]["candidates"] >= 1
    assert (line["route"], line["server"], line["model"]) == ("ns/r", "s", "m")


async def test_a_client_cannot_write_lines_of_its_own(rig: Rig, pipe: tuple[int, int]) -> None:
    """BEAT-96: the model's name is the client's; whatever it holds, a request stays one line."""
    await rig.engine()
    name = 'x\\n{\\"event\\":\\"request\\",\\"status\\":200}\\u0000\\u2028'
    raw, lines = await lines_of(rig, pipe, post(f'{{"model":"{name}"}}'.encode()), post(path="/v1/%0a%22x"))
    assert raw.count(b"\n") == len(lines) == 2
    assert lines[0]["model"] == 'x\n{"event":"request","status":200}\x00\u2028'
    assert lines[0]["status"] == 404


async def test_what_a_client_makes_up_is_cut(rig: Rig, pipe: tuple[int, int]) -> None:
    await rig.engine()
    raw, _ = await lines_of(rig, pipe, post(b'{"model":"%s"}' % (b"x" * 100_000)), post(path="/v1/" + "y" * 20_000))
    assert len(raw) < 4096
