"""What our kinds name, and how absence is known."""

from typing import Any

from matrixinfer.kube.resource import Key, Resource
from matrixinfer.testkit import builders
from matrixinfer.testkit.kinds import KindSpec
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.view import View
from matrixinfer.webhook.references import Reference, References, references_of

SERVERS = Resource("networking.matrixinfer.ai", "v1alpha1", "modelservers", "ModelServer")


def named(kind: str, spec: dict[str, Any]) -> dict[str, str]:
    found = references_of({"kind": kind, "spec": spec}, "ns")
    return {reference.path: f"{reference.resource.kind} {reference.key}" for reference in found}


def test_a_route_names_its_targets_and_fallbacks() -> None:
    rules = [{"targetModels": [{"modelServerName": "a"}], "fallbacks": [{"modelServerName": "b"}]}]
    assert named("ModelRoute", {"rules": rules}) == {
        "spec.rules[0].targetModels[0].modelServerName": "ModelServer ns/a",
        "spec.rules[0].fallbacks[0].modelServerName": "ModelServer ns/b",
    }


def test_a_binding_names_its_policy_and_targets() -> None:
    target = {"targetRef": {"kind": "ModelInfer", "name": "m"}}
    assert named(
        "AutoscalingPolicyBinding", {"policyRef": {"name": "p"}, "scalingConfiguration": {"target": target}}
    ) == {
        "spec.policyRef.name": "AutoscalingPolicy ns/p",
        "spec.scalingConfiguration.target.targetRef.name": "ModelInfer ns/m",
    }
    params = {
        "params": [{"target": {"targetRef": {"name": "m"}}}, {"target": {"targetRef": {"kind": "X", "name": "y"}}}]
    }
    assert named("AutoscalingPolicyBinding", {"policyRef": {"name": "p"}, "optimizerConfiguration": params}) == {
        "spec.policyRef.name": "AutoscalingPolicy ns/p",
        "spec.optimizerConfiguration.params[0].target.targetRef.name": "ModelInfer ns/m",
    }


def test_a_model_names_the_versions_it_pins() -> None:
    assert named("Model", {"backends": [{"name": "a"}, {"name": "b", "versionName": "v"}]}) == {
        "spec.backends[1].versionName": "ModelVersion ns/v"
    }


def test_other_kinds_name_nothing() -> None:
    assert named("ModelServer", {}) == {}


def test_existence_is_known_from_the_watch_and_assumed_without_one() -> None:
    api = MemoryApi()
    wanted = Reference("p", SERVERS, Key("default", "s"))
    assert References.declared(View(api)).exist(wanted) is False
    api.register(KindSpec(SERVERS))
    api.create(SERVERS, builders.custom(SERVERS, "s", spec={}))
    assert References.declared(View(api)).exist(wanted)
    assert References({}).exist(wanted)
