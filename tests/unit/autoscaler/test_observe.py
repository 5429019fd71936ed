"""Which pods are measured, where, and how many ought to be there besides."""

from typing import Any

from matrixinfer.autoscaler.endpoints import Endpoint
from matrixinfer.kube.resource import Key

KEY = Key("ns", "b")
DRAINING = {"annotations": {"modelinfer.matrixinfer.ai/draining-since": "2026-01-01T00:00:00Z"}}


def measured(world: Any) -> tuple[list[tuple[Endpoint, ...]], int]:
    seen = world.stores.seen(KEY)
    pods, absent = world.stores.measured(seen.target, seen.infer)
    return [pod.endpoints for pod in pods], absent


def test_a_binding_is_seen_with_what_it_names(world: Any) -> None:
    assert world.stores.seen(KEY) is None
    world.binding()
    seen = world.stores.seen(KEY)
    assert (seen.policy, seen.infer) == (None, None)
    world.policy()
    world.infer()
    seen = world.stores.seen(KEY)
    assert seen.policy.spec.behavior.scale_down is not None, "policies are completed with the defaults of admission"
    assert seen.infer.replicas == 1


def test_ready_pods_are_read_at_the_port_named_http_of_the_engine(world: Any) -> None:
    world.binding()
    world.infer(2)
    world.pod("a", "10.0.0.1")
    world.pod("b", "fd00::1")
    assert measured(world) == ([(Endpoint("10.0.0.1", 8001),), (Endpoint("fd00::1", 8001),)], 0)
    assert Endpoint("fd00::1", 8001).url == "http://[fd00::1]:8001/metrics"


def test_the_users_endpoint_comes_first_and_the_engines_own_behind_it(world: Any) -> None:
    target = {"targetRef": {"kind": "ModelInfer", "name": "m"}, "metricEndpoint": {"uri": "m", "port": 8100}}
    world.binding(target=target)
    world.infer(1)
    world.pod("a")
    assert measured(world)[0] == [(Endpoint("10.0.0.1", 8100, "/m"), Endpoint("10.0.0.1", 8001))]


def test_pods_that_start_or_do_not_exist_yet_are_absent(world: Any) -> None:
    world.binding()
    world.infer(4)
    world.pod("a")
    world.pod("b", ready=False)
    world.pod("c", ip="")
    assert measured(world)[1] == 3


def test_pods_that_leave_are_neither_measured_nor_missed(world: Any) -> None:
    world.binding()
    world.infer(1)
    world.pod("a")
    world.pod("b", **DRAINING)
    world.pod("c", deletionTimestamp="2026-01-01T00:00:00Z")
    endpoints, absent = measured(world)
    assert (len(endpoints), absent) == (1, 0)


def test_a_role_and_labels_choose_pods_and_count_them_per_replica(world: Any) -> None:
    decode = {
        "name": "decode",
        "replicas": 2,
        "entryTemplate": {"spec": {"containers": [{"ports": [{"containerPort": 9}]}]}},
    }
    target = {"targetRef": {"name": "m"}, "role": "decode", "additionalMatchLabels": {"zone": "x"}}
    world.binding(target=target)
    world.infer(1, roles=[{"name": "prefill", "entryTemplate": {}}, decode])
    world.pod("p", role="prefill", labels={"zone": "x"})
    world.pod("d0", role="decode", labels={"zone": "x"})
    world.pod("d1", role="decode", labels={"zone": "y"})
    assert measured(world) == ([(Endpoint("10.0.0.1", 9),)], 1)
    infer = world.stores.seen(KEY).infer
    assert (infer.entry_pods("decode"), infer.entry_pods(None)) == (2, 3)
    assert infer.engine_port("prefill") is None
