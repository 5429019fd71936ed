"""The termination message is one JSON object that the kubelet does not cut."""

import json
from pathlib import Path

from matrixinfer.downloader.core.manifest import Ready, VerifiedFile
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.termination import failure_message, success_message, write


def test_a_failure_names_cause_code_and_sentence() -> None:
    message = json.loads(failure_message("s3://b/p", DownloadError(Cause.NO_SPACE, "make it 3 GiB larger")))
    assert message == {
        "outcome": "Failed",
        "cause": "NoSpace",
        "exitCode": 12,
        "message": "make it 3 GiB larger",
        "source": "s3://b/p",
    }


def test_success_names_the_digest_and_what_other_pods_gave() -> None:
    files = (VerifiedFile("a", 3, "00" * 32),)
    ready = Ready("s3://b/p", (), (), "rev", "sha256:x", files, "2026-11-24T00:00:00+00:00")
    message = json.loads(success_message(ready, 2))
    assert (message["outcome"], message["digest"]) == ("Ready", "sha256:x")
    assert (message["totalBytes"], message["peerBytes"]) == (3, 2)


def test_a_long_message_stays_readable_for_programs() -> None:
    text = failure_message("s3://" + "x" * 5000, DownloadError(Cause.NO_SPACE, "ü" * 5000))
    assert len(text.encode()) <= 4096
    assert json.loads(text)["cause"] == "NoSpace"


def test_it_is_written_where_there_is_a_place_and_that_is_all(tmp_path: Path) -> None:
    write(tmp_path / "log", "x")
    assert (tmp_path / "log").read_text() == "x"
    write(tmp_path / "no" / "such" / "folder", "x")
