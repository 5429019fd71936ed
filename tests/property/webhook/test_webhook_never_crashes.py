"""Thousands of manifests, valid, damaged and absurd: every one gets an answer, and none of them is a fault of ours."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from matrixinfer.testkit.strategies import json_values, manifests, mutations
from matrixinfer.webhook.review import defaulted, validated
from matrixinfer.webhook.server import Hooks

CRDS = sorted((Path(__file__).parents[3] / "crds").glob("*_*.yaml"))
HOOKS = Hooks(mutate=defaulted, validate=lambda question: validated(question, lambda _reference: False))

sound = st.sampled_from(CRDS).flatmap(manifests)
damaged = sound.flatmap(mutations)
absurd = st.builds(
    lambda manifest, name, value: {**manifest, name: value},
    sound,
    st.sampled_from(("spec", "metadata", "kind", "apiVersion", "status")),
    json_values(),
)
OLD = ({}, {"spec": {}}, {"spec": None}, {"kind": "ModelVersion", "spec": 1, "status": {"conditions": [7]}}, [], "x")
anything = st.one_of(sound, damaged, damaged, absurd, json_values())


def ask(hook: str, new: Any, old: Any, operation: str) -> dict[str, Any]:
    subject = new if isinstance(new, dict) and isinstance(new.get("apiVersion"), str) else {}
    group = str(subject.get("apiVersion", "registry.matrixinfer.ai/v1alpha1")).split("/")[0]
    request = {
        "uid": "u",
        "operation": operation,
        "kind": {"group": group, "kind": subject.get("kind", "Model")},
        "namespace": "default",
        "userInfo": {"username": "alice"},
        "object": new,
        "oldObject": old,
    }
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    answer = HOOKS.respond(hook, orjson.dumps(body))
    assert answer.status == 200
    assert isinstance(answer.body, bytes)
    response: dict[str, Any] = orjson.loads(answer.body)["response"]
    return response


@pytest.mark.timeout(600)
@settings(
    max_examples=2000,
    deadline=None,
    # A manifest that fails is told as it was found: shrinking objects of this size takes longer than reading one.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(anything, st.sampled_from((None, *OLD)), st.sampled_from(("CREATE", "UPDATE", "DELETE")))
def test_any_manifest_gets_an_answer_that_is_not_our_fault(new: Any, old: Any, operation: str) -> None:
    for hook in ("mutate", "validate"):
        response = ask(hook, new, old, operation)
        status = response.get("status", {})
        assert response["uid"] == "u"
        assert status.get("code") != 500, status
        if not response["allowed"]:
            assert all(cause["field"] and cause["message"] for cause in status["details"]["causes"]), status
