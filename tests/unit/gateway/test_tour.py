"""The official clients take their tour of a worker with two simulated engines behind it, on real sockets."""

import asyncio
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
from tests.tour.steps import ANTHROPIC, ENGINES_OWN, OPENAI, Step, tour
from tests.unit.gateway.rig import Rig, StubEngine

from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.faults import faults_from
from matrixinfer.enginesim.server import Simulator


@pytest.fixture
async def engines(rig: Rig) -> AsyncIterator[list[Simulator]]:
    """Two engines that call the model `real`; what one keeps the other does not know."""
    async with (
        Simulator(SimConfig(port=0, served_names=("real",))) as one,
        Simulator(SimConfig(port=0, served_names=("real",))) as two,
    ):
        simulators = [one, two]
        rig.engines += [StubEngine("127.0.0.1", int(sim.url.rpartition(":")[2])) for sim in simulators]
        rig.model, rig.name = "real", "org/Model"
        await rig.start()
        yield simulators


# The OpenAI client warns that translations are deprecated there; engines serve them.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
@pytest.mark.parametrize("steps", [OPENAI, ANTHROPIC, ENGINES_OWN], ids=["openai", "anthropic", "engines"])
async def test_every_step_of_the_tour_succeeds(rig: Rig, engines: list[Simulator], steps: dict[str, Step]) -> None:
    verdicts = await tour(f"http://127.0.0.1:{rig.port}", "org/Model", steps)
    assert {name: verdict for name, verdict in verdicts.items() if verdict != "ok"} == {}
    assert verdicts.keys() == steps.keys()
    # Both were asked, each for the model by the name it knows.
    asked = [request["body"].get("model") for sim in engines for request in sim.requests]
    assert set(asked) <= {"real", None}
    assert all(sim.requests for sim in engines)
    credentials = {"authorization", "x-api-key"}
    seen = {name.lower() for sim in engines for request in sim.requests for name in request["headers"]}
    assert not credentials & seen
    assert seen >= {"x-request-id"}
    await asyncio.sleep(0)
    assert not any(sim.engine.busy for sim in engines)


async def test_the_official_clients_raise_when_a_stream_breaks(rig: Rig, engines: list[Simulator]) -> None:
    """A cut stream must never look like a short answer."""
    for sim in engines:
        sim.faults.add(faults_from({"kind": "cut", "after": 3}))
    url, question = f"http://127.0.0.1:{rig.port}", [{"role": "user", "content": "hello"}]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="failed before the answer was complete"):
            async for _ in await client.chat.completions.create(model="org/Model", messages=question, stream=True):  # type: ignore[arg-type]
                pass
        with pytest.raises(openai.APIError, match="failed before the answer was complete"):
            async for _ in await client.responses.create(model="org/Model", input="hello", stream=True):
                pass
    async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client_of_messages:
        with pytest.raises(anthropic.APIStatusError, match="failed before the answer was complete"):
            async for _ in await client_of_messages.messages.create(
                model="org/Model",
                messages=question,  # type: ignore[arg-type]
                max_tokens=50,
                stream=True,
            ):
                pass
