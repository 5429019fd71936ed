"""Scheduling as clients meet it: on real sockets, through the whole handler."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from tests.unit.gateway.rig import OK, Asked, Rig, StubEngine, post

from matrixinfer.gateway.core.schedule.framework import Decision
from matrixinfer.gateway.core.schedule.record import Recorded, decode, encode, replay
from matrixinfer.gateway.core.schedule.rung import Rung

SYSTEM = "You know everything about our products and say so in many words. " * 200


def chat(question: str, model: str = "m", system: str = SYSTEM) -> bytes:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return post(json.dumps({"model": model, "messages": turns}).encode())


async def engines(rig: Rig, count: int) -> list[StubEngine]:
    made = [await rig.engine() for _ in range(count)]
    await rig.start()
    return made


async def test_questions_about_one_text_go_to_one_pod(rig: Rig) -> None:
    made = await engines(rig, 4)
    for i in range(12):
        assert (await rig.ask(chat(f"question {i}"))).status == 200
    assert sorted(len(engine.asked) for engine in made) == [0, 0, 0, 12]
    decision = (await rig.record()).decision
    assert decision is not None
    assert decision.cached_tokens > 0.8 * decision.prompt_tokens > 2000


async def test_simultaneous_questions_about_one_text_meet_on_few_pods(rig: Rig) -> None:
    """BEAT-43: 32 at once, of which none has been answered when the last one is placed."""
    gate = asyncio.Event()

    async def slow(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(OK)

    made = [await rig.engine(slow) for _ in range(8)]
    await rig.start()
    async with asyncio.TaskGroup() as tasks:
        for i in range(32):
            tasks.create_task(rig.ask(chat(f"question {i}", system=SYSTEM * 3)))
        await rig.until(lambda: sum(len(engine.asked) for engine in made) == 32)
        gate.set()
    assert sum(bool(engine.asked) for engine in made) <= 2


async def test_different_texts_are_spread(rig: Rig) -> None:
    made = await engines(rig, 4)
    for i in range(40):
        await rig.ask(chat("q", system=f"{i} " + SYSTEM))
    assert min(len(engine.asked) for engine in made) > 0


async def test_a_pod_that_refuses_is_not_remembered_for_the_text(rig: Rig) -> None:
    """BEAT-39, BEAT-43: what could not be sent was not read, so the next request does not go after it."""
    dead = await rig.engine(listening=False)
    alive = await rig.engine()
    await rig.start()
    for i in range(6):
        assert (await rig.ask(chat(f"question {i}"))).status == 200
    assert len(alive.asked) == 6
    assert not dead.asked
    retried = [record for record in rig.records if record.retries]
    assert len(retried) <= 1


@pytest.mark.parametrize("model", ["m", "lora"])
@pytest.mark.parametrize("status", [0, 502, 503])
async def test_a_pod_that_did_not_serve_is_not_remembered_for_text_or_adapter(
    rig: Rig, model: str, status: int
) -> None:
    """It read no prompt and loaded no adapter, whether it hung up or said that it cannot."""

    async def fail(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        if status:
            writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)
        else:
            writer.transport.abort()

    bad, good = await rig.engine(fail), await rig.engine()
    await rig.start()
    busy = rig.load(1)
    for i in range(6):
        # Of an adapter the next request, of a text the next question.
        system = SYSTEM if model == "m" else f"{i} " * 300
        assert (await rig.ask(chat(f"question {i}", model=model, system=system))).status == 200
        busy()
    assert (len(bad.asked), len(good.asked)) == (1, 6)


async def test_an_adapter_stays_where_it_was_loaded(rig: Rig) -> None:
    """BEAT-55: and an adapter that nobody has is no refusal."""
    made = await engines(rig, 4)
    for i in range(8):
        assert (await rig.ask(chat("q", model="lora", system=f"{i} " * 300))).status == 200
    assert sorted(len(engine.asked) for engine in made) == [0, 0, 0, 8]


async def test_what_was_decided_can_be_replayed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of a real request, sent somewhere else, gives its pod."""
    kept: list[Recorded] = []
    record = Recorded.of

    def keep(*given: Any) -> Recorded:
        kept.append(record(*given))
        return kept[-1]

    monkeypatch.setattr(Recorded, "of", keep)
    await engines(rig, 4)
    await rig.ask(chat("one"))
    await rig.ask(chat("two"))
    chosen = [record.pod for record in rig.records]
    for pod, recorded in zip(chosen, kept, strict=True):
        decision = replay(decode(encode(recorded)))
        assert isinstance(decision, Decision)
        assert decision.endpoint.pod == pod


async def test_a_worker_without_time_says_so(rig: Rig) -> None:
    await engines(rig, 2)
    rig.handler.rung = Rung.TWO_RANDOM
    await rig.ask(chat("one"))
    decision = (await rig.record()).decision
    assert decision is not None
    assert msgspec.to_builtins(decision)["rung"] == "two-random"
    report = rig.stats.report(connections=0, upstream_connections=0, upstream_opened=0, access_log_dropped=0)
    decisions = [series.decisions for series in report.series.values() if series.decisions]
    assert decisions == [{"two-random": 1}]


async def test_a_body_that_is_no_prompt_is_served(rig: Rig) -> None:
    await engines(rig, 2)
    for body in (b'{"model":"m","messages":7}', b'{"model":"m","messages":[{"role":7}]}', b'{"model":"m"}'):
        assert (await rig.ask(post(body))).status == 200
