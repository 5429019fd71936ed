"""Flags that matter, and why."""

from pathlib import Path

import pytest

from matrixinfer.devcluster.binaries import Binaries
from matrixinfer.devcluster.components import (
    Addresses,
    Options,
    audit_policy,
    control_plane_commands,
    server_names,
)
from matrixinfer.devcluster.layout import instance

LOOPBACK = Addresses("127.0.0.1", 1, 2, 3)
BRIDGE = Addresses("10.244.0.1", 6443, 2379, 2380, advertise="10.244.0.1")


def commands(addresses: Addresses = LOOPBACK, options: Options | None = None) -> dict[str, list[str]]:
    place = instance("x", Path("/checkout"))
    return control_plane_commands(place, Binaries(Path("/bin")), addresses, options or Options())


def test_the_order_is_that_of_starting():
    assert list(commands()) == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


@pytest.mark.parametrize("component", ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"])
def test_nothing_is_written_outside_the_clusters_folder(component: str):
    for flag in commands()[component][1:]:
        value = flag.partition("=")[2]
        assert not value.startswith("/") or value.startswith("/checkout/.cache/devcluster/x/")


def test_services_of_ours_are_judged_by_their_roles():
    assert "--authorization-mode=Node,RBAC" in commands()["kube-apiserver"]


def test_loopback_keeps_no_endpoints_and_a_bridge_is_advertised():
    assert "--endpoint-reconciler-type=none" in commands()["kube-apiserver"]
    there = commands(BRIDGE)["kube-apiserver"]
    assert "--advertise-address=10.244.0.1" in there
    assert "--endpoint-reconciler-type=none" not in there


def test_etcd_asks_for_a_certificate():
    """Ports may be mixed up between clusters; data may not."""
    assert "--client-cert-auth" in commands()["etcd"]


def test_simulated_nodes_need_no_heartbeat_unless_asked_for():
    assert "--controllers=*,-node-lifecycle-controller" in commands()["kube-controller-manager"]
    assert "--controllers=*" in commands(options=Options(node_lifecycle=True))["kube-controller-manager"]


def test_the_schedulers_throttle_can_be_lifted():
    assert not any("qps" in flag for flag in commands()["kube-scheduler"])
    assert "--kube-api-qps=2000" in commands(options=Options(scheduler_qps=2000))["kube-scheduler"]


def test_added_flags_come_last_and_win():
    assert commands(options=Options(api_server_flags=("--v=4",)))["kube-apiserver"][-1] == "--v=4"


def test_the_audit_log_holds_our_services_and_no_component():
    rules = audit_policy()["rules"]
    assert rules[0] == {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]}
    assert rules[1] == {"level": "Metadata", "userGroups": ["system:serviceaccounts"]}
    assert rules[-1] == {"level": "None"}


def test_the_server_is_known_inside_and_outside():
    assert {"127.0.0.1", "10.244.0.1", "10.96.0.1", "kubernetes.default.svc"} <= set(server_names(BRIDGE))
