"""Simulated nodes take pods through their lives, and through mishaps."""

from typing import Any

import pytest

from matrixinfer.kube.codec import PODS_SLIM, PodView
from matrixinfer.kube.resource import NODES, PODS, Key
from matrixinfer.testkit import builders
from matrixinfer.testkit.clock import ManualClock
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.simulated import SimulatedCluster
from matrixinfer.testkit.view import View

KEY = Key("default", "p")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def api(clock: ManualClock) -> MemoryApi:
    made = MemoryApi(now=clock, auto_gc=False)
    made.create(PODS, builders.pod("p", spec={"terminationGracePeriodSeconds": 10}))
    return made


def seen(api: MemoryApi) -> PodView:
    pod: PodView | None = View(api).watch(PODS, project=PODS_SLIM).get(KEY)
    assert pod is not None
    return pod


def test_a_pod_is_bound_started_and_ready_step_by_step(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api)
    stages = []
    while cluster.step():
        pod = seen(api)
        stages.append((pod.scheduled, pod.phase, pod.ready))
    assert stages == [(True, "Pending", False), (True, "Running", False), (True, "Running", True)]
    assert seen(api).pod_ip.startswith("127.")


def test_pods_spread_over_nodes_and_wait_when_there_is_no_room(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api, nodes=2)
    for ordinal in range(3):
        api.create(PODS, builders.pod(f"q-{ordinal}"))
    cluster.settle()
    nodes = [pod["spec"]["nodeName"] for pod in api.list(PODS)]
    assert sorted(nodes) == ["node-0", "node-0", "node-1", "node-1"]
    full = SimulatedCluster(MemoryApi(), nodes=0)
    full.api.create(PODS, builders.pod("p"))
    full.settle()
    assert not seen(full.api).scheduled
    assert seen(full.api).unscheduled_message


def test_a_failed_pod_stays_failed(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api)
    cluster.settle()
    cluster.fail_pod(KEY, reason="OOMKilled", exit_code=137)
    cluster.settle()
    pod = seen(api)
    assert (pod.phase, pod.ready, pod.containers[0].exit_code) == ("Failed", False, 137)


def test_a_restarted_container_counts_and_comes_back(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api)
    cluster.settle()
    cluster.restart_container(KEY)
    assert (seen(api).ready, seen(api).restart_count) == (False, 1)
    cluster.settle()
    assert (seen(api).ready, seen(api).restart_count) == (True, 1)
    assert seen(api).containers[0].last_exit_code == 1


def test_a_crashing_image_never_gets_ready(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api, crashes=lambda pod: True)
    for _ in range(5):
        cluster.step()
    assert not seen(api).ready
    assert seen(api).restart_count == 3


def test_a_deleted_pod_goes_in_the_next_step(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api)
    cluster.settle()
    api.delete(PODS, KEY)
    assert seen(api).deleting
    cluster.step()
    assert api.find(PODS, KEY) is None


def test_a_stubborn_pod_takes_all_of_its_grace(api: MemoryApi, clock: ManualClock) -> None:
    cluster = SimulatedCluster(api, obey_grace=True)
    cluster.settle()
    api.delete(PODS, KEY)
    clock.advance(9)
    cluster.settle()
    assert api.find(PODS, KEY) is not None
    clock.advance(1)
    cluster.settle()
    assert api.find(PODS, KEY) is None


def test_a_lost_node_takes_readiness_and_a_removed_one_the_pods(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api, nodes=1)
    cluster.settle()
    cluster.lose_node("node-0")
    cluster.settle()
    assert not seen(api).ready
    cluster.remove_node("node-0")
    assert api.find(PODS, KEY) is None
    assert api.find(NODES, Key("", "node-0")) is None


def test_a_held_pod_does_not_move(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api)
    cluster.hold_pod(KEY)
    cluster.settle()
    assert not seen(api).scheduled
    cluster.release_pod(KEY)
    cluster.settle()
    assert seen(api).ready


def test_a_cluster_goes_on_from_a_fork(api: MemoryApi) -> None:
    cluster = SimulatedCluster(api)
    cluster.step()
    twin = SimulatedCluster(api.fork())
    twin.settle()
    assert seen(twin.api).ready
    assert not seen(api).ready


def test_the_cluster_is_not_in_the_write_log(api: MemoryApi) -> None:
    before: Any = list(api.writes)
    SimulatedCluster(api).settle()
    assert api.writes == before
