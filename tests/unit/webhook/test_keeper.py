"""Secret and webhook configurations on an API server with real semantics: races, other hands, no needless write."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import KubeError
from matrixinfer.kube.resource import MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS, Key
from matrixinfer.testkit.apiserver import ApiServer
from matrixinfer.testkit.clock import ManualClock
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.webhook.certificates import Policy
from matrixinfer.webhook.keeper import Keeper

SECRET = Key("default", "matrixinfer-webhook-tls")
CONFIGURATION = Key("", "matrixinfer")
POLICY = Policy(names=("webhook.default.svc",))
MANIFESTS = Path(__file__).parents[3] / "deploy/base/webhook/configurations.yaml"


def apply_configurations(api: MemoryApi, **annotations: str) -> None:
    for manifest in yaml.safe_load_all(MANIFESTS.read_text()):
        resource = MUTATING_WEBHOOKS if manifest["kind"].startswith("Mutating") else VALIDATING_WEBHOOKS
        manifest["metadata"]["annotations"] = annotations
        api.apply(resource, manifest, field_manager="kubectl")


def trusted(api: MemoryApi) -> set[str]:
    configurations = [api.get(resource, CONFIGURATION) for resource in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)]
    hooks = [hook for configuration in configurations for hook in configuration["webhooks"]]
    return {hook["clientConfig"].get("caBundle", "") for hook in hooks}


class World:
    """An API server, a clock, and as many keepers as wanted."""

    def __init__(self, server: ApiServer, client: Client, clock: ManualClock) -> None:
        self.server, self.api, self.client, self.clock = server, server.api, client, clock

    def keeper(self) -> Keeper:
        return Keeper(self.client, policy=POLICY, secret=SECRET, configuration=CONFIGURATION.name, now=self.clock)

    def secret(self) -> dict[str, Any]:
        return self.api.get(SECRETS, SECRET)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    async with ApiServer(MemoryApi(now=clock)) as server:
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
        async with await Client.connect(kubeconfig, user_agent="webhook") as client:
            yield World(server, client, clock)


async def test_the_first_pass_makes_the_secret_and_publishes_the_authority(world: World) -> None:
    apply_configurations(world.api)
    kept = await world.keeper().look_after()
    assert kept.trusted
    assert trusted(world.api) == {base64.b64encode(kept.bundle.trust).decode()}
    assert world.secret()["type"] == "kubernetes.io/tls"
    assert base64.b64decode(world.secret()["data"]["tls.crt"]) == kept.bundle.certificate


async def test_a_second_pass_writes_nothing(world: World) -> None:
    apply_configurations(world.api)
    keeper = world.keeper()
    first = await keeper.look_after()
    writes = world.api.write_count
    assert await keeper.look_after() == first
    assert world.api.write_count == writes


async def test_without_configurations_it_serves_but_is_not_trusted(world: World) -> None:
    kept = await world.keeper().look_after()
    assert not kept.trusted
    apply_configurations(world.api)
    assert (await world.keeper().look_after()).trusted


async def test_replicas_that_start_together_end_with_one_certificate(world: World) -> None:
    apply_configurations(world.api)
    async with asyncio.TaskGroup() as group:
        passes = [group.create_task(world.keeper().look_after()) for _ in range(5)]
    assert len({done.result().bundle for done in passes}) == 1
    assert sum(write.resource == SECRETS and write.code == 201 for write in world.api.writes) == 1


async def test_replicas_that_renew_together_end_with_one_certificate(world: World) -> None:
    apply_configurations(world.api)
    before = await world.keeper().look_after()
    world.clock.advance(timedelta(days=61).total_seconds())
    async with asyncio.TaskGroup() as group:
        passes = [group.create_task(world.keeper().look_after()) for _ in range(5)]
    bundles = {done.result().bundle for done in passes}
    assert len(bundles) == 1
    assert bundles != {before.bundle}
    assert bundles.pop().trust == before.bundle.trust


async def test_applying_the_manifests_again_keeps_the_authority(world: World) -> None:
    apply_configurations(world.api)
    await world.keeper().look_after()
    kept = trusted(world.api)
    apply_configurations(world.api, touched="yes")
    assert trusted(world.api) == kept != {""}


async def test_an_authority_that_was_taken_out_comes_back(world: World) -> None:
    apply_configurations(world.api)
    await world.keeper().look_after()
    kept = trusted(world.api)
    removed = [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]
    world.api.json_patch(MUTATING_WEBHOOKS, CONFIGURATION, removed)
    await world.keeper().look_after()
    assert trusted(world.api) == kept


async def test_a_damaged_secret_is_made_anew(world: World) -> None:
    apply_configurations(world.api)
    before = await world.keeper().look_after()
    world.api.merge_patch(SECRETS, SECRET, {"data": {"tls.key": base64.b64encode(b"junk").decode()}})
    after = await world.keeper().look_after()
    assert after.trusted
    assert after.bundle.trust != before.bundle.trust
    assert trusted(world.api) == {base64.b64encode(after.bundle.trust).decode()}


async def test_somebody_elses_certificate_is_served_and_never_touched(world: World) -> None:
    apply_configurations(world.api)
    theirs = (await world.keeper().look_after()).bundle
    data = {k: v for k, v in world.secret()["data"].items() if k != "ca.key"}
    world.api.delete(SECRETS, SECRET)
    foreign = {"metadata": {"name": SECRET.name}, "type": "kubernetes.io/tls", "data": data}
    world.api.create(SECRETS, foreign, field_manager="cert-manager")
    world.clock.advance(timedelta(days=80).total_seconds())
    writes = world.api.write_count
    kept = await world.keeper().look_after()
    assert (kept.bundle.certificate, kept.trusted) == (theirs.certificate, True)
    assert world.api.write_count == writes


async def test_an_injected_authority_is_left_to_its_injector(world: World) -> None:
    apply_configurations(world.api, **{"cert-manager.io/inject-ca-from": "ns/name"})
    assert (await world.keeper().look_after()).trusted
    assert trusted(world.api) == {""}


async def test_a_write_whose_answer_is_lost_is_found_done(world: World) -> None:
    apply_configurations(world.api)
    world.api.faults.kill_at_write(world.api.write_count + 1, after_effect=True)
    with pytest.raises(KubeError):
        await world.keeper().look_after()
    made = world.secret()
    kept = await world.keeper().look_after()
    assert world.secret() == made
    assert kept.trusted


async def test_a_change_of_authority_takes_its_steps_in_order(world: World) -> None:
    apply_configurations(world.api)
    keeper = world.keeper()
    await keeper.look_after()
    world.clock.advance(timedelta(days=540).total_seconds())
    first = await keeper.look_after()
    world.clock.advance(timedelta(days=20).total_seconds())
    prepared = await keeper.look_after()
    assert prepared.bundle.trust.endswith(first.bundle.trust)
    assert prepared.bundle.certificate == first.bundle.certificate
    assert trusted(world.api) == {base64.b64encode(prepared.bundle.trust).decode()}
    world.clock.advance(timedelta(minutes=11).total_seconds())
    signed = await keeper.look_after()
    assert signed.bundle.trust == prepared.bundle.trust
    assert signed.bundle.certificate != prepared.bundle.certificate
