"""Fixtures of the gateway's tests: both event loops, and a worker with its engines."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop
from tests.unit.gateway.rig import Rig


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The service runs on uvloop; what holds on one loop only is luck."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Call `start` when the engines are there. Every test has 10 s, whatever hangs."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        made = Rig(tasks)
        yield made
        for client in made.clients:
            client.writer.transport.abort()
        for engine in made.engines:
            engine.stop()
        if made.port:
            made.stopping.set()
            made.serving.cancel()
            made.pool.close()
