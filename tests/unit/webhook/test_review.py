"""Questions and verdicts as values: what is refused, filled in, warned of, and left alone."""

import base64
from typing import Any

import jsonpatch
import orjson
import pytest

from matrixinfer.webhook.review import MalformedReview, Verdict, answer, defaulted, parse, validated


def model(**spec: Any) -> dict[str, Any]:
    worker = {"type": "server", "image": "vllm:1"}
    backend = {
        "name": "b",
        "type": "vLLM",
        "modelURI": "hf://org/name",
        "minReplicas": 1,
        "maxReplicas": 1,
        "workers": [worker],
    }
    return {
        "apiVersion": "registry.matrixinfer.ai/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "m", "namespace": "default"},
        "spec": {"backends": [backend], **spec},
    }


def route(server: str = "s") -> dict[str, Any]:
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": "r", "namespace": "default"},
        "spec": {"modelName": "m", "rules": [{"targetModels": [{"modelServerName": server}]}]},
    }


def review(new: Any = None, old: Any = None, *, operation: str = "CREATE", **request: Any) -> bytes:
    subject = new or old or {}
    group, _, version = subject.get("apiVersion", "/").partition("/")
    body = {
        "uid": "u-1",
        "operation": operation,
        "kind": {"group": group, "version": version, "kind": subject.get("kind", "")},
        "namespace": "default",
        "userInfo": {"username": "alice"},
        "object": new,
        "oldObject": old,
        **request,
    }
    return orjson.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": body})


def judge(new: Any = None, old: Any = None, *, present: bool = True, **more: Any) -> Verdict:
    return validated(parse(review(new, old, **more)), lambda _reference: present)


def respond(verdict: Verdict, new: Any = None, **more: Any) -> dict[str, Any]:
    response: dict[str, Any] = orjson.loads(answer(parse(review(new, **more)), verdict))["response"]
    return response


def broken(**spec: Any) -> dict[str, Any]:
    manifest = model(**spec)
    manifest["spec"]["backends"][0]["minReplicas"] = 3
    return manifest


def test_a_sound_manifest_is_allowed_without_a_word() -> None:
    assert judge(model()) == Verdict()


def test_a_refusal_names_the_field_and_the_fix() -> None:
    verdict = judge(broken())
    assert not verdict.allowed
    response = respond(verdict, broken(), name="m")
    assert response["uid"] == "u-1"
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert "spec.backends[0].minReplicas" in response["status"]["message"]
    details = response["status"]["details"]
    assert (details["kind"], details["name"]) == ("Model", "m")
    assert details["causes"][0]["field"] == "spec.backends[0].minReplicas"
    assert all(error.fix for error in verdict.errors)


def test_an_update_is_judged_by_what_it_changes() -> None:
    assert judge(broken(), model(), operation="UPDATE").errors
    relabelled = broken()
    relabelled["metadata"]["labels"] = {"a": "b"}
    assert judge(relabelled, broken(), operation="UPDATE").allowed


def test_what_is_being_deleted_may_lose_its_finalizers() -> None:
    going = broken()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert judge(going, model(), operation="UPDATE").allowed


@pytest.mark.parametrize("more", [{"subResource": "status"}, {"kind": {"group": "", "kind": "Pod"}}])
def test_what_is_not_ours_is_allowed(more: dict[str, Any]) -> None:
    assert judge(broken(), **more) == Verdict()
    assert defaulted(parse(review(broken(), **more))) == Verdict()


def test_a_name_that_does_not_exist_is_a_warning() -> None:
    verdict = judge(route("elsewhere"), present=False)
    assert verdict.allowed
    (warning,) = verdict.warnings
    assert warning.startswith("spec.rules[0].targetModels[0].modelServerName: there is no ModelServer 'elsewhere'")
    assert judge(route("elsewhere"), present=True).warnings == ()


def test_warnings_are_few_short_lines() -> None:
    many = route()
    many["spec"]["rules"] = [{"targetModels": [{"modelServerName": "s" * 240}]} for _ in range(16)]
    verdict = judge(many, present=False)
    assert verdict.allowed
    assert len(verdict.warnings) == 10
    assert max(len(line) for line in verdict.warnings) <= 250


def test_a_version_that_serves_is_kept_from_users_but_not_from_the_garbage_collector() -> None:
    version = {
        "apiVersion": "registry.matrixinfer.ai/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": "v", "namespace": "default"},
        "spec": {},
        "status": {"conditions": [{"type": "Active", "status": "True"}]},
    }
    assert not judge(None, version, operation="DELETE").allowed
    collector = {"username": "system:serviceaccount:kube-system:generic-garbage-collector"}
    assert judge(None, version, operation="DELETE", userInfo=collector).allowed
    idle = {**version, "status": {}}
    assert judge(None, idle, operation="DELETE").allowed


def test_the_patch_turns_the_object_into_the_defaulted_one() -> None:
    manifest = model(autoscalingPolicy={"metrics": [{"metricName": "m", "targetValue": "1"}]})
    manifest["spec"]["backends"][0]["scalingCost"] = 1
    verdict = defaulted(parse(review(manifest)))
    response = respond(verdict)
    patch = orjson.loads(base64.b64decode(response["patch"]))
    filled = jsonpatch.apply_patch(manifest, patch)
    assert response["patchType"] == "JSONPatch"
    assert filled["spec"]["costExpansionRatePercent"] == 200
    assert filled["spec"]["backends"][0]["scaleToZeroGracePeriod"] == "30s"
    assert defaulted(parse(review(filled))) == Verdict()


def test_nothing_to_fill_in_is_no_patch() -> None:
    filled = jsonpatch.apply_patch(model(), list(defaulted(parse(review(model()))).patch))
    assert "patch" not in respond(defaulted(parse(review(filled))))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "x"}}',
        b'{"apiVersion": "admission.k8s.io/v1"}',
        b'{"apiVersion": "admission.k8s.io/v1", "request": []}',
        b'{"apiVersion": "admission.k8s.io/v1", "request": {"uid": 7}}',
    ],
)
def test_what_is_no_review_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedReview):
        parse(raw)


def test_a_failure_is_a_refusal_that_blames_us() -> None:
    response = respond(Verdict(failure="we broke"))
    assert response["status"] == {"status": "Failure", "code": 500, "reason": "InternalError", "message": "we broke"}


def test_what_is_wrong_is_refused_before_the_schema_can_answer_with_a_pattern() -> None:
    """The API server checks its schema between the two webhooks."""
    manifest = model()
    manifest["spec"]["backends"][0]["modelURI"] = "ftp://somewhere"
    (error,) = defaulted(parse(review(manifest))).errors
    assert error.path == "spec.backends[0].modelURI"
    assert "hf://" in error.fix
