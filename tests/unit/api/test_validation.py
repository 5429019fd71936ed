"""Each rule by one manifest that breaks it: the error names the field, and says what would be right."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.api.v1alpha1.schema import TYPES
from matrixinfer.api.v1alpha1.validation import validate, validate_deletion, warnings

ROOT = Path(__file__).parents[3]
DOCUMENTS = {
    document["metadata"]["name"]: document
    for path in sorted((ROOT / "tests/data/manifests").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
VERSION = {
    "apiVersion": "registry.matrixinfer.ai/v1alpha1",
    "kind": "ModelVersion",
    "metadata": {"name": "v"},
    "spec": {
        "modelName": "m",
        "backendName": "b",
        "servedName": "m",
        "type": "vLLM",
        "modelURI": "hf://a/b",
        "workers": [{"image": "e:1"}],
    },
}


def broken(name: str, place: str, value: Any) -> dict[str, Any]:
    """A valid manifest with one place changed; `...` removes it. `a.0.b` goes through lists by index."""
    made = deepcopy(DOCUMENTS[name])
    *steps, last = place.split(".")
    inner: Any = made
    for step in steps:
        inner = inner[int(step)] if isinstance(inner, list) else inner.setdefault(step, {})
    if isinstance(inner, list):
        inner[int(last)] = value
    elif value is ...:
        inner.pop(last)
    else:
        inner[last] = value
    return made


MODEL, POLICY_MODEL, COST_MODEL = "harbor-24b", "lantern-8b", "mosaic"
POLICY, BINDING, OPTIMIZER = "queue-depth", "lantern-scaling", "lantern-mixed-gpus"
INFER, SERVER, ROUTE = "lantern-serving", "lantern-pd", "lantern"
WORKER = {"image": "e:1"}
ADAPTERS = [f"a{n}" for n in range(11)]
UPDATE = "spec.rolloutStrategy.rollingUpdateConfiguration"
TARGET = "spec.scalingConfiguration.target"

BROKEN = [
    # identity and shape
    (MODEL, "kind", "Modle", "kind", "not one of our kinds"),
    (MODEL, "apiVersion", "v1", "apiVersion", "registry.matrixinfer.ai/v1alpha1"),
    (MODEL, "spec", ..., "spec", "missing"),
    (MODEL, "spec.backends", [], "spec.backends", "at least 1 element"),
    (MODEL, "spec.backends.1.name", "agg", "spec.backends[1].name", "twice"),
    (MODEL, "spec.backends.0.name", "Agg", "spec.backends[0].name", "lower-case"),
    (MODEL, "spec.backends.0.type", "VLLM", "spec.backends[0].type", "did you mean 'vLLM'"),
    (MODEL, "spec.backends.0.modelURI", "ftp://x", "spec.backends[0].modelURI", "hf://"),
    (MODEL, "spec.backends.0.cacheURI", "s3://x", "spec.backends[0].cacheURI", "hostpath://"),
    (MODEL, "spec.backends.0.routeWeight", 101, "spec.backends[0].routeWeight", "from 0 to 100"),
    (MODEL, "spec.backends.0.routeWeight", "80", "spec.backends[0].routeWeight", "remove the quotes: 80"),
    (MODEL, "spec.backends.0.minReplicas", ..., "spec.backends[0].minReplicas", "missing"),
    (MODEL, "spec.backends.0.minReplicas", -1, "spec.backends[0].minReplicas", "at least 0"),
    (MODEL, "spec.backends.0.maxReplicas", 0, "spec.backends[0].maxReplicas", "at least 1"),
    (MODEL, "spec.backends.0.maxReplicas", 2**40, "spec.backends[0].maxReplicas", "at most 1000000"),
    (MODEL, "spec.backends.0.workers", None, "spec.backends[0].workers", "not null"),
    (MODEL, "spec.backends.0.env.0.name", 5, "spec.backends[0].env[0].name", 'put it in quotes: "5"'),
    (MODEL, "spec.name", "has space", "spec.name", "use letters"),
    (MODEL, "spec.name", "a" * 257, "spec.name", "at most 256"),
    # Model
    (MODEL, "spec.backends.0.name", "a" * 48, "spec.backends[0].name", "no room"),
    (MODEL, "spec.backends.0.minReplicas", 3, "spec.backends[0].minReplicas", "greater than maxReplicas"),
    (MODEL, "spec.backends.0.type", "MindIE", "spec.backends[0].type", "not supported yet"),
    (MODEL, "spec.backends.0.workers", [WORKER, WORKER], "spec.backends[0].workers", "exactly one worker"),
    (MODEL, "spec.backends.0.workers.0.type", "decode", "spec.backends[0].workers[0].type", "write server"),
    (MODEL, "spec.backends.0.workers.0.image", "a b", "spec.backends[0].workers[0].image", "no spaces"),
    (MODEL, "spec.backends.0.workers.0.image", "  ", "spec.backends[0].workers[0].image", "no spaces"),
    (MODEL, "spec.backends.0.workers.0.config", "x", "spec.backends[0].workers[0].config", "engine flags"),
    (
        MODEL,
        "spec.backends.0.workers.0.nodeSelector",
        {"a": "b c"},
        "spec.backends[0].workers[0].nodeSelector.a",
        "label",
    ),
    (MODEL, "spec.backends.1.workers.0.type", "server", "spec.backends[1].workers[0].type", "prefill or decode"),
    (MODEL, "spec.backends.1.workers.0.type", "decode", "spec.backends[1].workers", "one prefill worker"),
    (MODEL, "spec.backends.0.scalingCost", 5, "spec.backends[0].scalingCost", "without spec.autoscalingPolicy"),
    (MODEL, "spec.costExpansionRatePercent", 5, "spec.costExpansionRatePercent", "without spec.autoscalingPolicy"),
    (MODEL, "spec.backends.0.scaleToZeroGracePeriod", "5s", "spec.backends[0].scaleToZeroGracePeriod", "without an"),
    (MODEL, "spec.modelMatch.headers", {"x": {"regex": "("}}, "spec.modelMatch.headers.x.regex", "regular expression"),
    (MODEL, "spec.backends.0.rollout", {"strategy": "Canary"}, "spec.backends[0].rollout.steps", "at least one step"),
    (MODEL, "spec.backends.0.rollout", {"steps": [{"weight": 5}]}, "spec.backends[0].rollout.steps", "Canary"),
    (
        MODEL,
        "spec.backends.0.rollout",
        {"strategy": "Canary", "steps": [{"weight": 50}, {"weight": 10}]},
        "spec.backends[0].rollout.steps[1].weight",
        "weights rise",
    ),
    (POLICY_MODEL, "spec.backends.0.routeWeight", 0, "spec.backends[0].routeWeight", "raise one"),
    (COST_MODEL, "spec.backends.0.scalingCost", 0, "spec.backends[0].scalingCost", "at least 1"),
    (COST_MODEL, "spec.backends.0.maxReplicas", 1_000_000, "spec.backends", "exceeds 1000000"),
    (COST_MODEL, "spec.costExpansionRatePercent", 1001, "spec.costExpansionRatePercent", "at most 1000"),
    (
        COST_MODEL,
        "spec.backends.0.scaleToZeroGracePeriod",
        "31m",
        "spec.backends[0].scaleToZeroGracePeriod",
        "exceed 30m",
    ),
    (
        COST_MODEL,
        "spec.backends.0.scaleToZeroGracePeriod",
        "-1s",
        "spec.backends[0].scaleToZeroGracePeriod",
        "negative",
    ),
    (COST_MODEL, "spec.backends.0.scaleToZeroGracePeriod", "soon", "spec.backends[0].scaleToZeroGracePeriod", "30s"),
    (
        COST_MODEL,
        "spec.backends.0.autoscalingPolicy",
        {"metrics": [{"metricName": "a", "targetValue": 1}]},
        "spec.autoscalingPolicy",
        "keep the policy of the Model",
    ),
    (
        POLICY_MODEL,
        "spec.backends.0.autoscalingPolicy.metrics.0.targetValue",
        0,
        "spec.backends[0].autoscalingPolicy.metrics[0].targetValue",
        "greater than 0",
    ),
    # AutoscalingPolicy
    (POLICY, "spec.metrics.0.targetValue", "-1", "spec.metrics[0].targetValue", "greater than 0"),
    (POLICY, "spec.metrics.0.targetValue", 0.5, "spec.metrics[0].targetValue", 'put it in quotes: "0.5"'),
    (POLICY, "spec.metrics.0.targetValue", "5x", "spec.metrics[0].targetValue", "quantity"),
    (POLICY, "spec.metrics.0.targetValue", True, "spec.metrics[0].targetValue", "true"),
    (POLICY, "spec.metrics.0.metricName", "", "spec.metrics[0].metricName", "empty"),
    (
        POLICY,
        "spec.metrics.1.metricName",
        "matrixinfer:num_requests_waiting",
        "spec.metrics[1].metricName",
        "twice",
    ),
    (POLICY, "spec.metrics.0.source", "Prometheus", "spec.metrics[0].prometheus", "missing"),
    (POLICY, "spec.behavior.scaleDown.period", "31m", "spec.behavior.scaleDown.period", "30m"),
    (POLICY, "spec.behavior.scaleDown.stabilizationWindow", "1h", "spec.behavior.scaleDown.stabilizationWindow", "30m"),
    (POLICY, "spec.behavior.scaleUp.stablePolicy.period", "-1s", "spec.behavior.scaleUp.stablePolicy.period", "neg"),
    (POLICY, "spec.behavior.scaleUp.panicPolicy.period", "2h", "spec.behavior.scaleUp.panicPolicy.period", "30m"),
    (POLICY, "spec.behavior.scaleUp.panicPolicy.period", ..., "spec.behavior.scaleUp.panicPolicy.period", "missing"),
    (
        POLICY,
        "spec.behavior.scaleUp.panicPolicy.panicModeHold",
        "2h",
        "spec.behavior.scaleUp.panicPolicy.panicModeHold",
        "30m",
    ),
    (POLICY, "spec.scaleToZero", {"idleWindow": "-1m"}, "spec.scaleToZero.idleWindow", "negative"),
    # AutoscalingPolicyBinding
    (BINDING, "spec.policyRef.name", "", "spec.policyRef.name", "AutoscalingPolicy"),
    (BINDING, "spec.scalingConfiguration", ..., "spec.scalingConfiguration", "or optimizerConfiguration"),
    (BINDING, "spec.scalingConfiguration.minReplicas", 9, "spec.scalingConfiguration.minReplicas", "9 > 8"),
    (BINDING, TARGET, ..., TARGET, "targetRef"),
    (BINDING, f"{TARGET}.targetRef.kind", "Deployment", f"{TARGET}.targetRef.kind", "write ModelInfer"),
    (BINDING, f"{TARGET}.targetRef.name", ..., f"{TARGET}.targetRef.name", "missing"),
    (BINDING, f"{TARGET}.metricEndpoint.port", 0, f"{TARGET}.metricEndpoint.port", "1 to 65535"),
    (BINDING, f"{TARGET}.metricEndpoint.uri", "metrics", f"{TARGET}.metricEndpoint.uri", "begin with '/'"),
    (BINDING, f"{TARGET}.additionalMatchLabels", {"a b": "c"}, f'{TARGET}.additionalMatchLabels["a b"]', "label key"),
    (
        BINDING,
        "spec.scalingConfiguration.ratio",
        {"numeratorRole": "a", "denominatorRole": "a", "minPercent": 1, "maxPercent": 2},
        "spec.scalingConfiguration.ratio.denominatorRole",
        "two different roles",
    ),
    (
        BINDING,
        "spec.scalingConfiguration.ratio",
        {"numeratorRole": "a", "denominatorRole": "b", "minPercent": 3, "maxPercent": 2},
        "spec.scalingConfiguration.ratio.minPercent",
        "3 > 2",
    ),
    (OPTIMIZER, "spec.optimizerConfiguration.params", [], "spec.optimizerConfiguration.params", "at least 1"),
    (
        OPTIMIZER,
        "spec.optimizerConfiguration.params.0.minReplicas",
        5,
        "spec.optimizerConfiguration.params[0].minReplicas",
        "5 > 4",
    ),
    (
        OPTIMIZER,
        "spec.scalingConfiguration",
        {"minReplicas": 1, "maxReplicas": 1, "target": {"targetRef": {"name": "x"}}},
        "spec.scalingConfiguration",
        "keep one of the two",
    ),
    # ModelInfer
    (INFER, "metadata.name", "a" * 54, "metadata.name", "63 are allowed"),
    (INFER, "spec.replicas", -1, "spec.replicas", "at least 0"),
    (INFER, "spec.recoveryPolicy", "InferGroupRestart", "spec.recoveryPolicy", "InferGroupRecreate"),
    (INFER, "spec.template.roles", [], "spec.template.roles", "at least 1"),
    (INFER, "spec.template.roles.0.name", "decode", "spec.template.roles[1].name", "twice"),
    (INFER, "spec.template.roles.0.name", "Prefill", "spec.template.roles[0].name", "lower-case"),
    (INFER, "spec.template.roles.0.name", "averylongrolename", "spec.template.roles[0].name", "at most 12"),
    (INFER, "spec.template.roles.0.replicas", -1, "spec.template.roles[0].replicas", "at least 0"),
    (INFER, "spec.template.roles.0.minReplicas", 2, "spec.template.roles[0].minReplicas", "2 > 1"),
    (
        INFER,
        "spec.template.roles.1.workerTemplate",
        ...,
        "spec.template.roles[1].workerTemplate",
        "workerReplicas is 1",
    ),
    (
        INFER,
        "spec.template.roles.0.entryTemplate.spec.containers",
        [],
        "spec.template.roles[0].entryTemplate.spec.containers",
        "at least 1",
    ),
    (
        INFER,
        "spec.template.roles.0.entryTemplate.spec.containers.0.image",
        "a b",
        "spec.template.roles[0].entryTemplate.spec.containers[0].image",
        "spaces",
    ),
    (
        INFER,
        "spec.template.roles.0.entryTemplate.spec.containers.0.imagePullPolice",
        "Always",
        "spec.template.roles[0].entryTemplate.spec.containers[0].imagePullPolice",
        "did you mean 'imagePullPolicy'",
    ),
    (INFER, f"{UPDATE}.maxUnavailable", "half", f"{UPDATE}.maxUnavailable", "25%"),
    (INFER, f"{UPDATE}.maxUnavailable", "101%", f"{UPDATE}.maxUnavailable", "100%"),
    (INFER, f"{UPDATE}.maxUnavailable", -1, f"{UPDATE}.maxUnavailable", "negative"),
    (INFER, f"{UPDATE}.maxUnavailable", "", f"{UPDATE}.maxUnavailable", "count"),
    (INFER, f"{UPDATE}.maxSurge", "x", f"{UPDATE}.maxSurge", "25%"),
    (INFER, f"{UPDATE}.maxUnavailable", "10%", f"{UPDATE}.maxUnavailable", "of 3 groups, 10% is 0"),
    # ModelServer
    (SERVER, "spec.inferenceEngine", "vllm", "spec.inferenceEngine", "did you mean 'vLLM'"),
    (SERVER, "spec.workloadPort", ..., "spec.workloadPort", "missing"),
    (SERVER, "spec.workloadPort.port", 70000, "spec.workloadPort.port", "65535"),
    (SERVER, "spec.workloadSelector.matchLabels", {"a": "-"}, "spec.workloadSelector.matchLabels.a", "label value"),
    (SERVER, "spec.workloadSelector.pdGroup.groupKey", "", "spec.workloadSelector.pdGroup.groupKey", "empty"),
    (SERVER, "spec.trafficPolicy.timeout", "-1s", "spec.trafficPolicy.timeout", "negative"),
    (SERVER, "spec.trafficPolicy.timeout", "90", "spec.trafficPolicy.timeout", "duration"),
    (SERVER, "spec.kvConnector.type", "nix", "spec.kvConnector.type", "did you mean 'nixl'"),
    (SERVER, "spec.scheduler", {"plugins": [{"name": "a"}, {"name": "a"}]}, "spec.scheduler.plugins[1].name", "twice"),
    # ModelRoute
    (ROUTE, "spec.modelName", "", None, None),
    (ROUTE, "spec.loraAdapters", ADAPTERS, "spec.loraAdapters", "at most 10"),
    (ROUTE, "spec.loraAdapters", [""], "spec.loraAdapters[0]", "empty"),
    (ROUTE, "spec.rules.0.targetModels", [], "spec.rules[0].targetModels", "at least 1"),
    (
        ROUTE,
        "spec.rules.0.targetModels.0.modelServerName",
        "",
        "spec.rules[0].targetModels[0].modelServerName",
        "empty",
    ),
    (ROUTE, "spec.rules.0.targetModels.0.weight", 0, "spec.rules[0].targetModels", "weight 0"),
    (ROUTE, "spec.rules.0.modelMatch.uri", {"regex": "[a"}, "spec.rules[0].modelMatch.uri.regex", "regular expression"),
    (ROUTE, "spec.rateLimit.unit", "week", "spec.rateLimit.unit", "second"),
    (ROUTE, "spec.rateLimit.inputTokensPerUnit", 0, "spec.rateLimit.inputTokensPerUnit", "at least 1"),
    (ROUTE, "spec.rateLimit.global", {"redis": {"address": "r:0"}}, "spec.rateLimit.global.redis.address", "host:port"),
    (ROUTE, "spec.timeouts", {"idle": "-1s"}, "spec.timeouts.idle", "negative"),
]


@pytest.mark.parametrize(("name", "place", "value", "path", "text"), BROKEN)
def test_a_broken_rule_is_named(name: str, place: str, value: Any, path: str | None, text: str | None):
    found = validate(broken(name, place, value))
    if path is None:
        assert found == []
        return
    assert path in [error.path for error in found]
    sentence = next(str(error) for error in found if error.path == path and text in str(error))
    assert sentence.startswith(f"{path}: ")


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_compatibility_fixture_is_valid_and_parses(name: str):
    assert validate(DOCUMENTS[name]) == []
    typed = TYPES[DOCUMENTS[name]["kind"]].model_validate(DOCUMENTS[name])
    assert validate(typed.to_manifest()) == []


def test_neither_name_nor_adapters_is_refused():
    manifest = broken(ROUTE, "spec.modelName", "")
    manifest["spec"]["loraAdapters"] = []
    assert [error.path for error in validate(manifest)] == ["spec.modelName"]


def test_the_name_of_a_route_cannot_be_changed():
    changed = broken(ROUTE, "spec.modelName", "other")
    assert [error.path for error in validate(changed, DOCUMENTS[ROUTE])] == ["spec.modelName"]
    assert validate(DOCUMENTS[ROUTE], DOCUMENTS[ROUTE]) == []


def test_a_version_cannot_be_changed_and_the_field_is_named():
    changed = deepcopy(VERSION)
    changed["spec"]["modelURI"] = "hf://a/c"
    assert validate(VERSION) == []
    assert [error.path for error in validate(changed, VERSION)] == ["spec.modelURI"]


def test_a_version_that_serves_must_not_be_deleted():
    active = {**VERSION, "status": {"conditions": [{"type": "Active", "status": "True"}]}}
    assert [error.path for error in validate_deletion(active)] == ["metadata.name"]
    assert validate_deletion(VERSION) == []
    assert validate_deletion(DOCUMENTS[MODEL]) == []


@pytest.mark.parametrize(
    ("name", "place", "value", "path"),
    [
        (MODEL, "spec.backends.0.workers.0.pods", 0, "spec.backends[0].workers[0].pods"),
        (MODEL, "spec.backends.0.minReplicas", 1, "spec.backends[0].autoscalingPolicy"),
        (MODEL, "spec.modelMatch.uri", {"exact": "a", "regex": "b"}, "spec.modelMatch.uri"),
        (
            MODEL,
            "spec.backends.0.loraAdapters",
            [{"name": "a", "artifactURL": "s3://a"}] * 2,
            "spec.backends[0].loraAdapters[1].name",
        ),
        (COST_MODEL, "spec.autoscalingPolicy.scaleToZero", {}, "spec.backends[1].minReplicas"),
        (OPTIMIZER, "spec.optimizerConfiguration.params.1.target.targetRef.name", "lantern-large", None),
        (INFER, "spec.schedulerName", ..., "spec.schedulerName"),
        (INFER, "spec.topologySpreadConstraints", [{}], "spec.topologySpreadConstraints[0].topologyKey"),
        (SERVER, "spec.workloadSelector.matchLabels", {}, "spec.workloadSelector.matchLabels"),
        (ROUTE, "spec.rules", [], "spec.rules"),
        (ROUTE, "spec.rateLimit", {"unit": "day"}, "spec.rateLimit"),
    ],
)
def test_what_is_hardly_meant_is_told_but_allowed(name: str, place: str, value: Any, path: str | None):
    manifest = broken(name, place, value)
    assert validate(manifest) == []
    told = [notice.path for notice in warnings(manifest)]
    assert told if path is None else path in told


@pytest.mark.parametrize("value", [None, [], "x", 5, {}, {"kind": []}, {"kind": "Model"}])
def test_what_is_no_manifest_is_refused_without_raising(value: Any):
    assert validate(value) != []
    assert warnings(value) == []


def test_negative_counts_of_old_manifests_read_as_zero():
    manifest = broken(INFER, "spec.template.roles.0.workerReplicas", -1)
    manifest["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]["partition"] = -3
    assert validate(manifest) == []
    spec: Any = TYPES["ModelInfer"].model_validate(manifest)
    assert spec.spec.template.roles[0].worker_replicas == 0
    assert spec.spec.rollout_strategy.rolling_update_configuration.partition == 0
