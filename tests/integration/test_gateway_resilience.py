"""What several worker processes make of failing endpoints, of a full one, and of the death of one of them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from tests.integration.test_gateway_workers import World

from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target, TrafficPolicy

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: x\n\n\r\n"
STREAM = b'POST /v1/x HTTP/1.1\r\nhost: gw\r\ncontent-length: 27\r\n\r\n{"stream":true,"model":"m"}'


class Streams(World):
    """The engine answers with a stream that ends when it is told to. A second one closes whatever connects."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        super().__init__(tasks)
        self.policy = TrafficPolicy()
        self.refused = 0
        self.most = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b'"model":"m"}')
                self.waiting += 1
                self.most = max(self.most, self.waiting)
                writer.write(STREAM_HEAD + EVENT)
                await self.release.wait()
                self.waiting -= 1
                writer.write(EVENT + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.refused += 1
        writer.transport.abort()

    async def fail_beside(self) -> None:
        """Publish the engine, and one that fails."""
        self.failing = await asyncio.start_server(self.refuse, "127.9.0.3", 0)
        pods = [self.engine.sockets[0].getsockname(), self.failing.sockets[0].getsockname()]
        endpoints = tuple(Endpoint(5 + i, f"pod-{i}", f"uid-{i}", *pod) for i, pod in enumerate(pods))
        self.route(2, endpoints)
        await self.until(lambda: self.fleet.acknowledged == 2)

    def publish(self, revision: int) -> None:
        address, port = self.engine.sockets[0].getsockname()
        self.route(revision, (Endpoint(5, "pod-0", "uid-0", address, port),))

    def route(self, revision: int, endpoints: tuple[Endpoint, ...]) -> None:
        server = Server("ns", "s", None, "vLLM", endpoints, self.policy)
        route = Route("ns", "r", "m", (), (Rule("", None, (Target("s", 100, 0),)),))
        self.fleet.publish(Snapshot(revision, (server,), (route,)))

    async def stream(self) -> bytes:
        """One whole answer; what came of it when it was cut."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(STREAM)
        try:
            return await reader.readuntil(b"0\r\n\r\n")
        except asyncio.IncompleteReadError as exc:
            return exc.partial
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    async with asyncio.TaskGroup() as tasks:
        made = Streams(tasks)
        yield made
        made.running.cancel()
        made.engine.close()
    made.memory.close()


async def test_a_worker_that_is_killed_while_both_stream_loses_its_own_streams_only(streams: Streams) -> None:
    await streams.start()
    streams.release.clear()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(streams.stream()) for _ in range(16)]
        await streams.until(lambda: streams.waiting == 16)
        victim = streams.workers()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        await streams.until(lambda: victim not in {worker["pid"] for worker in streams.workers()})
        await streams.until(lambda: streams.fleet.is_serving is True)
        # The successor serves while the streams of the other go on.
        kept = streams.load()
        assert 0 < kept < 16
        streams.release.set()
    whole = [answer for task in running if (answer := task.result()).endswith(b"0\r\n\r\n")]
    assert len(whole) == kept
    assert {answer.count(b"data: x") for answer in whole} == {2}
    for _ in range(10):
        assert (await streams.stream()).endswith(b"0\r\n\r\n")


async def test_what_one_worker_process_learnt_of_an_endpoint_spares_the_others(streams: Streams) -> None:
    await streams.start()
    await streams.fail_beside()
    for _ in range(60):
        assert (await streams.stream()).endswith(b"0\r\n\r\n")
    # Five failures in a row, whoever saw them; then nobody goes there.
    assert streams.refused == 5
    streams.failing.close()


async def test_room_is_shared_by_the_requests_that_wait_in_different_processes(streams: Streams) -> None:
    streams.policy = TrafficPolicy(max_in_flight_per_endpoint=1)
    await streams.start()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(streams.stream()) for _ in range(40)]
    assert all(task.result().endswith(b"0\r\n\r\n") for task in running)
    # Both workers may see the same room in the same moment.
    assert streams.most <= 2
