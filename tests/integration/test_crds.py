"""The definitions on a real API server: good manifests are taken and kept, bad ones refused by the schema alone."""

import json
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.api.v1alpha1 import structural
from matrixinfer.api.v1alpha1.kinds import ALL_KINDS
from matrixinfer.api.v1alpha1.schema import structural_schema
from matrixinfer.api.v1alpha1.validation import validate
from matrixinfer.devcluster import ControlPlane

ROOT = Path(__file__).parents[2]
PLURALS = {kind.kind: f"{kind.plural}.{kind.group}" for kind in ALL_KINDS}
FILES = sorted((ROOT / "tests/data/manifests").glob("*.yaml"))
DOCUMENTS = {d["metadata"]["name"]: d for path in FILES for d in yaml.safe_load_all(path.read_text())}
DOCUMENTS["everything"] = yaml.safe_load((ROOT / "tests/data/every-field.yaml").read_text())
DOCUMENTS["version"] = {
    "apiVersion": "registry.matrixinfer.ai/v1alpha1",
    "kind": "ModelVersion",
    "metadata": {"name": "version"},
    "spec": {
        "modelName": "m",
        "backendName": "b",
        "servedName": "m",
        "type": "vLLM",
        "modelURI": "hf://example-org/m",
        "env": [{"name": "A", "value": "b"}],
        "workers": [{"image": "example/engine:1", "config": {"a": 1}}],
    },
}


def kubectl(plane: ControlPlane, *argv: str, manifest: Any = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(plane.kubectl), "--kubeconfig", str(plane.kubeconfig), *argv],
        input=None if manifest is None else json.dumps(manifest),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def damaged(name: str, place: str, value: Any) -> dict[str, Any]:
    made = deepcopy(DOCUMENTS[name])
    *steps, last = place.split(".")
    inner: Any = made
    for step in steps:
        inner = inner[int(step)] if isinstance(inner, list) else inner.setdefault(step, {})
    if value is ...:
        inner.pop(last)
    else:
        inner[last] = value
    return made


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_good_manifest_is_applied_defaulted_and_read_back(control_plane: ControlPlane, namespace: str, name: str):
    manifest = DOCUMENTS[name]
    applied = kubectl(control_plane, "apply", "-n", namespace, "-f", "-", manifest=manifest)
    assert applied.returncode == 0, applied.stderr
    got = kubectl(control_plane, "get", "-n", namespace, PLURALS[manifest["kind"]], name, "-o", "json")
    stored = json.loads(got.stdout)
    filled: Any = structural.fill(manifest, structural_schema(manifest["kind"]))
    assert stored["spec"] == filled["spec"], "the API server fills in what libs/api says it does"
    assert validate(stored) == []


REFUSED = [
    ("harbor-24b", "spec.backends.0.minReplicas", 3, "minReplicas must not be greater than maxReplicas"),
    ("harbor-24b", "spec.backends.0.minReplicas", ..., "spec.backends[0].minReplicas: Required value"),
    ("harbor-24b", "spec.backends.0.minReplicas", "one", "spec.backends[0].minReplicas"),
    ("harbor-24b", "spec.backends.0.minReplica", 1, 'unknown field "spec.backends[0].minReplica"'),
    ("harbor-24b", "spec.backends.0.type", "VLLM", "spec.backends[0].type: Unsupported value"),
    ("harbor-24b", "spec.backends.0.type", "MindIE", "not supported yet"),
    ("harbor-24b", "spec.backends.0.modelURI", "ftp://x", "spec.backends[0].modelURI"),
    ("harbor-24b", "spec.backends.0.routeWeight", 101, "spec.backends[0].routeWeight"),
    ("harbor-24b", "spec.backends.0.workers.0.type", "decode", "exactly one worker, of type server"),
    ("harbor-24b", "spec.backends.1.workers.0.type", "server", "prefill or decode"),
    ("harbor-24b", "spec.backends.1.workers.0.type", "decode", "needs a prefill worker"),
    ("harbor-24b", "spec.backends.0.scalingCost", 5, "scalingCost needs"),
    ("harbor-24b", "spec.costExpansionRatePercent", 5, "costExpansionRatePercent needs"),
    ("harbor-24b", "spec.backends.0.scaleToZeroGracePeriod", "1m", "scaleToZeroGracePeriod needs"),
    ("harbor-24b", "spec.backends.0.scaleToZeroGracePeriod", "31m", "between 0s and 30m"),
    ("harbor-24b", "spec.backends.0.scaleToZeroGracePeriod", "soon", "spec.backends[0].scaleToZeroGracePeriod"),
    ("harbor-24b", "spec.backends.0.rollout", {"strategy": "Canary"}, "needs at least one"),
    ("harbor-24b", "spec.backends.0.workers.0.image", "a b", "spec.backends[0].workers[0].image"),
    ("harbor-24b", "spec.backends.0.workers.0.affinity", {"nodeAffinty": {}}, "nodeAffinty"),
    ("harbor-24b", "spec.backends.1.name", "agg", "Duplicate value"),
    ("harbor-24b", "spec", ..., "spec: Required value"),
    ("lantern-8b", "spec.backends.0.routeWeight", 0, "routeWeight above 0"),
    ("mosaic", "spec.backends.0.scalingCost", 0, "needs a scalingCost of at least 1"),
    ("mosaic", "spec.backends.0.maxReplicas", 1_000_000, "must not exceed 1000000"),
    ("queue-depth", "spec.metrics.0.targetValue", 0, "greater than 0"),
    ("queue-depth", "spec.metrics.0.targetValue", "-1m", "greater than 0"),
    ("queue-depth", "spec.metrics.0.targetValue", "much", "spec.metrics[0].targetValue"),
    ("queue-depth", "spec.metrics.0.metricName", "matrixinfer:e2e_request_latency_seconds", "may appear once"),
    ("queue-depth", "spec.metrics.0.source", "Prometheus", "which needs it"),
    ("queue-depth", "spec.behavior.scaleDown.period", "31m", "between 0s and 30m"),
    ("lantern-scaling", "spec.optimizerConfiguration", {"params": [{"minReplicas": 1, "maxReplicas": 1}]}, "not both"),
    ("lantern-scaling", "spec.policyRef.name", "", "must name an AutoscalingPolicy"),
    ("lantern-scaling", "spec.scalingConfiguration.minReplicas", 9, "minReplicas must not be greater"),
    ("lantern-scaling", "spec.scalingConfiguration.target", ..., "target must be set"),
    ("lantern-scaling", "spec.scalingConfiguration.target.targetRef.kind", "Deployment", "must be ModelInfer"),
    ("lantern-serving", "spec.template.roles.0.name", "decode", "roles name must be unique"),
    ("lantern-serving", "spec.template.roles.1.workerTemplate", ..., "workerTemplate must be set"),
    ("lantern-serving", "spec.template.roles.0.minReplicas", 2, "minReplicas must not be greater than replicas"),
    ("lantern-serving", "spec.rolloutStrategy.rollingUpdateConfiguration.maxUnavailable", "half", "percentage"),
    ("lantern-serving", "spec.rolloutStrategy.rollingUpdateConfiguration.maxUnavailable", "0%", "cannot both be 0"),
    (
        "lantern-serving",
        "spec.template.roles.0.entryTemplate.spec.containers.0.imagePullPolice",
        "Always",
        "imagePullPolice",
    ),
    ("lantern-pd", "spec.workloadPort", ..., "spec.workloadPort: Required value"),
    ("lantern-pd", "spec.workloadPort.port", 70000, "spec.workloadPort.port"),
    ("lantern-pd", "spec.trafficPolicy.timeout", "-5s", "must not be negative"),
    ("lantern", "spec.rules.0.targetModels", [], "spec.rules[0].targetModels"),
    ("lantern", "spec.rules.0.targetModels.0.weight", 0, "weight above 0"),
    ("lantern", "spec.loraAdapters", [f"a{n}" for n in range(11)], "spec.loraAdapters"),
    ("version", "spec.workers", [], "spec.workers"),
]


@pytest.mark.parametrize(("name", "place", "value", "text"), REFUSED)
def test_a_bad_manifest_is_refused_by_the_schema_alone(
    control_plane: ControlPlane, name: str, place: str, value: Any, text: str
):
    manifest = damaged(name, place, value)
    refused = kubectl(
        control_plane, "create", "--dry-run=server", "--validate=strict", "-n", "default", "-f", "-", manifest=manifest
    )
    assert refused.returncode != 0, refused.stdout
    assert text in refused.stderr
    assert validate(manifest) != [], "what the schema refuses, libs/api refuses"


def test_neither_a_name_nor_adapters_is_refused(control_plane: ControlPlane):
    manifest = damaged("lantern", "spec.modelName", "")
    manifest["spec"]["loraAdapters"] = []
    refused = kubectl(control_plane, "create", "--dry-run=server", "-n", "default", "-f", "-", manifest=manifest)
    assert "ModelName and LoraAdapters cannot both be empty" in refused.stderr


@pytest.mark.parametrize(
    ("name", "place", "value", "text"),
    [
        ("version", "spec.modelURI", "hf://example-org/other", "a ModelVersion cannot be changed"),
        ("lantern", "spec.modelName", "other", "modelName is immutable"),
    ],
)
def test_what_is_immutable_stays(
    control_plane: ControlPlane, namespace: str, name: str, place: str, value: Any, text: str
):
    kubectl(control_plane, "apply", "-n", namespace, "-f", "-", manifest=DOCUMENTS[name])
    refused = kubectl(control_plane, "apply", "-n", namespace, "-f", "-", manifest=damaged(name, place, value))
    assert refused.returncode != 0
    assert text in refused.stderr


def test_a_modelinfer_scales_through_its_subresource(control_plane: ControlPlane, namespace: str):
    kubectl(control_plane, "apply", "-n", namespace, "-f", "-", manifest=DOCUMENTS["lantern-serving"])
    scaled = kubectl(control_plane, "scale", "-n", namespace, "modelinfer/lantern-serving", "--replicas=5")
    assert scaled.returncode == 0, scaled.stderr
    got = kubectl(control_plane, "get", "-n", namespace, "mi", "lantern-serving", "-o", "jsonpath={.spec.replicas}")
    assert got.stdout == "5"


def test_all_kinds_are_found_by_category_and_short_name(control_plane: ControlPlane, namespace: str):
    for name in ("harbor-24b", "version", "queue-depth", "lantern-scaling", "lantern-pd", "lantern"):
        kubectl(control_plane, "apply", "-n", namespace, "-f", "-", manifest=DOCUMENTS[name])
    listed = kubectl(control_plane, "get", "-n", namespace, "matrixinfer", "-o", "name")
    assert len(listed.stdout.split()) == 6
    for short in ("mdl", "mv", "asp", "aspb", "mi", "ms", "mr"):
        assert kubectl(control_plane, "get", "-n", namespace, short).returncode == 0
    table = kubectl(control_plane, "get", "-n", namespace, "modelservers").stdout.splitlines()
    assert table[0].split() == ["NAME", "ENGINE", "ENDPOINTS", "ACCEPTED", "AGE"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*/*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_an_example_is_taken(control_plane: ControlPlane, namespace: str, path: Path):
    """Every manifest that we tell users to apply, under strict checks for unknown fields."""
    ours = [d for d in yaml.safe_load_all(path.read_text()) if d and "matrixinfer.ai" in d["apiVersion"]]
    for document in ours:
        document["metadata"].pop("namespace", None)
        taken = kubectl(control_plane, "apply", "--validate=strict", "-n", namespace, "-f", "-", manifest=document)
        assert taken.returncode == 0, taken.stderr
