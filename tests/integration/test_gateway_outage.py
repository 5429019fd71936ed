"""The gateway while the API server is away, on a control plane of its own: others need theirs."""

import asyncio

import pytest
from tests.integration.gateway_world import GatewayStarter, World, simple, traffic, until

from matrixinfer.devcluster import ControlPlane, repository

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def bare_control_plane(own_plane: ControlPlane) -> ControlPlane:
    return own_plane


@pytest.fixture
def control_plane(own_plane: ControlPlane) -> ControlPlane:
    own_plane.apply(repository() / "crds")
    own_plane.run_kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return own_plane


async def test_routing_goes_on_without_the_api_server(world: World, gateway: GatewayStarter) -> None:
    simple(world, 2)
    running = gateway()
    await until("ready", lambda: len(running.endpoints("m")) == 2)
    async with traffic(running, clients=4) as wrong:
        await asyncio.to_thread(world.plane.restart, "kube-apiserver", hard=True)
    assert wrong == []
    assert running.service.is_ready()
    third = await asyncio.to_thread(world.engine, "m", model="m")
    await until("it watches again", lambda: third.address in running.endpoints("m"), 30)
