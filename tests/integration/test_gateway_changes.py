"""How soon a change of an object is in effect in every worker, and that it costs nobody a request.

The clock starts before the change is sent to the API server and stops when every one of many connections, spread over
both workers, is answered by the new state. `pytest -s` shows the figures; the assertion leaves room for a busy machine.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.integration.gateway_world import (
    NETWORKING,
    Gateway,
    GatewayStarter,
    World,
    target,
    traffic,
    until,
)
from tests.tour.steps import tour

pytestmark = pytest.mark.timeout(180)

CONNECTIONS = 8
LIMIT_SECONDS = 2.0
PATIENCE_SECONDS = 10.0

Answer = tuple[int, dict[str, Any]]
Change = Callable[[], object]


class Probe:
    """One connection, kept to one worker, that asks again and again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, model: str) -> Answer:
        body = json.dumps({"model": model, "prompt": "x", "max_tokens": 1}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: gw\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        raw = await self._reader.readuntil(b"\r\n\r\n")
        lines = dict(line.split(": ", 1) for line in raw.decode().lower().split("\r\n")[1:-2])
        document = json.loads(await self._reader.readexactly(int(lines["content-length"])))
        return int(raw.split(b" ", 2)[1]), document

    async def first(self, model: str, holds: Callable[[Answer], bool], began: float) -> float:
        """Seconds from `began` until an answer holds."""
        deadline = began + PATIENCE_SECONDS
        while not holds(answer := await self.ask(model)):
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.002)
        return time.monotonic() - began

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def probes(gateway: Gateway) -> AsyncIterator[list[Probe]]:
    """Connections that reach both workers."""
    opened: list[Probe] = []
    try:
        workers: set[int] = set()
        while len(opened) < CONNECTIONS or len(workers) < 2:
            opened.append(Probe(*await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))))
            await opened[-1].ask("probing")
            await until("the lines", lambda: len(asked(gateway)) == len(opened))
            workers = {record["worker"] for record in asked(gateway)}
        yield opened
    finally:
        for probe in opened:
            probe.close()


def asked(gateway: Gateway) -> list[dict[str, Any]]:
    return [record for record in gateway.requests() if record.get("model") == "probing"]


def is_model(name: str) -> Callable[[Answer], bool]:
    return lambda answer: answer[0] == 200 and answer[1]["model"] == name


def is_status(status: int) -> Callable[[Answer], bool]:
    return lambda answer: answer[0] == status


async def test_a_change_is_in_effect_in_every_worker_and_fails_no_request(
    world: World, gateway: GatewayStarter
) -> None:
    stable, first, second = (world.engine(app, model=app) for app in ("m", "first", "second"))
    for engine, model in ((first, "first"), (second, "second"), (stable, "m")):
        world.server(model, model, model=model)
        assert engine.is_up()
    world.route("m", {"targetModels": [target("m")]}, modelName="m")
    # A model without endpoints is refused at once: waiting for one would be measured too.
    running = gateway(wake_seconds="0")
    await until("the endpoints", lambda: len(running.endpoints("m")) == 1)
    api, place = world.plane.api, f"{NETWORKING}/{world.namespace}"
    pods = f"/api/v1/namespaces/{world.namespace}/pods"
    route = {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": "changing", "namespace": world.namespace},
        "spec": {"modelName": "changing", "rules": [{"targetModels": [target("first")]}]},
    }

    def spec(plural: str, name: str, **spec: Any) -> Change:
        return lambda: api.patch(f"{place}/{plural}/{name}", {"spec": spec})

    def readiness(status: str) -> Change:
        conditions = [{"type": "Ready", "status": status}]
        return lambda: api.patch(f"{pods}/{first.pod}/status", {"status": {"conditions": conditions}})

    only_gold = {"modelMatch": {"headers": {"plan": {"exact": "gold"}}}, "targetModels": [target("first")]}
    # What is changed, how, the name asked for, and what the answer is from then on.
    changes: Mapping[str, tuple[Change, str, Callable[[Answer], bool]]] = {
        "a route is made": (lambda: api.create(f"{place}/modelroutes", route), "changing", is_model("first")),
        "its target changes": (
            spec("modelroutes", "changing", rules=[{"targetModels": [target("second")]}]),
            "changing",
            is_model("second"),
        ),
        "its weights change": (
            spec("modelroutes", "changing", rules=[{"targetModels": [target("first"), target("second", 0)]}]),
            "changing",
            is_model("first"),
        ),
        "an adapter is added": (spec("modelroutes", "changing", loraAdapters=["extra"]), "extra", refused_by_engine),
        "a pod is not ready": (readiness("False"), "changing", is_status(503)),
        "a fallback is added": (
            spec(
                "modelroutes",
                "changing",
                rules=[{"targetModels": [target("first")], "fallbacks": [{"modelServerName": "second"}]}],
            ),
            "changing",
            is_model("second"),
        ),
        "the pod is ready again": (readiness("True"), "changing", is_model("first")),
        "a server selects others": (
            spec("modelservers", "first", workloadSelector={"matchLabels": {"app": "second"}}),
            "changing",
            refused_by_engine,
        ),
        "a server renames the model": (spec("modelservers", "first", model="second"), "changing", is_model("second")),
        "a rule gets a match": (spec("modelroutes", "changing", rules=[only_gold]), "changing", is_status(404)),
        "the route is deleted": (lambda: api.delete(f"{place}/modelroutes/changing"), "extra", unknown),
    }
    delays: dict[str, float] = {}
    async with probes(running) as connections, traffic(running, clients=2) as wrong:
        for name, (change, model, holds) in changes.items():
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(probe.first(model, holds, began), name=name) for probe in connections]
                await asyncio.to_thread(change)
            delays[name] = max(task.result() for task in waiting)
    figures = [*delays.items(), ("median", statistics.median(delays.values()))]
    sys.stdout.writelines(f"{name:26} {seconds * 1000:6.1f} ms\n" for name, seconds in figures)
    assert wrong == []
    # The goal is 200 ms, and what the lines above show on a machine that nobody slows down; this is for what is always
    # late. What hangs has failed already.
    assert statistics.median(delays.values()) < LIMIT_SECONDS


def refused_by_engine(answer: Answer) -> bool:
    return answer[0] == 404 and answer[1]["error"]["type"] == "NotFoundError"


def unknown(answer: Answer) -> bool:
    return answer[0] == 404 and answer[1]["error"]["code"] == "model_not_found" and "No rule" not in str(answer[1])


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_the_official_clients_take_their_tour_of_a_gateway(world: World, gateway: GatewayStarter) -> None:
    for _ in range(2):
        world.engine("m", model="real-name")
    world.server("m", "m", model="real-name")
    world.route("m", {"targetModels": [target("m")]}, modelName="org/Model")
    running = gateway()
    await until("the endpoints", lambda: len(running.endpoints("m")) == 2)
    assert {name: verdict for name, verdict in (await tour(running.url, "org/Model")).items() if verdict != "ok"} == {}
