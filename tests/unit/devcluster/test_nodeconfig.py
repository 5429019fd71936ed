"""Configuration of a node: the lines that keep it off the rest of the machine."""

import tomllib
from pathlib import Path

import pytest

from matrixinfer.devcluster.layout import instance
from matrixinfer.devcluster.nodeconfig import (
    PAUSE_IMAGE,
    NodePaths,
    cni_network,
    containerd,
    corefile,
    dns_role,
    kube_proxy,
    kubelet,
)

PATHS = NodePaths(instance("x", Path("/checkout")))
CRI = "io.containerd.grpc.v1.cri"


def test_containerd_keeps_to_its_own_folders():
    config = tomllib.loads(containerd(PATHS, "overlayfs", Path("/usr/lib/cni")))
    ours = (str(PATHS.place.run), str(PATHS.place.folder))
    options = config["plugins"][CRI]["containerd"]["runtimes"]["runc"]["options"]
    for path in (config["root"], config["state"], config["grpc"]["address"], options["Root"]):
        assert path.startswith(ours)


def test_containerd_runs_where_oom_scores_cannot_be_lowered():
    cri = tomllib.loads(containerd(PATHS, "overlayfs", Path("/usr/lib/cni")))["plugins"][CRI]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["sandbox_image"] == PAUSE_IMAGE


def test_kubelet_never_removes_an_image():
    """No registry could bring it back."""
    assert kubelet(PATHS)["imageGCHighThresholdPercent"] == 100


def test_pods_have_a_control_group_that_can_be_found_again():
    assert kubelet(PATHS)["cgroupRoot"] == f"/{PATHS.place.ident}"


def test_only_the_authority_may_call_kubelet():
    config = kubelet(PATHS)
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}


@pytest.mark.parametrize("masquerade_all", [True, False])
def test_kube_proxy_changes_no_kernel_limit(masquerade_all: bool):
    config = kube_proxy(PATHS, masquerade_all=masquerade_all)
    assert config["mode"] == "nftables"
    assert config["conntrack"]["maxPerCore"] == 0
    assert config["nftables"]["masqueradeAll"] is masquerade_all


def test_results_of_network_plugins_bear_the_clusters_name():
    assert cni_network(PATHS)["name"] == PATHS.place.ident


def test_names_use_only_linked_plugins():
    linked = {"errors", "health", "ready", "cache", "kubernetes"}
    lines = [line for line in corefile(PATHS).splitlines() if line.startswith("    ") and not line.startswith("     ")]
    assert {line.split()[0] for line in lines} - {"}"} == linked


def test_coredns_may_only_look():
    (role, binding) = dns_role()
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert binding["subjects"][0]["name"] == "system:coredns"
