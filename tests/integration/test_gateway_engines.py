"""What the gateway knows of engines: real processes with vLLM's page, and a real llama.cpp where it is installed."""

import asyncio
import json
import os
import signal
import ssl
import time
import urllib.request
from typing import Any

import pytest
from tests.integration.gateway_world import GatewayStarter, World, chat, simple, target, until
from tests.integration.test_engines_llamacpp import engine as llama_engine
from tests.integration.test_engines_llamacpp import needs_llamacpp, question, smollm2

from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.scrape import Pace
from matrixinfer.gateway.core.types import Endpoint, Server, Snapshot
from matrixinfer.gateway.feeds.metrics import EngineFeed
from matrixinfer.gateway.wire.pool import PoolLimits, UpstreamPool

pytestmark = pytest.mark.timeout(180)


def post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


async def test_the_load_of_engines_is_known_and_that_of_a_stopped_one_grows_old(
    world: World, gateway: GatewayStarter
) -> None:
    first, second = simple(world, 2, pace=5)
    running = gateway(workers="1", scrape_idle_seconds="1", scrape_deadline_seconds="0.5")

    def known(pod: str) -> dict[str, Any]:
        return next((dict(line) for line in running.debug("engines") if line["pod"] == pod), {})

    await until("both were read", lambda: all(known(e.pod).get("report") for e in (first, second)))
    assert known(first.pod)["report"]["running"] == 0
    assert known(first.pod)["report"]["kv_tokens"] > 0
    async with running.patient_openai as client:
        streams = [
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hello"}], stream=True, max_tokens=200
            )
            for _ in range(4)
        ]
        await until("work is seen", lambda: sum(known(e.pod)["report"]["running"] for e in (first, second)) == 4)
        for stream in streams:
            await stream.close()
    first.process.send_signal(signal.SIGSTOP)
    try:
        await until("it fails", lambda: known(first.pod)["failures"] >= 2)
        assert known(first.pod)["problem"] == "no answer within 0.5 s"
        assert known(first.pod)["report"]["running"] is not None
        assert known(first.pod)["age_seconds"] > 1
        # Half a second is short for an engine on a busy machine: it may fail, but not again and again.
        await until("the other does not", lambda: known(second.pod)["failures"] == 0)
        assert running.metric('matrixinfer_gateway_engine_scrape_failures_total{reason="deadline"') >= 2
    finally:
        first.process.send_signal(signal.SIGCONT)
    await until("it is read again", lambda: known(first.pod)["failures"] == 0)
    assert running.metric('matrixinfer_gateway_engine_reports{report="fresh"') == 2


async def test_an_adapter_that_is_loaded_at_run_time_is_known_within_a_look(
    world: World, gateway: GatewayStarter
) -> None:
    engine = await asyncio.to_thread(world.engine, "m", "--enable-lora", model="m")
    world.server("m", "m")
    world.route("m", {"targetModels": [target("m")]}, modelName="m", loraAdapters=["fin"])
    running = gateway(scrape_idle_seconds="1")

    def adapters() -> list[str]:
        return [name for line in running.debug("engines") for name in line["adapters"]]

    await until("ready", lambda: len(running.endpoints("m")) == 1)
    assert adapters() == []
    post(f"{engine.url}/v1/load_lora_adapter", {"lora_name": "fin", "lora_path": "/adapters/fin"})
    await until("it is known", lambda: adapters() == ["fin"])
    await until("it is in the snapshot", lambda: "fin" in json.dumps(running.debug("snapshot")["servers"]))
    assert {model.id: model for model in running.openai.models.list()}["fin"].model_dump()["parent"] == "m"
    assert await asyncio.to_thread(chat, running.openai, "fin")


@needs_llamacpp
async def test_a_real_llama_cpp_says_how_busy_it_is() -> None:
    fd = LoadBoard.create(1, 16)
    board = LoadBoard(fd, 1, 16)
    async with llama_engine(smollm2()) as (_, session), asyncio.TaskGroup() as tasks:
        port = session._base_url.port
        pool = UpstreamPool(PoolLimits(2.0, 4.0, 1), ssl.create_default_context())
        feed = EngineFeed(
            cells=board.engine_cells(),
            is_idle=board.is_idle,
            pool=pool,
            pace=Pace(busy_seconds=0.1, idle_seconds=0.1, failing_seconds=0.2),
            deadline_seconds=10.0,
            clock=time.monotonic,
            draw=lambda: 0.0,
        )
        feed.follow(Snapshot(1, (Server("ns", "s", None, "LlamaCpp", (Endpoint(3, "p", "u", "127.0.0.1", port),)),)))
        running = tasks.create_task(feed.run())

        def seen() -> float:
            # A reader of its own each time, so that nothing is kept from the time before.
            return board.reader((3,)).engines(time.monotonic()).running[0]

        await until("it was read", lambda: seen() == 0, 60)
        asked = question("Tell me a long story about the sea.", max_tokens=60, stream=True)
        async with session.post("/v1/chat/completions", json=asked) as stream:
            await until("it works", lambda: seen() == 1, 60)
            await stream.read()
        await until("it is idle", lambda: seen() == 0, 60)
        assert max(board.reader((3,)).engines(time.monotonic()).failures) == 0
        running.cancel()
    pool.close()
    os.close(fd)
