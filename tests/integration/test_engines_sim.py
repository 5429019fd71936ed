"""The simulator as a process: signals, start-up, and how much one process sustains."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

LONG = {"prompt": "go", "max_tokens": 400, "ignore_eos": True, "stream": True}


@asynccontextmanager
async def simulator(*flags: str) -> AsyncIterator[tuple[Process, str]]:
    """A simulator on a free port, and its URL as it printed it."""
    argv = [sys.executable, "-m", "matrixinfer.enginesim", "serve", "m", "--port", "0", *flags]
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=DEVNULL, env=os.environ)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readuntil(b"http://") + await process.stdout.readline()).decode()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        yield process, found[0]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_sigterm_finishes_streams_and_ends_with_status_zero() -> None:
    async with (
        simulator("--sim-decode-tokens-per-second", "400") as (process, url),
        aiohttp.ClientSession(url) as http,
        http.post("/v1/completions", json=LONG) as stream,
    ):
        await stream.content.readline()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            rest = await stream.content.read()
            assert rest.endswith(b"data: [DONE]\n\n")
            assert await process.wait() == 0


async def test_sigterm_while_loading_ends_at_once() -> None:
    argv = [sys.executable, "-m", "matrixinfer.enginesim", "serve", "m", "--port", "0", "--sim-startup-seconds", "600"]
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=DEVNULL)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert b"loading" in await process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def cpu_seconds(pid: int) -> float:
    """What a process has had of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_one_process_sustains_thousands_of_chunks_a_second() -> None:
    """64 streams as fast as they come; what counts is the simulator's own time on a processor, whoever shares it."""

    async def chunks(http: aiohttp.ClientSession) -> int:
        async with http.post("/v1/completions", json=LONG) as stream:
            return (await stream.read()).count(b"data: {")

    async with simulator() as (process, url), aiohttp.ClientSession(url) as http, asyncio.timeout(60):
        before = cpu_seconds(process.pid)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(chunks(http)) for _ in range(64)]
        seconds = cpu_seconds(process.pid) - before
    total = sum(task.result() for task in tasks)
    assert total == 64 * 400
    assert total / seconds > 3000
