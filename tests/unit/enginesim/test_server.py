"""The HTTP surface, over a real socket on the loopback interface."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from tests.tour.steps import tour

from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.exposition import MetricReader
from matrixinfer.engines.metric_names import Metric
from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.faults import faults_from
from matrixinfer.enginesim.server import Simulator

SLOW = {"decode_tokens_per_second": 200.0}
ENDLESS = {"prompt": "go", "max_tokens": 5000, "ignore_eos": True, "stream": True}


@pytest.fixture
async def sim(request: pytest.FixtureRequest) -> AsyncIterator[Simulator]:
    config = SimConfig(
        **{"port": 0, "served_names": ("m",), "prompt_tokens_details": True, **getattr(request, "param", {})}
    )
    async with asyncio.timeout(20), Simulator(config) as simulator:
        yield simulator


@pytest.fixture
async def http(sim: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sim.url) as session:
        yield session


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def messages(text: str) -> list[Any]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": text}]}]


async def lines(stream: Iterable[Any] | aiohttp.StreamReader) -> list[bytes]:
    assert isinstance(stream, aiohttp.StreamReader)
    return [line[6:].strip() async for line in stream if line.startswith(b"data: ")]


async def until(claim: Any) -> None:
    """Let the server's tasks run until the claim holds; the fixture's deadline bounds it."""
    # What is waited for happens in another task of this very loop; there is no event to wait on from outside.
    while not claim():
        await asyncio.sleep(0.001)


async def test_the_official_client_gets_the_same_answer_streaming_and_not(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="m", messages=messages("hello"))
    parts = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="m", messages=messages("hello"), stream=True, stream_options={"include_usage": True}
        )
    ]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in parts if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    usage = parts[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert parts[-1].choices == []
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens // 16 * 16 or 0


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_the_official_clients_take_their_tour_and_miss_what_vllm_lacks(sim: Simulator) -> None:
    verdicts = await tour(sim.url, "m")
    only_without_v1 = {"tokenize", "detokenize", "classify", "pooling"}
    missing = {name for name, verdict in verdicts.items() if verdict.startswith("404")}
    assert missing == only_without_v1 | {"models.retrieve", "messages.models"}
    assert {verdict for name, verdict in verdicts.items() if name not in missing} == {"ok"}


async def test_a_cancelled_response_stays_cancelled_and_an_old_one_is_forgotten(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="m", input="hello", background=True)
    assert (made.status, (await client.responses.cancel(made.id)).status) == ("queued", "cancelled")
    done = await client.responses.create(model="m", input="hello")
    assert (await client.responses.retrieve(made.id)).status == "cancelled"
    with pytest.raises(BadRequestError, match="synchronous"):
        await client.responses.cancel(done.id)
    with pytest.raises(NotFoundError, match="resp_nobody"):
        await client.responses.create(model="m", input="more", previous_response_id="resp_nobody")


async def test_completions_take_lists_and_choices(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="m", prompt=["a", "b"], n=2, max_tokens=9)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 36)


async def test_embeddings_decode_in_the_official_client(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="m", input=["a", "b"], dimensions=8)
    vectors = [item.embedding for item in answer.data]
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5) for vector in vectors)
    assert vectors[0] != vectors[1]


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["m"]


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError, match="`x` does not exist"):
        await client.chat.completions.create(model="x", messages=messages("hi"))


@pytest.mark.parametrize("sim", [{"max_model_len": 40}], indirect=True)
async def test_too_long_a_prompt_names_the_parameter(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await client.completions.create(model="m", prompt="word " * 100)
    assert refusal.value.param == "input_tokens"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "x"}]},
        {"max_tokens": 0},
        {"n": 0},
        {"n": "two"},
        {"seed": 1.5},
        {"stream_options": {"include_usage": True}},
        {"stream": "yes"},
        {"model": 3},
    ],
)
async def test_nonsense_is_the_clients_fault(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    async with http.post("/v1/chat/completions", json={"messages": messages("x"), **body}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == 400


@pytest.mark.parametrize("raw", [b"{", b"[]", b""])
async def test_a_body_that_is_no_object_is_refused(http: aiohttp.ClientSession, raw: bytes) -> None:
    async with http.post("/v1/completions", data=raw) as answer:
        assert answer.status == 400


async def test_a_request_id_comes_back_in_the_answer(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-id": "abc"}) as answer:
        assert (await answer.json())["id"] == "cmpl-abc"


async def test_tokenize_counts_as_the_engine_does(http: aiohttp.ClientSession) -> None:
    async with http.post("/tokenize", json={"prompt": "hello there", "return_token_strs": True}) as answer:
        body = await answer.json()
    assert body["count"] == len(body["tokens"]) == 2
    assert body["token_strs"] == ["hello", " there"]


@pytest.mark.parametrize("sim", [{"max_num_seqs": 2, **SLOW}], indirect=True)
async def test_metrics_tell_running_and_waiting_as_our_reader_sees_them(
    sim: Simulator, http: aiohttp.ClientSession
) -> None:
    """Five requests with room for two: 2 running, 3 waiting, as a real vLLM shows it."""
    reader = MetricReader(Metric)
    streams = [await http.post("/v1/completions", json=ENDLESS, timeout=None) for _ in range(2)]
    others = [asyncio.ensure_future(http.post("/v1/completions", json=ENDLESS)) for _ in range(3)]
    await until(lambda: len(sim.engine.scheduler.waiting) == 3)
    async with http.get("/metrics") as scrape:
        reading = reader.read(await scrape.read())
    assert reading.number(Metric.RUNNING) == 2
    assert reading.number(Metric.WAITING) == 3
    assert (reading.number(Metric.KV_USAGE) or 0) > 0
    histogram = reading.histogram(Metric.TTFT)
    assert histogram is not None
    assert histogram.count == 2
    for stream in streams:
        stream.close()
    for other in others:
        other.cancel()
    await until(lambda: not sim.engine.busy)
    assert sim.engine.aborted == 5


@pytest.mark.parametrize("sim", [SLOW], indirect=True)
async def test_a_client_that_hangs_up_ends_the_work_for_it(sim: Simulator, http: aiohttp.ClientSession) -> None:
    stream = await http.post("/v1/completions", json=ENDLESS)
    await stream.content.readline()
    assert sim.engine.busy
    stream.close()
    await until(lambda: not sim.engine.busy)
    assert sim.engine.aborted == 1
    assert sim.engine.scheduler.pool.used == 0


@pytest.mark.parametrize("sim", [SLOW], indirect=True)
async def test_stopping_finishes_streams_and_refuses_new_requests(sim: Simulator, http: aiohttp.ClientSession) -> None:
    stream = await http.post("/v1/completions", json={"prompt": "go", "max_tokens": 10, "stream": True})
    stopping = asyncio.ensure_future(sim.stop())
    await until(lambda: sim.engine.stopping)
    async with http.post("/v1/completions", json={"prompt": "x"}) as refused:
        assert refused.status == 500
        assert "cannot schedule new futures after shutdown" in await refused.text()
    async with http.get("/health") as health:
        assert health.status == 200
    assert (await lines(stream.content))[-1] == b"[DONE]"
    assert await stopping


@pytest.mark.parametrize("sim", [SLOW], indirect=True)
async def test_a_stop_that_takes_too_long_cuts_streams_off(sim: Simulator, http: aiohttp.ClientSession) -> None:
    stream = await http.post("/v1/completions", json=ENDLESS)
    assert not await sim.stop(drain_seconds=0.01)
    with pytest.raises(aiohttp.ClientPayloadError):
        await stream.read()


@pytest.mark.parametrize("sim", [{"lora": True}], indirect=True)
async def test_adapters_come_and_go_through_the_engines_library(sim: Simulator, http: aiohttp.ClientSession) -> None:
    api = engine_for("vLLM").lora
    assert api is not None

    async def send(request: Any) -> tuple[int, str]:
        async with http.request(request.method, request.path, json=dict(request.body)) as answer:
            return answer.status, await answer.text()

    assert api.load_succeeded(*await send(api.load("fin", "/models/fin")))
    again = await send(api.load("fin", "/models/fin"))
    assert again[0] == 400
    assert api.load_succeeded(*again)
    assert not api.load_succeeded(*await send(api.load("other", "/missing")))
    async with http.get(api.models_path) as listing:
        assert api.loaded(await listing.json()) == {"fin"}
    async with http.post("/v1/completions", json={"model": "fin", "prompt": "x", "max_tokens": 30}) as answer:
        assert (await answer.json())["model"] == "fin"
    assert api.unload_succeeded(*await send(api.unload("fin")))
    assert api.unload_succeeded(*await send(api.unload("fin")))


async def test_without_the_flag_there_are_no_adapter_endpoints(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/load_lora_adapter", json={}) as answer:
        assert answer.status == 404


async def test_errors_on_demand_are_counted_down(sim: Simulator, http: aiohttp.ClientSession) -> None:
    async with http.post("/sim/faults", json={"kind": "error", "status": 503, "times": 2}) as added:
        assert added.status == 200
    statuses = []
    for _ in range(3):
        async with http.post("/v1/completions", json={"prompt": "x"}) as answer:
            statuses.append(answer.status)
    assert statuses == [503, 503, 200]


@pytest.mark.parametrize("kind", ["unhealthy", "dead"])
async def test_health_turns_red_and_green_again(http: aiohttp.ClientSession, kind: str) -> None:
    await http.post("/sim/faults", json={"kind": kind})
    async with http.get("/health") as red, http.post("/v1/completions", json={"prompt": "x"}) as answer:
        assert red.status == 503
        assert answer.status == (500 if kind == "dead" else 200)
    await http.delete("/sim/faults")
    async with http.get("/health") as green:
        assert green.status == 200


async def test_a_cut_stream_ends_after_so_many_chunks(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.add(faults_from({"kind": "cut", "after": 3, "times": 1}))
    async with http.post("/v1/completions", json={"prompt": "x", "stream": True}) as stream:
        got = [await stream.content.readline() for _ in range(6)]
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.content.read()
    assert sum(line.startswith(b"data: ") for line in got) == 3


async def test_a_stalled_stream_goes_quiet_with_its_connection_open(
    sim: Simulator, http: aiohttp.ClientSession
) -> None:
    sim.faults.add(faults_from({"kind": "stall", "after": 2, "times": 1}))
    async with http.post("/v1/completions", json={"prompt": "x", "stream": True}) as stream:
        got = [await stream.content.readline() for _ in range(4)]
        assert sum(line.startswith(b"data: ") for line in got) == 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.content.readline()


async def test_a_refused_connection_ends_without_an_answer(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.add(faults_from([{"kind": "refuse", "times": 2}]))
    with pytest.raises(aiohttp.ClientConnectionError):
        await http.post("/v1/completions", json={"prompt": "x"})


async def test_a_hanging_request_never_answers_and_does_not_block_others(
    sim: Simulator, http: aiohttp.ClientSession
) -> None:
    sim.faults.add(faults_from({"kind": "hang", "times": 1}))
    with pytest.raises(TimeoutError):
        await http.post("/v1/completions", json={"prompt": "x"}, timeout=aiohttp.ClientTimeout(total=0.05))
    async with http.post("/v1/completions", json={"prompt": "x"}) as answer:
        assert answer.status == 200


async def test_slowness_and_pace_change_at_run_time(sim: Simulator, http: aiohttp.ClientSession) -> None:
    async with http.post("/sim/pace", json={"decode_tokens_per_second": 40}) as answer:
        assert answer.status == 200
    await http.post("/sim/faults", json={"kind": "slow", "factor": 2})
    assert sim.engine.pace.seconds(0, decoding=True) == 2 / 40
    await http.delete("/sim/faults")
    assert sim.engine.pace.seconds(0, decoding=True) == 1 / 40
    for path, body in (("/sim/pace", {"warp_tokens_per_second": 1}), ("/sim/faults", {"kind": "nova"})):
        async with http.post(path, json=body) as answer:
            assert answer.status == 400


async def test_requests_are_remembered_for_tests_of_proxies(sim: Simulator, http: aiohttp.ClientSession) -> None:
    await http.post("/v1/completions", json={"prompt": "x", "user": "me"}, headers={"x-tenant": "acme"})
    async with http.get("/sim/requests") as answer:
        (entry,) = (await answer.json())["requests"]
    assert entry["body"]["user"] == "me"
    assert {key.lower(): value for key, value in entry["headers"].items()}["x-tenant"] == "acme"
    async with http.get("/sim/state") as state:
        assert (await state.json())["completed"] == 1


async def test_every_chunk_is_one_json_event(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", json={"messages": messages("x"), "stream": True, "n": 2}) as stream:
        events = await lines(stream.content)
    assert events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert sorted(choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]) == [
        0,
        1,
    ]


@pytest.mark.parametrize("sim", [{"decode_tokens_per_second": 1000.0}], indirect=True)
async def test_the_pace_is_kept_whatever_the_timer_does(http: aiohttp.ClientSession) -> None:
    loop, took = asyncio.get_running_loop(), []
    # A machine may stand still in one of them.
    for _ in range(3):
        begin = loop.time()
        async with http.post("/v1/completions", json=ENDLESS | {"max_tokens": 101}) as stream:
            await stream.read()
        took.append(loop.time() - begin)
    assert 0.09 < min(took) < 0.5
