"""Every input that ever broke a parser of ours, and the ones that fuzzing begins with, played again."""

import asyncio
import socket
import time
from typing import Any

import pytest
from tests.fuzz import corpus, form, inlet, upstream

from matrixinfer.gateway.wire.aiohttp_inlet import AiohttpInlet
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.message import Exchange
from matrixinfer.gateway.wire.server import HttpInlet

OF_CLIENTS = corpus.inputs("inlet")
OF_ENGINES = corpus.inputs("upstream")
FORMS = corpus.inputs("form")


@pytest.mark.parametrize("name", OF_CLIENTS)
def test_a_clients_bytes_break_no_promise_of_the_inlet(name: str) -> None:
    inlet.check(corpus.read(OF_CLIENTS[name]))


@pytest.mark.parametrize("name", OF_ENGINES)
def test_an_engines_bytes_break_no_promise_to_the_client(name: str) -> None:
    upstream.check(corpus.read(OF_ENGINES[name]))


@pytest.mark.parametrize("name", FORMS)
def test_a_form_means_to_every_parser_what_it_means_to_us(name: str) -> None:
    form.check(corpus.read(FORMS[name]))


@pytest.mark.parametrize("name", OF_CLIENTS)
async def test_neither_inlet_takes_a_request_that_the_other_reads_differently(name: str) -> None:
    """Over aiohttp a connection may end sooner; what it takes is the same, byte for byte."""
    data = corpus.read(OF_CLIENTS[name])
    ours, theirs = await _requests(HttpInlet, data), await _requests(AiohttpInlet, data)
    assert theirs == ours[: len(theirs)]


async def _requests(make_inlet: type[Any], data: bytes) -> list[tuple[str, bytes, list[tuple[bytes, bytes]], bytes]]:
    """Return the requests that an inlet takes from these bytes, on a real socket."""
    taken = []

    async def answer(exchange: Exchange) -> None:
        request = exchange.request
        taken.append((request.method, request.target, list(request.headers), request.body))
        exchange.begin(204, [], None)
        exchange.finish()

    # So short that a connection that waits for more ends at once.
    limits = InletLimits(head_seconds=0.05, body_seconds=0.05, keep_alive_seconds=0.05)
    made = make_inlet(answer, lambda refusal: ([], refusal.message.encode()), limits, time.monotonic)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(made.serve(listener, asyncio.Event()))
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(data)
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        writer.close()
        serving.cancel()
    return taken
