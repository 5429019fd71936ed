"""Why the suite is not available yet, in words."""

from typing import Any

from matrixinfer.devcluster.suite import why_pod_unready, why_unavailable


def deployment(name: str, available: int, *, observed: int = 1) -> dict[str, Any]:
    status = {"availableReplicas": available, "updatedReplicas": available, "observedGeneration": observed}
    return {
        "metadata": {"name": name, "generation": 1},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}},
        "status": status,
    }


def pod(app: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"labels": {"app": app, "other": "x"}}, "status": status}


def test_nothing_is_said_when_all_are_available():
    assert why_unavailable([deployment("gateway", 1)], []) == ""


def test_an_empty_namespace_is_not_available():
    assert "no Deployment" in why_unavailable([], [])


def test_an_unseen_change_is_not_available():
    assert "gateway" in why_unavailable([deployment("gateway", 1, observed=0)], [])


def test_the_pods_own_reason_is_told():
    waiting = {"waiting": {"reason": "ErrImageNeverPull", "message": "no such image"}}
    pods = [
        pod("gateway", phase="Pending", containerStatuses=[{"name": "gateway", "state": waiting}]),
        pod("webhook", phase="Pending"),
    ]
    said = why_unavailable([deployment("gateway", 0), deployment("webhook", 0), deployment("autoscaler", 0)], pods)
    assert said == "gateway (gateway: ErrImageNeverPull no such image), webhook (Pending), autoscaler (no pod yet)"


def test_a_ready_pod_has_no_reason():
    assert why_pod_unready(pod("x", conditions=[{"type": "Ready", "status": "True"}])) == ""


def test_an_unscheduled_pod_says_why():
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu"}
    assert "Insufficient cpu" in why_pod_unready(pod("x", phase="Pending", conditions=[condition]))


def test_a_failed_container_tells_its_exit_code():
    ended = {"terminated": {"exitCode": 3, "message": "digest mismatch"}}
    said = why_pod_unready(pod("x", phase="Failed", initContainerStatuses=[{"name": "downloader", "state": ended}]))
    assert said == "downloader: ended with 3 digest mismatch"


def test_a_container_that_starts_is_told():
    statuses = [{"name": "engine", "state": {"running": {}}, "ready": False}]
    assert why_pod_unready(pod("x", phase="Running", containerStatuses=statuses)) == "engine is starting"


def test_a_container_that_keeps_ending_is_one_sentence_and_not_a_flicker():
    """Running, ended and backing off in turn read the same."""
    last = {"terminated": {"exitCode": 1}}
    states = [{"running": {}}, {"terminated": {"exitCode": 1}}, {"waiting": {"reason": "CrashLoopBackOff"}}]
    said = {
        why_pod_unready(
            pod(
                "x", containerStatuses=[{"name": "a", "ready": False, "restartCount": 3, "state": s, "lastState": last}]
            )
        )
        for s in states
    }
    assert said == {"a: ended with 1 and was restarted 3 times"}


def test_a_pod_that_makes_room_for_another_is_no_reason():
    leaving = pod("x", phase="Running")
    leaving["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    assert why_pod_unready(leaving) == ""
    assert why_pod_unready(pod("x", phase="Succeeded")) == ""
