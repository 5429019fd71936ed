"""Controllers as real processes on the real API server: killed, paused, restarted, cut off."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.kube_replicas import LEASE, build

from matrixinfer.devcluster import ControlPlane
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import PodView
from matrixinfer.kube.errors import ApiError
from matrixinfer.kube.resource import CONFIG_MAPS, LEASES, PODS, Key
from matrixinfer.kube.store import Store

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).with_name("kube_replicas.py")


@pytest.fixture
async def client(bare_control_plane: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(bare_control_plane.kubeconfig, user_agent="test-kube-election") as connected:
        yield connected


@pytest.fixture
def start(bare_control_plane: ControlPlane, namespace: str) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Start one controller process by its identity; all are killed afterwards."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(identity: str) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, str(PROGRAM), str(bare_control_plane.kubeconfig), namespace, identity]
        processes.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


async def until(claim: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until the awaited claim is true."""
    async with asyncio.timeout(seconds):
        while not (found := await claim()):
            await asyncio.sleep(0.05)
        return found


def wanted(namespace: str, name: str, replicas: int) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": "replicas"}}
    return {"metadata": metadata, "data": {"replicas": str(replicas)}}


async def made_by(client: Client, namespace: str) -> dict[str, str]:
    pods = (await client.list(PODS, namespace)).items
    return {pod["metadata"]["name"]: pod["metadata"]["annotations"]["made-by"] for pod in pods}


async def holder(client: Client, namespace: str) -> str:
    try:
        spec = (await client.get(LEASES, Key(namespace, LEASE)))["spec"]
    except ApiError:
        return ""
    return str(spec.get("holderIdentity", "")).partition("_")[0]


async def test_a_killed_leader_is_followed_and_nothing_is_made_twice(
    client: Client, namespace: str, start: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    first = start("first")
    await until(lambda: _holds(client, namespace, "first"))
    start("second")
    await client.create(CONFIG_MAPS, wanted(namespace, "set", 300))
    await until(lambda: made_by(client, namespace))
    first.kill()
    await until(lambda: _count_is(client, namespace, 300))
    makers = set((await made_by(client, namespace)).values())
    assert makers <= {"first", "second"}
    lease = await client.get(LEASES, Key(namespace, LEASE))
    assert lease["spec"]["leaseTransitions"] <= 1


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(
    client: Client, namespace: str, start: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    first = start("first")
    await until(lambda: _holds(client, namespace, "first"))
    second = start("second")
    assert second.stdout is not None
    assert await asyncio.to_thread(second.stdout.readline) == b"second runs\n"
    first.send_signal(signal.SIGTERM)
    # Sooner than the five seconds after which the lease would expire by itself.
    await until(lambda: _holds(client, namespace, "second"), 4.0)
    assert first.wait(5) == 0


async def test_a_paused_leader_writes_nothing_when_it_wakes(
    client: Client, namespace: str, start: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    """SIGSTOP, the lease goes to another, new work arrives, SIGCONT: the sleeper must not act on what it then reads."""
    first = start("first")
    await until(lambda: _holds(client, namespace, "first"))
    start("second")
    await client.create(CONFIG_MAPS, wanted(namespace, "before", 3))
    await until(lambda: _count_is(client, namespace, 3))
    first.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: _holds(client, namespace, "second"))
        await client.create(CONFIG_MAPS, wanted(namespace, "while", 20))
        await until(lambda: _count_is(client, namespace, 23))
    finally:
        first.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(first.wait, 15) == 3, "it exits because the lease is lost"
    makers = await made_by(client, namespace)
    assert {maker for name, maker in makers.items() if name.startswith("while")} == {"second"}
    assert len(makers) == 23


@pytest.mark.timeout(180)
async def test_a_controller_goes_on_after_the_api_server_was_killed(own_plane: ControlPlane) -> None:
    async with (
        await Client.connect(own_plane.kubeconfig, user_agent="outlives") as client,
        asyncio.TaskGroup() as group,
    ):
        manager, pods = build(client, "default", "one", elect=False)
        stopping = asyncio.Event()
        running = group.create_task(manager.run(stopping))
        await client.create(CONFIG_MAPS, wanted("default", "before", 5))
        await until(lambda: _count_is(client, "default", 5))
        await asyncio.to_thread(own_plane.restart, "kube-apiserver", hard=True)
        await until(lambda: _created(client, wanted("default", "after", 5)))
        await until(lambda: _count_is(client, "default", 10))
        assert not running.done()
        # What the API server has is here a moment later.
        await until(lambda: _knows(pods, 10))
        stopping.set()


async def _knows(pods: Store[PodView], count: int) -> bool:
    return len(pods) == count


async def _created(client: Client, manifest: dict[str, Any]) -> bool:
    try:
        await client.create(CONFIG_MAPS, manifest)
    except ApiError:
        return False
    return True


async def _holds(client: Client, namespace: str, identity: str) -> bool:
    return await holder(client, namespace) == identity


async def _count_is(client: Client, namespace: str, count: int) -> bool:
    try:
        return len(await made_by(client, namespace)) == count
    except ApiError:
        return False
