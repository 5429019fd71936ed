"""The gateway as a real process, with its own ServiceAccount, on a real API server, in front of simulated engines."""

import asyncio
import os
import signal

import pytest
from openai import APIStatusError, NotFoundError
from tests.integration.gateway_world import NETWORKING, GatewayStarter, World, chat, simple, target, traffic, until

from matrixinfer.devcluster.controlplane import wait_for

pytestmark = pytest.mark.timeout(180)


def test_the_official_client_chats_streams_completes_embeds_and_lists(world: World, gateway: GatewayStarter) -> None:
    simple(world)
    running = gateway()
    wait_for("the model", lambda: running.models() == {"m"}, 10)
    client = running.openai
    answer = chat(client)
    assert answer.choices[0].message.content
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens > 0
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer.choices[0].message.content
    assert client.completions.create(model="m", prompt=["one", "two"]).choices[1].text
    assert len(client.embeddings.create(model="m", input=["a", "b"]).data) == 2
    assert client.models.retrieve("m").owned_by == "matrixinfer"
    with pytest.raises(NotFoundError) as missing:
        chat(client, model="nobody")
    assert missing.value.code == "model_not_found"
    wait_for("the counts", lambda: running.metric('matrixinfer_gateway_requests_total{code="200",model="m"') >= 4, 30)
    records = [r for r in running.requests() if r.get("model") == "m"]
    assert records
    explained = running.debug(f"explain/{records[0]['request_id']}")
    (page,) = explained["known_by"]
    assert page["attempts"][0]["replay"] == {"pod": records[0]["pod"], "same": True}
    assert records[0]["pod"] == world.engines[0].pod
    assert records[0]["decision"]["candidates"] == 1


def test_status_says_what_is_true(world: World, gateway: GatewayStarter) -> None:
    simple(world, 2)
    world.route("younger", {"targetModels": [target("absent")]}, modelName="m", loraAdapters=["only-mine"])
    gateway()
    wait_for("Accepted", lambda: world.condition("modelroutes", "m", "Accepted").get("status") == "True", 20)
    assert world.condition("modelroutes", "m", "Conflicted")["status"] == "False"
    wait_for("younger", lambda: world.condition("modelroutes", "younger", "Conflicted").get("status") == "True", 10)
    assert "absent" in world.condition("modelroutes", "younger", "ResolvedRefs")["message"]

    def counts() -> tuple[int, int, str] | None:
        status = world.plane.api.get(f"{NETWORKING}/{world.namespace}/modelservers/m").get("status", {})
        return status and (status["readyEndpoints"], status["totalEndpoints"], status["endpoints"])

    # Written by itself, before or after what the routes say.
    wait_for("the counts", lambda: counts() == (2, 2, "2/2"), 20)
    world.set_ready(world.engines[0], ready=False)
    wait_for("the count", lambda: counts() == (1, 2, "1/2"), 20)


def test_headers_adapters_and_model_names_route_as_written(world: World, gateway: GatewayStarter) -> None:
    gold, everyone = world.engine("gold", model="real-gold"), world.engine("everyone", model="real")
    world.server("gold", "gold", model="real-gold")
    world.server("everyone", "everyone", model="real")
    rules = (
        {"name": "gold", "modelMatch": {"headers": {"X-Plan": {"exact": "gold"}}}, "targetModels": [target("gold")]},
        {"name": "everyone", "targetModels": [target("everyone")]},
    )
    world.route("m", *rules, modelName="public/Name", loraAdapters=["an-adapter"])
    running = gateway()
    wait_for("the models", lambda: running.models() == {"public/Name", "an-adapter"}, 10)
    client = running.openai
    assert chat(client, "public/Name", extra_headers={"x-plan": "gold"}).model == "real-gold"
    assert chat(client, "public/Name").model == "real"
    # An adapter's name is the engine's to know: it arrives unchanged, and the engine's own 404 comes back.
    with pytest.raises(NotFoundError, match="an-adapter"):
        chat(client, "an-adapter")
    adapter = next(model for model in client.models.list() if model.id == "an-adapter")
    assert (adapter.model_extra or {})["parent"] == "public/Name"
    assert {gold.state()["completed"] > 0, everyone.state()["completed"] > 0} == {True}


async def test_a_change_of_endpoints_takes_effect_and_fails_no_request(world: World, gateway: GatewayStarter) -> None:
    first, second = simple(world, 2, pace=600)
    running = gateway()
    await until("both", lambda: len(running.endpoints("m")) == 2)
    async with traffic(running) as wrong:
        await until("traffic", lambda: running.metric("matrixinfer_gateway_requests_total") > 20)
        third = await asyncio.to_thread(world.engine, "m", model="m", pace=600)
        await until("the third", lambda: third.address in running.endpoints("m"))
        await until("its work", lambda: third.state()["completed"] > 0)
        await asyncio.to_thread(
            world.plane.run_kubectl,
            *("annotate", "pod", first.pod, "-n", world.namespace),
            "modelinfer.matrixinfer.ai/draining-since=2026-01-01T00:00:00Z",
        )
        await until("the first drained", lambda: running.endpoints("m") == {second.address, third.address})
        await until("the first idle", lambda: first.state()["running"] == 0)
        first.process.terminate()
    assert wrong == []


async def test_a_killed_pod_costs_at_most_its_own_streams(world: World, gateway: GatewayStarter) -> None:
    first, _ = simple(world, 2, pace=400)
    running = gateway()
    await until("both", lambda: len(running.endpoints("m")) == 2)
    async with traffic(running, clients=8) as wrong:
        await until("traffic", lambda: running.metric("matrixinfer_gateway_requests_total") > 10)
        in_flight = running.metric('matrixinfer_gateway_in_flight_requests{model="m"')
        first.process.kill()
        before = running.metric("matrixinfer_gateway_requests_total")
        # The pod is still Ready as far as anybody knows: connecting fails, and another endpoint answers. Where the cut
        # streams were failures enough to leave it out, that shows when it is tried again, ten seconds later.
        await until("another answers", lambda: any(record.get("retries") for record in running.requests()), 40)
        await until("more traffic", lambda: running.metric("matrixinfer_gateway_requests_total") > before + 20)
        await asyncio.to_thread(world.set_ready, first, ready=False)
        await until("it is out", lambda: len(running.endpoints("m")) == 1)
    assert len(wrong) <= max(8, in_flight)
    statuses = {r["status"] for r in running.requests() if r.get("model") == "m"}
    assert statuses == {200}


async def test_a_pod_that_is_deleted_ends_what_waits_for_it(world: World, gateway: GatewayStarter) -> None:
    """A pod that vanished with its node answers nothing, not even a reset: its object's end is the only sign."""
    # Slow enough for the requests to be there together, so that the other one does not answer them all in turn.
    silent, _ = simple(world, 2, pace=50)
    running = gateway()
    await until("both", lambda: len(running.endpoints("m")) == 2)
    silent.process.send_signal(signal.SIGSTOP)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(asyncio.to_thread(chat, running.openai)) for _ in range(8)]
        await until("some wait", lambda: running.metric('matrixinfer_gateway_in_flight_requests{model="m"') >= 1)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(
            world.plane.run_kubectl,
            *("delete", "pod", silent.pod, "-n", world.namespace, "--grace-period=0", "--force"),
        )
    assert all(task.result().choices for task in asking)
    gone = 'matrixinfer_gateway_upstream_retries_total{model="m",reason="endpoint_gone"'
    await until("the retries are counted", lambda: running.metric(gone) > 0)


async def test_a_client_that_leaves_ends_the_engines_work(world: World, gateway: GatewayStarter) -> None:
    # By itself the answer would take 24 seconds at least.
    (engine,) = simple(world, pace=1)
    running = gateway()
    await until("ready", lambda: len(running.endpoints("m")) == 1)
    async with running.patient_openai as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        async for _ in stream:
            break
        assert engine.state()["running"] == 1
        await stream.close()
    await until("aborted", lambda: engine.state()["running"] == 0, 10)
    await until("the line", lambda: any(r["outcome"] == "client_gone" for r in running.requests()))


async def test_beat_01_a_drain_finishes_streams_and_ends_with_code_0(world: World, gateway: GatewayStarter) -> None:
    """Readiness is red first, serving goes on, streams finish however long that takes, then the process ends."""
    simple(world, pace=5)
    running = gateway(settle_seconds="4")
    await until("ready", lambda: len(running.endpoints("m")) == 1)
    async with running.patient_openai as client, running.patient_openai as late:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        chunks = [await anext(stream) for _ in range(3)]
        running.service.terminate()
        await until("readiness is red", lambda: not running.service.is_ready())
        # Load balancers have not heard yet: a new request is still served.
        served = await late.completions.create(model="m", prompt="x", max_tokens=1)
        assert served.choices
        chunks += [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason is not None
    assert await asyncio.to_thread(running.service.wait_gone, 20)
    assert '"event":"service_stopped"' in running.service.log.read_text()
    assert '"code":0' in running.service.log.read_text().splitlines()[-1]


async def test_a_killed_worker_is_replaced_and_the_other_goes_on(world: World, gateway: GatewayStarter) -> None:
    simple(world, 2, pace=600)
    running = gateway()
    await until("ready", lambda: len(running.endpoints("m")) == 2)
    victim, survivor = (worker["pid"] for worker in running.debug("workers"))
    async with traffic(running, clients=12) as wrong:
        await until("traffic", lambda: running.metric("matrixinfer_gateway_requests_total") > 20)
        before = running.metric("matrixinfer_gateway_requests_total")
        os.kill(victim, signal.SIGKILL)
        await until("a successor", lambda: {w["pid"] for w in running.debug("workers") if w["serving"]} > {survivor})
        await until("traffic again", lambda: running.metric("matrixinfer_gateway_requests_total") > before + 40)
    # Twelve clients, one request each at a time: a dead worker can have had no more than those.
    assert len(wrong) <= 12
    assert running.metric("matrixinfer_gateway_worker_restarts_total") == 1
    await until("no request is counted any more", lambda: running.metric("matrixinfer_gateway_in_flight_requests") == 0)


def test_a_model_without_endpoints_is_503_with_retry_after(world: World, gateway: GatewayStarter) -> None:
    world.server("m", "nothing-has-this-label")
    world.route("m", {"targetModels": [target("m")]}, modelName="m")
    running = gateway(wake_seconds="0.5")
    wait_for("the model", lambda: running.models() == {"m"}, 10)
    with pytest.raises(APIStatusError) as refused:
        chat(running.openai)
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert refused.value.response.headers["x-request-id"]
