"""Processes are found by who they are, never by number alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from matrixinfer.devcluster.processes import Identity, Ledger, identify, parse_record, signal_process, wait_gone

BOOT = "0b8e8f0e-0000-4000-8000-000000000000"
STAT = "123 (odd) name)) S 1 123 123 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 2500 100"


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    """A descriptor to stand for the transition lock."""
    made = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    yield made
    os.close(made)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "processes", tmp_path / "logs")


def test_a_record_names_boot_pid_and_start():
    """The command's own parentheses do not shift the fields."""
    assert parse_record(f"{BOOT}\n{STAT}\n") == Identity(BOOT, 123, 987654)


@pytest.mark.parametrize("text", ["", BOOT, f"{BOOT}\n", f"{BOOT}\n123 (cut", f"\n{STAT}", f"{BOOT}\nx (y) S 1"])
def test_an_incomplete_record_is_no_record(text: str):
    assert parse_record(text) is None


def test_the_record_is_written_before_the_program_runs(ledger: Ledger, lock: int):
    """The program sees its own record, so no program ever runs without one."""
    ledger.start("looker", ["cat", ledger.records / "looker"], lock=lock)
    found = ledger.recorded("looker")
    assert found is not None
    assert wait_gone(found, 5)
    assert parse_record(ledger.log("looker").read_text()) == found


def test_a_running_process_is_found_and_stopped(ledger: Ledger, lock: int):
    ledger.start("sleeper", ["sleep", "60"], lock=lock)
    (name,) = ledger.running()
    assert name == "sleeper"
    ledger.stop("sleeper", patience_seconds=5)
    assert ledger.running() == {}
    assert ledger.recorded("sleeper") is None


def test_a_process_that_ignores_sigterm_is_killed(ledger: Ledger, lock: int):
    ledger.start("deaf", ["sh", "-c", "trap '' TERM; echo ready; sleep 60 & wait; sleep 60"], lock=lock)
    deadline = time.monotonic() + 30
    while "ready" not in ledger.tail("deaf"):
        assert time.monotonic() < deadline
    ledger.stop("deaf", patience_seconds=0.05)
    assert ledger.running() == {}


def test_a_pid_that_belongs_to_another_process_now_is_left_alone():
    child = subprocess.Popen(["sleep", "60"])
    who = identify(child.pid)
    assert who is not None
    assert not signal_process(replace(who, started_ticks=who.started_ticks - 1), signal.SIGKILL)
    assert not signal_process(replace(who, boot=BOOT), signal.SIGKILL)
    assert child.poll() is None
    assert signal_process(who, signal.SIGKILL)
    child.wait()
    assert not signal_process(who, signal.SIGKILL)


def test_a_zombie_does_not_run():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    child.wait()


def test_a_process_whose_first_thread_has_ended_runs_until_the_last_has():
    """A server that was killed holds its port until then, though the kernel calls it a zombie already."""
    stays = "threading.Thread(target=sys.stdin.read).start()"
    code = f"import ctypes, sys, threading; {stays}; ctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        who = identify(child.pid)
        assert who is not None
        deadline = time.monotonic() + 30
        while ") Z " not in Path(f"/proc/{child.pid}/stat").read_text():
            assert time.monotonic() < deadline
        assert identify(child.pid) == who
        assert not wait_gone(who, 0)
        assert signal_process(who, signal.SIGKILL)
        assert wait_gone(who, 10)


def test_a_program_that_does_not_exist_leaves_its_reason_in_the_log(ledger: Ledger, lock: int):
    """It is recorded, then fails to become the program: it simply is not running."""
    ledger.start("absent", ["/no/such/program"], lock=lock)
    found = ledger.recorded("absent")
    assert found is not None
    assert wait_gone(found, 5)
    assert "not found" in ledger.tail("absent")
    assert ledger.running() == {}


def test_only_what_a_cluster_needs_of_the_environment_is_passed(
    ledger: Ledger, lock: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", "/somebody/elses")
    ledger.start("env", ["env"], lock=lock, env={"GIVEN": "1"})
    found = ledger.recorded("env")
    assert found is not None
    assert wait_gone(found, 5)
    text = ledger.log("env").read_text()
    assert "GIVEN=1" in text
    assert "KUBECONFIG" not in text


def test_a_process_is_waited_for_by_a_caller_with_thousands_of_open_files(ledger: Ledger, lock: int):
    """`select` refuses descriptors above 1,023."""
    ledger.start("short", ["true"], lock=lock)
    found = ledger.recorded("short")
    assert found is not None
    with ExitStack() as held:
        for _ in range(1100):
            held.callback(os.close, os.dup(lock))
        assert wait_gone(found, 5)


def test_the_lock_is_given_up_by_the_program(ledger: Ledger, lock: int):
    """Else a running component would keep every later `down` waiting."""
    ledger.start("holder", ["sh", "-c", "ls -l /proc/$$/fd"], lock=lock)
    found = ledger.recorded("holder")
    assert found is not None
    assert wait_gone(found, 5)
    assert "/lock" not in ledger.log("holder").read_text()
