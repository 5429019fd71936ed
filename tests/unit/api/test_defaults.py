from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.validation import validate

ROOT = Path(__file__).parents[3]
GROUP = "registry.matrixinfer.ai/v1alpha1"
METRICS = [{"metricName": "a", "targetValue": 1}]
FIXTURES = [
    d for p in sorted((ROOT / "tests/data/manifests").glob("*.yaml")) for d in yaml.safe_load_all(p.read_text())
]


def policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": "AutoscalingPolicy",
        "metadata": {"name": "p"},
        "spec": {"metrics": METRICS, **spec},
    }


@pytest.mark.parametrize("manifest", FIXTURES, ids=lambda manifest: manifest["metadata"]["name"])
def test_defaults_are_idempotent_and_valid(manifest: dict[str, Any]):
    once = with_defaults(manifest)
    assert with_defaults(once) == once
    assert validate(once) == []


def test_the_manifest_given_is_not_changed():
    manifest = policy()
    with_defaults(manifest)
    assert manifest == policy()


def test_an_absent_behavior_is_filled_in_whole():
    assert with_defaults(policy())["spec"]["behavior"] == {
        "scaleDown": {
            "instances": 0,
            "percent": 100,
            "period": "1m",
            "selectPolicy": "Or",
            "stabilizationWindow": "5m",
        },
        "scaleUp": {
            "stablePolicy": {
                "instances": 4,
                "percent": 100,
                "period": "1m",
                "selectPolicy": "Or",
                "stabilizationWindow": "0s",
            },
            "panicPolicy": {"percent": 0, "period": "0s", "panicThresholdPercent": 200, "panicModeHold": "0s"},
        },
    }


def test_a_present_scale_down_gets_the_small_defaults_and_only_its_window_from_the_rules():
    filled = with_defaults(policy(behavior={"scaleDown": {}}))["spec"]["behavior"]["scaleDown"]
    assert filled == {
        "instances": 1,
        "percent": 100,
        "period": "15s",
        "selectPolicy": "Or",
        "stabilizationWindow": "5m",
    }


def test_integer_defaults_are_integers():
    panic = with_defaults(policy(behavior={"scaleUp": {"panicPolicy": {"period": "5s"}}}))
    filled = panic["spec"]["behavior"]["scaleUp"]["panicPolicy"]
    assert (filled["percent"], filled["panicThresholdPercent"], filled["panicModeHold"]) == (1000, 200, "60s")


def test_a_model_with_a_policy_gets_grace_and_expansion():
    backend = {"name": "a", "type": "vLLM", "modelURI": "hf://a/b", "minReplicas": 0, "maxReplicas": 1, "workers": [{}]}
    spec = {"autoscalingPolicy": {"metrics": METRICS}, "backends": [backend]}
    filled = with_defaults({"apiVersion": GROUP, "kind": "Model", "metadata": {"name": "m"}, "spec": spec})["spec"]
    assert filled["costExpansionRatePercent"] == 200
    assert filled["backends"][0]["scaleToZeroGracePeriod"] == "30s"
    assert "behavior" not in filled["autoscalingPolicy"], (
        "an inline policy gets its behaviour when it becomes an object"
    )


def test_a_worker_is_one_replica_of_one_pod():
    backend = {"name": "a", "type": "vLLM", "modelURI": "hf://a/b", "minReplicas": 1, "maxReplicas": 1, "workers": [{}]}
    filled = with_defaults(
        {"apiVersion": GROUP, "kind": "Model", "metadata": {"name": "m"}, "spec": {"backends": [backend]}}
    )
    assert filled["spec"]["backends"][0]["workers"] == [{"type": "server", "replicas": 1, "pods": 1}]
    assert filled["spec"]["backends"][0]["routeWeight"] == 100


def test_nothing_is_filled_in_where_the_parent_is_absent():
    infer = {
        "apiVersion": "workload.matrixinfer.ai/v1alpha1",
        "kind": "ModelInfer",
        "metadata": {"name": "i"},
        "spec": {"template": {"roles": []}},
    }
    assert with_defaults(infer)["spec"] == {
        "replicas": 1,
        "recoveryPolicy": "RoleRecreate",
        "template": {"restartGracePeriodSeconds": 0, "roles": []},
    }


def test_null_counts_as_absent_where_there_is_a_default():
    assert with_defaults(policy(tolerancePercent=None))["spec"]["tolerancePercent"] == 10


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], {}, {"kind": "Pod"}, {"kind": "Model"}, {"kind": "Model", "spec": 3}]
)
def test_anything_else_comes_back_as_it_is(value: Any):
    assert with_defaults(value) == value
