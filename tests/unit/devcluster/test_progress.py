"""What the user reads while waiting."""

import os
import sys
from pathlib import Path

import pytest

from matrixinfer.devcluster import progress as module
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.progress import Progress


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    return []


def test_a_wait_tells_each_reason_once(said: list[str]):
    reasons = iter(["no pod", "no pod", "starting", ""])
    Progress(said.append).wait("the gateway", lambda: next(reasons), 10)
    assert [line.partition("waiting")[2] for line in said] == [" for the gateway: no pod", " for the gateway: starting"]


def test_a_wait_that_takes_long_repeats_itself(said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.0)
    reasons = iter(["no pod"] * 5 + [""])
    Progress(said.append).wait("the gateway", lambda: next(reasons), 10)
    assert len(said) == 5


def test_a_wait_ends_with_the_last_reason(said: list[str]):
    with pytest.raises(ClusterError, match="the gateway: not within 0 s; no pod"):
        Progress(said.append).wait("the gateway", lambda: "no pod", 0)


def test_a_programs_report_is_passed_on_and_its_result_returned(said: list[str], tmp_path: Path):
    script = "import sys; print('one\\ntwo'); print('working\\n\\nhard', file=sys.stderr)"
    assert Progress(said.append).run([sys.executable, "-S", "-c", script], tmp_path) == ["one", "two"]
    assert [line.partition("]")[2].strip() for line in said] == ["working", "hard"]


def test_a_program_that_fails_is_an_error_with_its_last_words(said: list[str], tmp_path: Path):
    script = "import sys; print('no space', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ClusterError, match="ended with 3; it said last: no space"):
        Progress(said.append).run([sys.executable, "-S", "-c", script], tmp_path)


def test_a_silent_program_is_spoken_for(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    """The program ends only after its silence was noticed."""
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.0)
    heard = tmp_path / "heard"
    os.mkfifo(heard)

    def listen(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            heard.write_text("go\n")

    Progress(listen).run(["sh", "-c", "read answer < heard"], tmp_path)
    assert "still at it" in said[0]
