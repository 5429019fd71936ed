"""A storm of faults at both ends: whatever engines and clients do, answers stay apart and nothing is left behind."""

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from tests.unit.gateway.rig import Asked, Behaviour, Client, Rig, post

from matrixinfer.gateway.core.breaker import BreakerPolicy
from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.types import TrafficPolicy

BOTH_INLETS = True
CLIENTS = 60
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

# -- what engines do ----------------------------------------------------------------------------------------------


def answer_to(asked: Asked) -> bytes:
    """The answer repeats the mark of its request, so that nobody can be given another's."""
    mark = re.search(rb"mark-\d+", asked.body)
    assert mark is not None
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(mark[0]), mark[0])


async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(answer_to(asked))


async def stream(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED)
    for piece in (answer_to(asked).rpartition(b"\n")[2], b"x" * 70_000):
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def reset(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def half(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(answer_to(asked)[:-3])
    await writer.drain()
    writer.close()


async def cut_stream(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED + b"4\r\npart\r\n")
    await writer.drain()
    writer.transport.abort()


async def too_much(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(answer_to(asked) + b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnobody's!")


async def last_words(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(answer_to(asked))
    await writer.drain()
    writer.close()


async def hang(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_in_head(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(answer_to(asked)[:20])
    await asyncio.Event().wait()


def refuse(status: int) -> Behaviour:
    async def behave(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)

    return behave


GOOD: Sequence[Behaviour] = (answer, answer, answer, stream)
BAD: Sequence[Behaviour] = (
    *(reset, half, cut_stream, too_much, last_words, hang, hang_in_head),
    *map(refuse, (400, 500, 502, 503, 504)),
)

# -- what clients do ----------------------------------------------------------------------------------------------


async def listen(client: Client, marks: Sequence[bytes], wrong: list[object]) -> None:
    """Take all answers, and note what was another's."""
    for mark in marks:
        got = await client.answer()
        if got.status == 200 and got.complete and not got.body.startswith(mark):
            wrong.append((mark, got.body[:40]))
        if not got.complete:
            return


async def leave_at_once(client: Client, _marks: Sequence[bytes], _wrong: list[object]) -> None:
    client.close()


async def leave_after_one(client: Client, marks: Sequence[bytes], wrong: list[object]) -> None:
    await listen(client, marks[:1], wrong)


async def close_half(client: Client, _marks: Sequence[bytes], _wrong: list[object]) -> None:
    client.writer.write_eof()
    await client.reader.read()


BEHAVE: Sequence[Callable[[Client, Sequence[bytes], list[object]], object]] = (
    *(listen, listen, listen),
    *(leave_at_once, leave_after_one, close_half),
)


async def one_client(rig: Rig, number: int, chance: random.Random, wrong: list[object]) -> None:
    marks = [b"mark-%d" % (number * 10 + turn) for turn in range(chance.choice([1, 1, 3]))]
    size, seconds = chance.choice([10, 100_000]), chance.choice(["0.02", "5", "5", "5"])
    bodies = [b'{"model":"%s","x":"%s %s"}' % (chance.choice([b"m", b"lora"]), m, b"x" * size) for m in marks]
    behave = chance.choice(BEHAVE)
    client = await rig.client()
    # Each of them may be cut off in any way; whether what it got was its own is what counts.
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        client.send(b"".join(post(body, **{"x-request-timeout": seconds}) for body in bodies))
        await behave(client, marks, wrong)  # type: ignore[misc]
    client.close()


@pytest.mark.parametrize("seed", range(2))
async def test_a_storm_of_faults_mixes_up_no_answers_and_leaves_nothing_behind(rig: Rig, seed: int) -> None:
    chance, wrong = random.Random(seed), []

    async def anything(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await chance.choice((*GOOD, *GOOD, *BAD))(asked, writer)

    rig.defaults = replace(
        rig.defaults,
        first_byte_seconds=0.1,
        breaker=BreakerPolicy(failures=3, base_seconds=0.01, most_seconds=0.05),
        queue=QueueLimits(requests=20, busy_seconds=0.3, empty_seconds=0.3),
    )
    rig.policy = TrafficPolicy(max_in_flight_per_endpoint=4 if seed else None)
    for _ in range(4):
        await rig.engine(anything)
    await rig.start()
    async with asyncio.timeout(9), asyncio.TaskGroup() as clients:
        storm = [clients.create_task(one_client(rig, number, chance, wrong)) for number in range(CLIENTS)]
        while not all(client.done() for client in storm):
            if chance.random() < 0.1:
                away = tuple(engine for engine in rig.engines if chance.random() < 0.2)
                rig.publish(without=away, gone=tuple(f"uid-{rig.engines.index(engine)}" for engine in away))
            await asyncio.sleep(0)
    async with asyncio.timeout(9):
        await rig.until(lambda: not rig.inlet.connections and not sum(rig.in_flight()))
    assert wrong == []
    assert sum(record.outcome == "ok" for record in rig.records) >= 10
    loads = rig.loads()
    assert (sum(loads.prefill_tokens), sum(loads.decode_tokens)) == (0, 0)
    assert (rig.handler.waiting, rig.inlet.buffered_bytes) == (0, 0)
    assert [rig.health.tried_at(slot) for slot in range(4)] == [0] * 4
    assert not {record.outcome for record in rig.records} & {"internal_error", "cut"}
    # What is not with a request lies idle in the pool, and can be used.
    rig.pool.sweep(asyncio.get_running_loop().time(), ())
    async with asyncio.timeout(9):
        await rig.until(lambda: not rig.pool.size)
