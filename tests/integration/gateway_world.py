"""Engines, objects and traffic around a real gateway process, for the tests that use one.

Pods are objects whose status a test writes; their addresses are loopback ones on which a simulator of its own process
listens. So a change of an object, a killed engine and a killed worker are all real.
"""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI

from matrixinfer.devcluster import ControlPlane
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.services import ServiceProcess

ENGINE_PORT = 8000
NETWORKING = "/apis/networking.matrixinfer.ai/v1alpha1/namespaces"


@dataclass
class Engine:
    """One simulated engine process on an address of its own, and the pod that stands for it."""

    address: str
    pod: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{self.address}:{ENGINE_PORT}"

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/sim/state", timeout=5) as answer:
            return dict(json.load(answer))

    def is_up(self) -> bool:
        try:
            self.state()
        except OSError:
            return False
        return True


@dataclass
class World:
    """What a test needs to make engines, pods, servers and routes."""

    plane: ControlPlane
    namespace: str
    logs: Path
    next_address: Iterator[int]
    engines: list[Engine] = field(default_factory=list)

    def engine(self, app: str, *flags: str, model: str = "sim", pace: float = 200) -> Engine:
        (made,) = self.engines_of(1, app, *flags, model=model, pace=pace)
        return made

    def engines_of(self, count: int, app: str, *flags: str, model: str, pace: float) -> list[Engine]:
        """So many engines of one kind, which start side by side."""
        made = [self._started(app, *flags, "--served-model-name", model, pace=pace) for _ in range(count)]
        for engine in made:
            wait_for(f"the engine at {engine.address}", engine.is_up, 30)
            self.pod(engine, app)
        return made

    def _started(self, app: str, *flags: str, pace: float) -> Engine:
        address = f"127.7.{os.getpid() % 250}.{next(self.next_address)}"
        argv = [sys.executable, "-m", "matrixinfer.enginesim", "serve", "sim-model"]
        argv += ["--host", address, "--port", str(ENGINE_PORT), "--sim-decode-tokens-per-second", str(pace), *flags]
        with (self.logs / f"{address}.log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        engine = Engine(address, f"{app}-{address.rpartition('.')[2]}", process)
        self.engines.append(engine)
        return engine

    def pod(self, engine: Engine, app: str) -> None:
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        self.plane.api.create(
            pods,
            {
                "metadata": {"name": engine.pod, "labels": {"app": app}},
                # No scheduler takes it: nothing but this test says what becomes of the pod.
                "spec": {"schedulerName": "nobody", "containers": [{"name": "engine", "image": "none"}]},
            },
        )
        self.set_ready(engine, ready=True)

    def set_ready(self, engine: Engine, *, ready: bool) -> None:
        status = {
            "phase": "Running",
            "podIP": engine.address,
            "podIPs": [{"ip": engine.address}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        pod = f"/api/v1/namespaces/{self.namespace}/pods/{engine.pod}"
        self.plane.api.patch(f"{pod}/status", {"status": status})

    def server(self, name: str, app: str, **spec: Any) -> None:
        selected = {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": {"app": app}},
            "workloadPort": {"port": ENGINE_PORT},
        }
        self._apply("ModelServer", name, {**selected, **spec})

    def route(self, name: str, *rules: dict[str, Any], **spec: Any) -> None:
        self._apply("ModelRoute", name, {"rules": list(rules), **spec})

    def _apply(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        manifest = {
            "apiVersion": "networking.matrixinfer.ai/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        self.plane.api.apply(f"{NETWORKING}/{self.namespace}/{kind.lower()}s/{name}", manifest)

    def condition(self, plural: str, name: str, type_: str) -> dict[str, Any]:
        status = self.plane.api.get(f"{NETWORKING}/{self.namespace}/{plural}/{name}").get("status", {})
        return next((c for c in status.get("conditions", []) if c["type"] == type_), {})


@dataclass
class Gateway:
    """The running gateway."""

    service: ServiceProcess
    url: str

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    @property
    def patient_openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def debug(self, page: str) -> Any:
        with urllib.request.urlopen(f"{self.service.admin_url}/debug/{page}", timeout=5) as answer:
            return json.load(answer)

    def metric(self, sample: str) -> float:
        with urllib.request.urlopen(f"{self.service.admin_url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))

    def models(self) -> set[str]:
        return {model.id for model in self.openai.models.list()}

    def endpoints(self, server: str) -> set[str]:
        """What every worker knows of: while one is behind, what a request meets is not yet settled."""
        snapshot = self.debug("snapshot")
        if any(worker["revision"] != snapshot["revision"] for worker in self.debug("workers")):
            return set()
        return {e[3] for s in snapshot["servers"] if s[1] == server for e in s[4] if e[5] == "ready"}

    def requests(self) -> list[dict[str, Any]]:
        # The last line may be half written.
        lines = self.service.log.read_text().split("\n")[:-1]
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record["event"] == "request"]


GatewayStarter = Callable[..., Gateway]


def target(name: str, weight: int = 100) -> dict[str, Any]:
    return {"modelServerName": name, "weight": weight}


def simple(world: World, count: int = 1, *, pace: float = 200, **server: Any) -> list[Engine]:
    """One model `m` with `count` engines behind it."""
    engines = world.engines_of(count, "m", model="m", pace=pace)
    world.server("m", "m", **server)
    world.route("m", {"targetModels": [target("m")]}, modelName="m")
    return engines


def chat(client: OpenAI, model: str = "m", **extra: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], **extra)


async def ask_for_ever(gateway: Gateway, stop: asyncio.Event, **extra: Any) -> list[str]:
    """Stream answers one after the other; returns what went wrong."""
    wrong = []
    async with gateway.patient_openai as client:
        while not stop.is_set():
            try:
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hello"}], stream=True, **extra
                )
                reasons = [c.choices[0].finish_reason async for c in stream if c.choices]
                if not reasons or reasons[-1] is None:
                    wrong.append("cut stream")
            # A client's error, of whatever kind, is what this counts.
            except Exception as exc:  # noqa: BLE001
                wrong.append(repr(exc))
    return wrong


@asynccontextmanager
async def traffic(gateway: Gateway, clients: int = 8, **extra: Any) -> AsyncIterator[list[str]]:
    """Traffic while the body runs; the list holds what went wrong, complete after the body."""
    stop, wrong = asyncio.Event(), []
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(ask_for_ever(gateway, stop, **extra)) for _ in range(clients)]
        try:
            yield wrong
        finally:
            stop.set()
    wrong += [what for task in running for what in task.result()]


async def until(_what: str, holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        # The world outside this process has no event to wait for.
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.05)
