"""What every service's manifests must promise, read from the files that users apply."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy/base"
LONG_RUNNING = ["autoscaler", "gateway", "infer-controller", "model-controller", "webhook"]


def documents(service: str) -> list[dict[str, Any]]:
    files = sorted(p for p in (BASE / service).glob("*.yaml") if p.name != "kustomization.yaml")
    return [doc for path in files for doc in yaml.safe_load_all(path.read_text()) if doc]


def one(service: str, kind: str) -> dict[str, Any]:
    found = [doc for doc in documents(service) if doc["kind"] == kind]
    assert len(found) == 1, f"{service} has {len(found)} {kind}"
    return found[0]


def pod_spec(service: str) -> dict[str, Any]:
    return one(service, "Deployment")["spec"]["template"]["spec"]


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_service_has_its_own_account_deployment_service_and_disruption_budget(service: str):
    for kind in ("ServiceAccount", "Deployment", "Service", "PodDisruptionBudget"):
        assert one(service, kind)["metadata"]["name"] == service
    assert pod_spec(service)["serviceAccountName"] == service


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_service_runs_restricted(service: str):
    spec = pod_spec(service)
    container = spec["containers"][0]
    context = {**spec.get("securityContext", {}), **container["securityContext"]}
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_service_is_probed_on_its_admin_port(service: str):
    container = pod_spec(service)["containers"][0]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert {"name": "admin", "containerPort": 9090} in [
        {k: p[k] for k in ("name", "containerPort")} for p in container["ports"]
    ]


@pytest.mark.parametrize("service", [*LONG_RUNNING, "downloader"])
def test_no_role_grants_everything(service: str):
    rules = [r for doc in documents(service) if doc["kind"] in {"Role", "ClusterRole"} for r in doc["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in rule["verbs"] + rule.get("resources", []) + rule.get("apiGroups", [])


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_the_kustomization_lists_every_file(service: str):
    listed = yaml.safe_load((BASE / service / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(p.name for p in (BASE / service).glob("*.yaml") if p.name != "kustomization.yaml")
