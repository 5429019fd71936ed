"""What the status of a ModelVersion says of a download: true, complete, and never a step back."""

from datetime import UTC, datetime, timedelta
from typing import Any

from matrixinfer.api.v1alpha1.modelversion import ModelVersionStatus
from matrixinfer.downloader.core.status import Report, next_status, sentence

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
RUNNING = Report(pod="p-0", revision="c0ffee", total_bytes=200, file_count=3, done_bytes=50, bytes_per_second=10)
DONE = Report(pod="p-0", revision="c0ffee", total_bytes=200, file_count=3, done_bytes=200, digest=DIGEST)
FAILED = Report(pod="p-0", cause="AccessDenied", message="the store refused the request")


def told(report: Report, before: dict[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any] | None:
    return next_status(ModelVersionStatus.model_validate(before or {}), 4, report, now)


def condition(status: dict[str, Any] | None, type_: str) -> dict[str, Any]:
    assert status is not None
    (found,) = [c for c in status["conditions"] if c["type"] == type_]
    return found


def test_a_running_download_is_resolved_and_not_yet_available() -> None:
    status = told(RUNNING)
    assert condition(status, "Resolved")["status"] == "True"
    assert condition(status, "Available")["status"] == "False"
    assert condition(status, "Available")["reason"] == "Downloading"
    assert "25 %" in condition(status, "Available")["message"]
    assert status is not None
    assert status["progress"] == {"bytes": 50, "percent": 25, "bytesPerSecond": 10}
    assert (status["resolvedRevision"], status["totalBytes"], status["fileCount"]) == ("c0ffee", 200, 3)
    assert "digest" not in status


def test_a_finished_download_is_available_with_its_digest() -> None:
    status = told(DONE)
    assert status is not None
    assert condition(status, "Available")["status"] == "True"
    assert (status["digest"], status["shortDigest"], status["size"]) == (DIGEST, "ab" * 6, "200 B")
    assert status["progress"]["percent"] == 100


def test_a_source_that_cannot_be_listed_is_neither() -> None:
    status = told(FAILED)
    assert condition(status, "Resolved")["reason"] == "AccessDenied"
    assert condition(status, "Available")["message"] == "p-0: the store refused the request"


def test_a_download_that_fails_later_stays_resolved() -> None:
    report = Report(revision="r", total_bytes=9, file_count=1, cause="NoSpace", message="the volume is full")
    status = told(report)
    assert condition(status, "Resolved")["status"] == "True"
    assert condition(status, "Available")["reason"] == "NoSpace"


def test_a_version_that_was_verified_once_is_never_made_unavailable() -> None:
    verified = told(DONE)
    assert told(RUNNING, verified) is None
    assert told(FAILED, verified) is None
    assert told(DONE, verified) is None


def test_a_failed_version_recovers() -> None:
    assert condition(told(DONE, told(FAILED)), "Available")["status"] == "True"


def test_before_anything_is_known_nothing_is_said() -> None:
    assert told(Report(pod="p-0")) is None


def test_what_an_earlier_process_found_out_is_not_lost_by_a_failure() -> None:
    status = told(FAILED, told(RUNNING))
    assert status is not None
    assert (status["resolvedRevision"], status["totalBytes"], status["fileCount"]) == ("c0ffee", 200, 3)


def test_conditions_of_others_are_not_touched_and_not_claimed() -> None:
    active = {"type": "Active", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "Serving"}
    status = told(RUNNING, {"conditions": [active], "modelInferName": "x", "observedGeneration": 4})
    assert status is not None
    assert {c["type"] for c in status["conditions"]} == {"Resolved", "Available"}
    assert "modelInferName" not in status
    assert "observedGeneration" not in status


def test_the_transition_time_moves_only_with_the_status() -> None:
    later = told(RUNNING, told(RUNNING), NOW + timedelta(hours=1))
    assert condition(later, "Available")["lastTransitionTime"] == "2026-11-24T12:00:00Z"
    assert condition(told(DONE, later, NOW + timedelta(hours=2)), "Available")["lastTransitionTime"] == (
        "2026-11-24T14:00:00Z"
    )


def test_every_condition_carries_the_generation_it_speaks_of() -> None:
    assert condition(told(RUNNING), "Available")["observedGeneration"] == 4


def test_the_sentence_says_how_long_it_takes_only_when_something_moves() -> None:
    assert sentence(RUNNING) == "50 B of 200 B (25 %), 10 B/s, 15 s left"
    assert sentence(Report(total_bytes=200, file_count=1, done_bytes=50)) == "50 B of 200 B (25 %)"


def test_an_empty_model_is_whole() -> None:
    assert "(100 %)" in sentence(Report(file_count=1))
