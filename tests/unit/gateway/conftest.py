"""Fixtures of the gateway's tests: both event loops, and a worker with its engines."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvloop

from tests.unit.gateway.rig import Rig


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The service runs on uvloop; what holds on one loop only is luck."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


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
