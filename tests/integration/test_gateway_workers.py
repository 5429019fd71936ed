"""Worker processes without a cluster: what they import, how they live and end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from prometheus_client import REGISTRY, CollectorRegistry
from tests.integration.gateway_fleet import CONFIG, fleet_on
from tests.unit.gateway.test_tracing import Collector

from matrixinfer.devcluster import repository
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.gateway import metrics
from matrixinfer.gateway.certificate import CertificateFiles
from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target
from matrixinfer.gateway.export import ExportSettings
from matrixinfer.gateway.fleet import listeners
from matrixinfer.gateway.ipc import Configure
from matrixinfer.gateway.metrics import Traffic

REQUEST = b'POST /v1/x HTTP/1.1\r\nhost: gw\r\ncontent-length: 13\r\n\r\n{"model":"m"}'


def test_a_worker_loads_nothing_that_talks_to_the_api_server() -> None:
    code = "import sys, matrixinfer.gateway.worker; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    forbidden = {"kubernetes_asyncio", "aiohttp", "pydantic", "prometheus_client", "matrixinfer.kube"}
    assert {name for name in loaded if name in forbidden} == set()


class World:
    """A fleet of two workers in front of one engine that answers when it is told to."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.release = asyncio.Event()
        self.release.set()
        self.waiting = 0
        self.sockets = listeners("127.0.0.1", 0, 2)
        self.port = self.sockets[0].getsockname()[1]
        self.traffic = Traffic(CollectorRegistry())
        self.memory = contextlib.ExitStack()

    async def start(self, config: Configure = CONFIG) -> None:
        self.engine = await asyncio.start_server(self.answer, "127.9.0.2", 0)
        self.fleet = self.memory.enter_context(fleet_on(self.sockets, self.traffic, config))
        self.running = self.tasks.create_task(self.fleet.run())
        self.publish(1)
        await self.until(lambda: self.fleet.is_serving is True)

    def publish(self, revision: int) -> None:
        address, port = self.engine.sockets[0].getsockname()
        server = Server("ns", "s", None, "vLLM", (Endpoint(5, "pod", "uid", address, port),))
        route = Route("ns", "r", "m", (), (Rule("", None, (Target("s", 100, 0),)),))
        self.fleet.publish(Snapshot(revision, (server,), (route,)))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b'{"model":"m"}')
                self.waiting += 1
                await self.release.wait()
                self.waiting -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def ask(self, request: bytes = REQUEST) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        try:
            return (await reader.readuntil(b"\r\n\r\nok")).split(b"\r\n")[0]
        except (asyncio.IncompleteReadError, ConnectionError):
            return b"lost"
        finally:
            writer.close()

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(20):
            # Other processes have no event to wait for.
            while not holds():
                await asyncio.sleep(0.02)

    def workers(self) -> list[dict[str, Any]]:
        described: Any = self.fleet.describe()
        return list(described)

    def load(self) -> int:
        return sum(self.fleet.board.reader((5,)).loads().requests)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        made = World(tasks)
        yield made
        made.running.cancel()
        made.engine.close()
    made.memory.close()


async def test_a_worker_that_serves_is_given_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said a moment too early, the others would get them all."""
    seen: list[tuple[float, int]] = []

    def note(serving: float) -> None:
        seen.append((serving, sum(s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for s in world.sockets)))

    monkeypatch.setattr(metrics.WORKERS_SERVING, "set", note)
    await world.start()
    assert [serving for serving, _ in seen] == [1, 2]
    assert all(accepting >= serving for serving, accepting in seen)


async def test_all_workers_see_the_requests_of_all(world: World) -> None:
    await world.start()
    world.release.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(world.ask()) for _ in range(12)]
        await world.until(lambda: world.waiting == 12)
        assert world.load() == 12
        world.release.set()
    assert {task.result() for task in asking} == {b"HTTP/1.1 200 OK"}
    await world.until(lambda: world.load() == 0)


async def test_a_killed_worker_loses_its_own_requests_and_is_replaced(world: World) -> None:
    await world.start()
    world.release.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(world.ask()) for _ in range(12)]
        await world.until(lambda: world.waiting == 12)
        os.kill(world.workers()[0]["pid"], signal.SIGKILL)
        await world.until(lambda: world.fleet.is_serving is not True)
        await world.until(lambda: world.fleet.is_serving is True)
        lost = 12 - world.load()
        world.release.set()
    results = [task.result() for task in asking]
    assert results.count(b"lost") == lost
    assert results.count(b"HTTP/1.1 200 OK") == 12 - lost
    assert {await world.ask() for _ in range(20)} == {b"HTTP/1.1 200 OK"}
    await world.until(lambda: world.load() == 0)


async def test_a_replaced_worker_takes_the_old_snapshot_and_that_is_no_slow_publishing(world: World) -> None:
    def published() -> float:
        return REGISTRY.get_sample_value("matrixinfer_gateway_snapshot_publish_seconds_count") or 0.0

    before = published()
    await world.start()
    await world.until(lambda: published() == before + 1)
    pid = world.workers()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    await world.until(
        lambda: [w["revision"] for w in world.workers()] == [1, 1] and pid not in {w["pid"] for w in world.workers()}
    )
    assert published() == before + 1
    world.publish(2)
    await world.until(lambda: published() == before + 2)


async def test_a_worker_that_is_asked_to_end_finishes_and_is_replaced(world: World) -> None:
    await world.start()
    world.release.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(world.ask()) for _ in range(8)]
        await world.until(lambda: world.waiting == 8)
        pid = world.workers()[0]["pid"]
        os.kill(pid, signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert world.load() == 8
        world.release.set()
    assert {task.result() for task in asking} == {b"HTTP/1.1 200 OK"}
    await world.until(lambda: pid not in {w["pid"] for w in world.workers()} and world.fleet.is_serving is True)


SUPERVISOR = """
import asyncio, json
from tests.integration.test_gateway_workers import World

async def main():
    async with asyncio.TaskGroup() as tasks:
        world = World(tasks)
        await world.start()
        print(json.dumps([[worker["pid"] for worker in world.workers()]]), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_workers_end_when_the_supervisor_is_gone() -> None:
    """The supervisor dies without a word, as from `kill -9`: nobody is left to replace or to feed its workers."""
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, cwd=repository()) as process:
        assert process.stdout is not None
        try:
            (pids,) = json.loads(next(line for line in process.stdout if line.startswith(b"[[")))
        finally:
            process.kill()
    wait_for("the workers' end", lambda: not any(_exists(pid) for pid in pids), 30)


def _exists(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_requests_outlive_the_supervisor(world: World) -> None:
    """The last word of a worker whose supervisor is gone is the end of its last answer."""
    await world.start(msgspec.structs.replace(CONFIG, drain_seconds=60))
    world.release.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(world.ask()) for _ in range(8)]
        await world.until(lambda: world.waiting == 8)
        for member in world.fleet._members.values():
            member.writer.transport.abort()
        # Longer than a worker goes without a report: it has found nobody to tell.
        await asyncio.sleep(2.5)
        world.release.set()
    assert {task.result() for task in asking} == {b"HTTP/1.1 200 OK"}


async def test_a_worker_that_cannot_be_started_costs_the_others_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    spawn, refusals = asyncio.create_subprocess_exec, [OSError(12, "Cannot allocate memory")]

    async def out_of_memory(*arguments: Any, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await spawn(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", out_of_memory)
    dead, other = (worker["pid"] for worker in world.workers())
    os.kill(dead, signal.SIGKILL)
    await world.until(lambda: not refusals and world.fleet.is_serving is True)
    pids = {worker["pid"] for worker in world.workers()}
    assert other in pids
    assert dead not in pids


async def test_any_worker_explains_what_it_decided_and_a_replay_agrees(world: World) -> None:
    await world.start()
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nx-request-id: named-%d\r\n\r\n")
    known_by = set()
    for number in range(24):
        assert await world.ask(request % number) == b"HTTP/1.1 200 OK"
        found: Any = await world.fleet.explain(f"named-{number}")
        assert (found["workers_asked"], found["workers_answered"]) == (2, 2)
        (page,) = found["known_by"]
        known_by.add(page["worker"])
        (attempt,) = page["attempts"]
        assert attempt["replay"] == {"pod": "pod", "same": True}
        assert attempt["decision"]["revision"] == 1
        assert attempt["decision"]["candidates"][0]["chosen"]
    assert known_by == {0, 1}
    assert await world.fleet.explain("nobody's") is None


async def test_every_worker_sends_its_spans_to_the_collector(world: World) -> None:
    collector = Collector()
    try:
        spans = ExportSettings(collector.url, resource={"service.name": "gateway"}, delay_seconds=0.05)
        await world.start(msgspec.structs.replace(CONFIG, spans=spans))
        for _ in range(24):
            assert await world.ask() == b"HTTP/1.1 200 OK"
        await world.until(lambda: len([span for span in collector.spans() if span["kind"] == 2]) == 24)
        told_by = {
            attribute["value"]["stringValue"]
            for body in collector.bodies
            for attribute in body["resourceSpans"][0]["resource"]["attributes"]
            if attribute["key"] == "matrixinfer.worker"
        }
        assert told_by == {"0", "1"}
        # The counts come with the next reports, once a second.
        await world.until(lambda: world.traffic.total.spans_exported == len(collector.spans()))
        assert world.traffic.total.spans_dropped == 0
    finally:
        collector.stop()


async def test_a_drain_ends_every_worker_after_its_requests(world: World) -> None:
    await world.start()
    world.release.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(world.ask()) for _ in range(6)]
        await world.until(lambda: world.waiting == 6)
        world.fleet.drain("last")
        await asyncio.sleep(0.2)
        assert not world.running.done()
        world.release.set()
    assert {task.result() for task in asking} == {b"HTTP/1.1 200 OK"}
    async with asyncio.timeout(30):
        await world.running


async def test_a_stream_that_never_ends_is_cut_when_the_drain_time_is_over(world: World) -> None:
    await world.start(msgspec.structs.replace(CONFIG, drain_seconds=0.3))
    world.release.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(world.ask())
        await world.until(lambda: world.waiting == 1)
        world.fleet.drain("last")
        async with asyncio.timeout(30):
            await world.running
    assert asking.result() == b"lost"


async def test_every_worker_serves_a_new_certificate_without_a_restart(world: World, tmp_path: Path) -> None:
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def rotate() -> None:
        leaf = authority.issue_cert("localhost")
        key.write_bytes(leaf.private_key_pem.bytes())
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

    async def connect() -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=trust, server_hostname="localhost")
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True), reader, writer

    async def streams() -> bytes:
        writer.write(REQUEST)
        return (await reader.readuntil(b"\r\n\r\nok")).split(b"\r\n")[0]

    rotate()
    await world.start(msgspec.structs.replace(CONFIG, tls=CertificateFiles(str(certificate), str(key), 0.05)))
    pids = {worker["pid"] for worker in world.workers()}
    first, reader, writer = await connect()
    world.release.clear()
    running = asyncio.ensure_future(streams())
    await world.until(lambda: world.waiting)
    rotate()
    seen = [first]
    async with asyncio.timeout(20):
        # Connections are spread over both workers: a run of new certificates means that both have it.
        while first in seen[-20:]:
            der, _, other = await connect()
            seen.append(der)
            other.close()
    world.release.set()
    assert await running == b"HTTP/1.1 200 OK"
    assert {worker["pid"] for worker in world.workers()} == pids
    writer.close()


async def test_workers_take_requests_through_aiohttp_when_told_so(world: World) -> None:
    await world.start(msgspec.structs.replace(CONFIG, inlet_kind="aiohttp"))
    world.release.clear()
    asking = [asyncio.ensure_future(world.ask()) for _ in range(8)]
    await world.until(lambda: world.waiting == 8)
    world.release.set()
    assert await asyncio.gather(*asking) == [b"HTTP/1.1 200 OK"] * 8
