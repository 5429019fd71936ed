"""The rights that the suite ships with are the rights that it used, no more and no less.

Runs last in this tree: by then every service has done all that it does.
"""

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from matrixinfer.devcluster import Node
from matrixinfer.devcluster.services import SYSTEM_NAMESPACE
from matrixinfer.testkit.permissions import granted, refused, used

BASE = Path(__file__).parents[2] / "deploy/base"
SERVICES = ["autoscaler", "gateway", "infer-controller", "model-controller", "webhook"]

# Rights for situations that this tree does not bring about; the integration tests of each service do. An event is
# patched when it happens again; `bind` is asked for by the API server itself, when a RoleBinding is written.
RARE: dict[str, set[str]] = {
    "autoscaler": {"patch events"},
    # Of the gateways, only one that has traffic and does not write status tells the others of it.
    # It tells of a status that could not be written.
    "gateway": {
        "create events",
        "patch events",
        "patch leases.coordination.k8s.io",
        "patch modelinfers.workload.matrixinfer.ai",
    },
    "infer-controller": {
        "delete controllerrevisions.apps",
        "delete services",
        "get controllerrevisions.apps",
        "get pods",
        "get services",
        "patch events",
        "patch services",
    },
    "model-controller": {
        "bind clusterroles.rbac.authorization.k8s.io",
        "delete modelinfers.workload.matrixinfer.ai",
        "delete modelroutes.networking.matrixinfer.ai",
        "delete modelservers.networking.matrixinfer.ai",
        "delete modelversions.registry.matrixinfer.ai",
        "patch events",
    },
    "webhook": {"update secrets"},
}


def rules(service: str) -> list[dict[str, Any]]:
    documents = (d for path in (BASE / service).glob("*.yaml") for d in yaml.safe_load_all(path.read_text()) if d)
    return [rule for d in documents if d["kind"] in {"Role", "ClusterRole"} for rule in d["rules"]]


@pytest.fixture(scope="module")
def audit(node: Node, suite: object) -> list[dict[str, Any]]:
    with node.audit_log.open("rb") as log:
        return [orjson.loads(line) for line in log if line.endswith(b"\n")]


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_was_refused_that_is_not_granted(audit: list[dict[str, Any]], service: str):
    """An API server that has just been restarted refuses everybody until it has read the roles."""
    lacking = refused(audit, f"system:serviceaccount:{SYSTEM_NAMESPACE}:{service}") - granted(rules(service))
    assert sorted(map(str, lacking)) == []


@pytest.mark.parametrize("service", SERVICES)
def test_no_right_is_idle(audit: list[dict[str, Any]], service: str):
    did = used(audit, f"system:serviceaccount:{SYSTEM_NAMESPACE}:{service}")
    idle = sorted(map(str, granted(rules(service)) - did))
    assert [right for right in idle if right not in RARE[service]] == []


@pytest.mark.parametrize("service", SERVICES)
def test_no_rare_right_is_listed_that_nobody_has(service: str):
    assert RARE[service] <= set(map(str, granted(rules(service))))
