"""Bytes in, bytes out: the answer is always an answer."""

import orjson
import pytest
from prometheus_client import REGISTRY

from matrixinfer.webhook.review import Question, Verdict
from matrixinfer.webhook.server import Hooks
from matrixinfer.webhook.settings import WebhookSettings

REVIEW = orjson.dumps(
    {"apiVersion": "admission.k8s.io/v1", "request": {"uid": "u", "kind": {"kind": "Model"}, "operation": "CREATE"}}
)


def counted(outcome: str, kind: str = "Model") -> float:
    labels = {"hook": "validate", "kind": kind, "outcome": outcome}
    return REGISTRY.get_sample_value("matrixinfer_webhook_reviews_total", labels) or 0.0


def hooks(verdict: Verdict | Exception) -> Hooks:
    def judge(_question: Question) -> Verdict:
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return Hooks(mutate=judge, validate=judge)


def test_an_answer_is_counted_by_its_outcome() -> None:
    before = counted("allowed")
    response = hooks(Verdict()).respond("validate", REVIEW)
    assert response.status == 200
    assert orjson.loads(response.body)["response"] == {"uid": "u", "allowed": True}
    assert counted("allowed") == before + 1


def test_what_is_no_review_is_a_bad_request() -> None:
    before = counted("malformed", "other")
    assert hooks(Verdict()).respond("validate", b"nonsense").status == 400
    assert counted("malformed", "other") == before + 1


@pytest.mark.parametrize("fault", [RuntimeError("oops"), RecursionError(), KeyError("x")])
def test_a_fault_in_a_rule_is_an_answer_too(fault: Exception) -> None:
    before = counted("failed")
    response = hooks(fault).respond("validate", REVIEW)
    body = orjson.loads(response.body)["response"]
    assert (response.status, body["allowed"], body["status"]["code"]) == (200, False, 500)
    assert counted("failed") == before + 1


def test_the_certificate_carries_the_names_of_the_service() -> None:
    settings = WebhookSettings(namespace="ns", extra_names="127.0.0.1, localhost,")
    assert settings.policy.names == ("webhook.ns.svc", "webhook.ns.svc.cluster.local", "127.0.0.1", "localhost")
