"""What a simulated kubelet does next with a pod."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.simnodes import (
    OUTCOME,
    READY_AFTER_SECONDS,
    RESTARTS,
    STOP_SECONDS,
    Remove,
    Report,
    Wait,
    loopback_address,
    next_step,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def pod(
    status: dict[str, Any] | None = None, deleted: dict[str, Any] | None = None, **annotations: str
) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "uid": "u-1", "annotations": annotations, **(deleted or {})},
        "spec": {
            "initContainers": [{"name": "downloader", "image": "d"}],
            "containers": [{"name": "engine", "image": "e"}],
        },
        "status": status or {"phase": "Pending"},
    }


def reported(seen: dict[str, Any], now: datetime = NOW) -> dict[str, Any]:
    step = next_step(seen, now)
    assert isinstance(step, Report)
    return dict(step.status)


def ready(status: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])


def test_a_new_pod_becomes_ready_at_a_loopback_address():
    status = reported(pod())
    assert status["phase"] == "Running"
    assert ready(status)
    assert status["podIP"] == loopback_address("u-1")
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0


@pytest.mark.parametrize("outcome", ["ready", "unready", "pending", "fail", "succeed", "crash-loop", "image-error"])
def test_a_pod_that_is_as_it_should_be_is_left_alone(outcome: str):
    """Every outcome is a fixed point: one report, then silence."""
    status = reported(pod(**{OUTCOME: outcome}))
    later = NOW + timedelta(minutes=1)
    assert next_step(pod(status, **{OUTCOME: outcome}), later) is None


def test_a_pod_fails_when_its_annotation_changes():
    status = reported(pod())
    failed = reported(pod(status, **{OUTCOME: "fail"}))
    assert failed["phase"] == "Failed"
    assert failed["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert next_step(pod(failed), NOW) is None, "a failed pod never runs again"


def test_a_pod_may_take_its_time_to_become_ready():
    slow = {READY_AFTER_SECONDS: "5"}
    status = reported(pod(**slow))
    assert not ready(status)
    assert next_step(pod(status, **slow), NOW + timedelta(seconds=1)) == Wait(NOW + timedelta(seconds=5))
    assert ready(reported(pod(status, **slow), NOW + timedelta(seconds=5)))


def test_a_restart_is_reported():
    status = reported(pod())
    assert reported(pod(status, **{RESTARTS: "1"}))["containerStatuses"][0]["restartCount"] == 1


def deletion(grace: int) -> dict[str, Any]:
    end = (NOW + timedelta(seconds=grace)).isoformat()
    return {"deletionTimestamp": end, "deletionGracePeriodSeconds": grace}


def test_a_deleted_pod_ends_at_once_by_default():
    assert next_step(pod(deleted=deletion(30)), NOW) == Remove()
    assert next_step(pod(deleted=deletion(0)), NOW) == Remove()


def test_a_deleted_pod_may_take_its_time_but_never_more_than_its_grace():
    assert next_step(pod(deleted=deletion(30), **{STOP_SECONDS: "2"}), NOW) == Wait(NOW + timedelta(seconds=2))
    assert next_step(pod(deleted=deletion(5), **{STOP_SECONDS: "60"}), NOW) == Wait(NOW + timedelta(seconds=5))
    assert next_step(pod(deleted=deletion(5), **{STOP_SECONDS: "60"}), NOW + timedelta(seconds=5)) == Remove()


def test_an_unknown_outcome_is_an_error_and_not_a_ready_pod():
    with pytest.raises(ClusterError, match="explode"):
        next_step(pod(**{OUTCOME: "explode"}), NOW)


@given(st.uuids())
def test_every_address_is_a_usable_loopback_address(uid: object):
    parts = [int(part) for part in loopback_address(str(uid)).split(".")]
    assert parts[0] == 127
    assert parts[1] != 0
    assert 0 < parts[3] < 255
