"""The chassis as a real process: its log lines, its signals, its exit codes, its probe."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVICE = """
import asyncio
from pydantic_settings import SettingsConfigDict
from matrixinfer.service.lifecycle import Lifecycle, run_from_environment
from matrixinfer.service.settings import ServiceSettings

class RelaySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_RELAY_")
    stubborn: bool = False

async def main(lifecycle: Lifecycle, settings: RelaySettings) -> None:
    lifecycle.ready_when("main", lambda: True)
    await lifecycle.stopping.wait()
    if settings.stubborn:
        await asyncio.sleep(600)

run_from_environment("relay", RelaySettings, main)
"""

Start = Callable[..., "Relay"]


class Relay:
    """One running process and the log lines it has written so far."""

    def __init__(self, script: Path, environ: dict[str, str]) -> None:
        defaults = {"MATRIXINFER_RELAY_ADMIN_HOST": "127.0.0.1", "MATRIXINFER_RELAY_ADMIN_PORT": "0"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **defaults, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Unbuffered, so that select sees every line that is still to be read.
            bufsize=0,
        )
        self.lines: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        """Read lines until one has this event, at most 30 s each."""
        assert self.process.stdout is not None
        while True:
            assert select.select([self.process.stdout], [], [], 30)[0], "no log line within 30 s"
            line = self.process.stdout.readline()
            assert line, f"the log ended before {event}: {self.lines}"
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    script = tmp_path / "relay.py"
    script.write_text(SERVICE)
    running: list[Relay] = []

    def _start(**environ: str) -> Relay:
        running.append(Relay(script, environ))
        return running[-1]

    yield _start
    for relay in running:
        relay.process.kill()
        relay.process.communicate()


def probe(port: int, path: str = "readyz") -> int:
    command = [sys.executable, "-m", "matrixinfer.service.probe", path]
    return subprocess.run(
        command, env={**os.environ, "MATRIXINFER_RELAY_ADMIN_PORT": str(port)}, stdout=subprocess.DEVNULL, check=False
    ).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_and_the_log_tells_the_story(start: Start, number: signal.Signals) -> None:
    relay = start()
    port = relay.until("admin_listening")["port"]
    assert probe(port) == 0
    relay.process.send_signal(number)
    stopped = relay.until("service_stopped")
    assert relay.process.wait(30) == 0
    assert stopped["code"] == 0
    assert [line["event"] for line in relay.lines] == [
        "service_started",
        "admin_listening",
        "stopping",
        "service_stopped",
    ]
    assert all(line["service"] == "relay" for line in relay.lines)
    assert probe(port) == 1


def test_work_that_does_not_end_is_cut_and_the_code_says_so(start: Start) -> None:
    relay = start(MATRIXINFER_RELAY_STUBBORN="true", MATRIXINFER_RELAY_DRAIN_SECONDS="0.05")
    relay.until("admin_listening")
    relay.process.terminate()
    relay.until("drain_cut_short")
    assert relay.process.wait(30) == 4


def test_a_second_signal_ends_a_long_drain(start: Start) -> None:
    relay = start(MATRIXINFER_RELAY_STUBBORN="true", MATRIXINFER_RELAY_DRAIN_SECONDS="600")
    relay.until("admin_listening")
    relay.process.terminate()
    relay.until("stopping")
    relay.process.terminate()
    assert relay.until("drain_cut_short")["hurried"] is True
    assert relay.process.wait(30) == 4


def test_bad_settings_end_it_with_code_2_before_anything_starts(start: Start) -> None:
    relay = start(MATRIXINFER_RELAY_ADMIN_PORT="ninety")
    refused = relay.until("settings_refused")
    assert "MATRIXINFER_RELAY_ADMIN_PORT" in refused["reason"]
    assert relay.process.wait(30) == 2


def test_stacks_are_written_on_demand_while_it_runs_on(start: Start) -> None:
    relay = start()
    relay.until("admin_listening")
    relay.process.send_signal(signal.SIGUSR1)
    assert relay.process.stderr is not None
    assert b"most recent call first" in relay.process.stderr.readline()
    relay.process.terminate()
    assert relay.process.wait(30) == 0
