"""Fixtures of the gateway's tests: both event loops, and a worker with its engines."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop
from tests.unit.gateway.rig import Rig

from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet
from matrixinfer.gateway.wire.inlet import Inlet
from matrixinfer.gateway.wire.server import HttpInlet


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The service runs on uvloop; what holds on one loop only is luck."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def make_inlet() -> Callable[..., Inlet]:
    """What takes requests."""
    return HttpInlet


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module with `BOTH_INLETS` runs with each of them: one suite, so that either can stand in for the other."""
    if "make_inlet" in metafunc.fixturenames and hasattr(metafunc.module, "BOTH_INLETS"):
        metafunc.parametrize("make_inlet", (HttpInlet, AiohttpInlet), ids=("httptools", "aiohttp"))


@pytest.fixture
async def rig(make_inlet: Callable[..., Inlet]) -> AsyncIterator[Rig]:
    """Call `start` when the engines are there. Every test has 10 s, whatever hangs."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        made = Rig(tasks)
        made.make_inlet = make_inlet
        yield made
        for client in made.clients:
            client.writer.transport.abort()
        for engine in made.engines:
            engine.stop()
        if made.port:
            made.stopping.set()
            made.serving.cancel()
            made.pool.close()
