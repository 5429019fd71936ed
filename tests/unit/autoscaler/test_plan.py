"""What is written: replicas through scale, a truthful status, and nothing when nothing changed."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from matrixinfer.autoscaler.core.decide import Decision, History
from matrixinfer.autoscaler.core.recommend import Vote
from matrixinfer.autoscaler.core.signals import Signal
from matrixinfer.autoscaler.plan import plan_binding, plan_policy, unwritten
from matrixinfer.autoscaler.seen import BindingSeen, PolicySeen, Verdict
from matrixinfer.autoscaler.views import BINDINGS, INFER, POLICIES
from matrixinfer.kube.plan import EventType, Plan, Scale
from matrixinfer.kube.resource import Key

KEY = Key("ns", "b")


def verdict(
    now: datetime, *, then: int, replicas: int, value: float | None = 6.0, sentence: str = "because"
) -> Verdict:
    vote = Vote(Signal("waiting", 2, value, 1 if value is not None else 0, 0), replicas if value is not None else None)
    recommended = replicas if value is not None else None
    return Verdict(now, "m-uid", then, Decision(replicas, recommended, False, "because", (vote,), History()))


def seen(world: Any, latest: Verdict | None = None) -> BindingSeen:
    return replace(world.stores.seen(KEY), verdict=latest)


def written(plan: Plan) -> dict[str, Any]:
    (status,) = plan.status
    return dict(status.desired)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in status["conditions"] if c["type"] == kind)


def stored(world: Any, plan: Plan) -> None:
    """What the API server would hand back after this plan."""
    world.binding(status=msgspec.json.decode(msgspec.json.encode(written(plan))))


@pytest.fixture
def whole(world: Any) -> Any:
    world.policy()
    world.binding()
    world.infer(1)
    return world


def test_a_verdict_becomes_one_scale_with_its_sentence_in_status_and_event(whole: Any, now: datetime) -> None:
    plan = plan_binding(seen(whole, verdict(now, then=1, replicas=3)), now)
    assert plan.steps == (Scale(INFER, Key("ns", "m"), 3),)
    status = written(plan)
    assert (status["currentReplicas"], status["desiredReplicas"], status["mode"]) == (1, 3, "Stable")
    assert status["target"] == "m"
    assert status["lastScaleTime"] == "2026-01-01T12:00:00Z"
    assert status["recommendation"]["message"] == "because"
    assert status["recommendation"]["inputs"] == [
        {"metricName": "waiting", "value": "6", "targetValue": "2", "pods": 1, "missingPods": 0}
    ]
    assert condition(status, "Ready")["status"] == "True"
    assert [note.reason for note in plan.notes] == ["Scaled"]


def test_a_settled_target_writes_nothing_while_nothing_changes(whole: Any, now: datetime) -> None:
    stored(whole, plan_binding(seen(whole, verdict(now, then=1, replicas=1)), now))
    later = now + timedelta(minutes=10)
    assert plan_binding(seen(whole, verdict(later, then=1, replicas=1)), later).is_empty


def test_moving_numbers_renew_the_recommendation_at_most_once_a_minute(whole: Any, now: datetime) -> None:
    stored(whole, plan_binding(seen(whole, verdict(now, then=1, replicas=1)), now))
    soon, later = now + timedelta(seconds=30), now + timedelta(seconds=61)
    assert plan_binding(seen(whole, verdict(soon, then=1, replicas=1, value=7)), soon).is_empty
    renewed = plan_binding(seen(whole, verdict(later, then=1, replicas=1, value=7)), later)
    assert written(renewed)["recommendation"]["inputs"][0]["value"] == "7"


def test_replicas_that_changed_since_the_round_are_left_to_the_next_one(whole: Any, now: datetime) -> None:
    stored(whole, plan_binding(seen(whole, verdict(now, then=1, replicas=1)), now))
    whole.infer(4, existing=4)
    plan = plan_binding(seen(whole, verdict(now, then=1, replicas=2)), now)
    assert plan.steps == ()
    assert written(plan)["currentReplicas"] == 4


def test_a_verdict_about_a_namesake_is_no_verdict(whole: Any, now: datetime) -> None:
    whole.infer(1, meta={"uid": "another"})
    assert plan_binding(seen(whole, verdict(now, then=1, replicas=3)), now).is_empty


def test_before_the_first_round_the_status_stays_as_it_is(whole: Any, now: datetime) -> None:
    assert plan_binding(seen(whole), now).is_empty


def test_a_dry_run_only_says(world: Any, now: datetime) -> None:
    world.policy(dryRun=True)
    world.binding()
    world.infer(1)
    plan = plan_binding(seen(world, verdict(now, then=1, replicas=3)), now)
    assert plan.steps == ()
    assert (written(plan)["mode"], written(plan)["desiredReplicas"]) == ("DryRun", 3)
    assert condition(written(plan), "Ready")["reason"] == "DryRun"


def test_unknown_metrics_are_said(whole: Any, now: datetime) -> None:
    status = written(plan_binding(seen(whole, verdict(now, then=1, replicas=1, value=None)), now))
    assert condition(status, "Ready")["reason"] == "MetricsUnknown"
    assert "inputs" not in status["recommendation"] or status["recommendation"]["inputs"] == []


def scaling(**target: Any) -> dict[str, Any]:
    return {"scalingConfiguration": {"minReplicas": 1, "maxReplicas": 2, **({"target": target} if target else {})}}


@pytest.mark.parametrize(
    ("spec", "reason", "found"),
    [
        (scaling(), "NoTarget", "False"),
        (scaling(targetRef={"kind": "Job", "name": "m"}), "TargetKind", "False"),
        (scaling(targetRef={"name": "x"}), "TargetNotFound", "False"),
        (scaling(targetRef={"name": "m"}, role="ghost"), "RoleNotFound", "True"),
        ({"optimizerConfiguration": {"params": [{"minReplicas": 1, "maxReplicas": 2}] * 2}}, "SeveralTargets", None),
        ({"optimizerConfiguration": {"params": [{"minReplicas": 1, "maxReplicas": 2}]}}, "NoTarget", "False"),
    ],
)
def test_what_cannot_be_decided_says_why_once(
    world: Any, now: datetime, spec: dict[str, Any], reason: str, found: str | None
) -> None:
    world.policy()
    world.infer(1)
    whole_spec = {"policyRef": {"name": "p"}, **spec}
    world.binding(spec=whole_spec)
    plan = plan_binding(seen(world), now)
    status = written(plan)
    assert condition(status, "Ready")["reason"] == reason
    assert [note.type for note in plan.notes] == [EventType.WARNING]
    if found is not None:
        assert condition(status, "TargetFound")["status"] == found
    world.binding(spec=whole_spec, status=msgspec.json.decode(msgspec.json.encode(status)))
    assert plan_binding(seen(world), now + timedelta(hours=1)).is_empty


def test_a_missing_policy_is_said(world: Any, now: datetime) -> None:
    world.binding()
    world.infer(1)
    assert condition(written(plan_binding(seen(world), now)), "Ready")["reason"] == "PolicyNotFound"


def test_a_binding_that_is_going_is_left_alone(whole: Any, now: datetime) -> None:
    whole.binding(meta={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert plan_binding(seen(whole, verdict(now, then=1, replicas=3)), now).is_empty


def test_a_refused_write_is_in_the_status(whole: Any, now: datetime) -> None:
    status = unwritten(seen(whole), "scale ModelInfer ns/m failed: forbidden", now)
    assert condition(dict(status.desired), "Ready")["message"] == "scale ModelInfer ns/m failed: forbidden"


def test_a_policy_says_who_uses_it_and_is_then_quiet(world: Any, now: datetime) -> None:
    world.policy()
    policy = world.stores.policies.get(Key("ns", "p"))
    status = written(plan_policy(PolicySeen(policy, 2), now))
    assert (status["bindings"], status["metrics"]) == (2, "matrixinfer:num_requests_waiting")
    manifest = {"metadata": {"name": "p", "generation": 1}, "spec": policy.spec.to_manifest(), "status": status}
    again = POLICIES.decode(msgspec.json.encode({"kind": "AutoscalingPolicy", **manifest}))
    assert plan_policy(PolicySeen(again, 2), now + timedelta(hours=1)).is_empty


def test_projections_survive_what_others_may_write() -> None:
    binding = BINDINGS.decode(
        b'{"metadata":{"name":"b"},"spec":{"policyRef":{},"unknown":1,"scalingConfiguration":'
        b'{"minReplicas":0,"maxReplicas":1}}}'
    )
    assert binding.spec.policy_ref.name == ""
