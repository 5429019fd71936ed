"""Whoever dies, wherever, and however many there are: the same digest in the end, and no byte twice without need."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.downloader_processes import LIMITS

SCRIPT = Path(__file__).with_name("downloader_processes.py")
MODEL = {
    "config.json": b"{}",
    "model-1.safetensors": random.Random(1).randbytes(20 * LIMITS.part_bytes + 777),
    "model-2.safetensors": random.Random(2).randbytes(7 * LIMITS.part_bytes),
    **{f"small/{index}.json": random.Random(index).randbytes(900) for index in range(10)},
}
TOTAL = sum(map(len, MODEL.values()))
# What a process may have received without having noted it: a part for each connection.
LOST_BY_A_KILL = LIMITS.connections * LIMITS.part_bytes


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    for path, content in MODEL.items():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(content)
    (tmp_path / "digests").mkdir()
    return {name: str(tmp_path / name) for name in ("source", "cache", "digests")}


def played(folders: dict[str, str], tmp_path: Path, **scenario: Any) -> dict[str, Any]:
    (tmp_path / "scenario.json").write_text(json.dumps({**folders, **scenario}))
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "scenario.json"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def digests(folders: dict[str, str]) -> set[str]:
    return {path.read_text() for path in Path(folders["digests"]).iterdir()}


def content(output: Path) -> dict[str, bytes]:
    found = (path for path in output.rglob("*") if path.is_file() and path.name != "READY")
    return {str(p.relative_to(output)): p.read_bytes() for p in found if ".matrixinfer" not in p.parts}


@pytest.fixture
def clean_digest(folders: dict[str, str], tmp_path: Path) -> str:
    played({**folders, "cache": str(tmp_path / "clean")}, tmp_path, processes=1)
    (digest,) = digests(folders)
    return digest


@pytest.mark.parametrize("plain", [False, True], ids=["cache", "plain folder"])
def test_a_hundred_kills_at_random_places_end_in_the_right_digest(
    folders: dict[str, str], tmp_path: Path, clean_digest: str, plain: bool
) -> None:
    outcome = played(folders, tmp_path, kills=100, seed=5, most_steps=60, plain=plain)
    assert outcome["codes"] == [0]
    assert outcome["kills"] >= 60
    assert digests(folders) == {clean_digest}
    where = Path(folders["cache"]) if plain else Path(folders["cache"]) / "versions" / "m"
    assert content(where) == MODEL
    finished = 100 - outcome["kills"] + 1
    assert outcome["bytes"] <= finished * TOTAL + outcome["kills"] * LOST_BY_A_KILL


def test_a_kill_costs_no_more_than_a_part_for_each_connection(folders: dict[str, str], tmp_path: Path) -> None:
    before = played(folders, tmp_path, processes=1, first_dies_at=70)
    assert before["codes"] == [-9]
    outcome = played(folders, tmp_path, processes=1)
    assert outcome["codes"] == [0]
    assert before["bytes"] + outcome["bytes"] <= TOTAL + LOST_BY_A_KILL


@pytest.mark.parametrize("processes", [2, 8])
@pytest.mark.parametrize(
    "world",
    [
        pytest.param({"nodes": 1}, id="one node"),
        pytest.param({"nodes": 8}, id="as many nodes"),
        pytest.param({"nodes": 8, "flock": "lies"}, id="locks that lie"),
        pytest.param({"nodes": 8, "flock": "lies", "clock_shift_seconds": 3600}, id="clocks an hour apart"),
    ],
)
def test_many_processes_fetch_every_byte_once(
    folders: dict[str, str], tmp_path: Path, processes: int, world: dict[str, Any]
) -> None:
    outcome = played(folders, tmp_path, processes=processes, **world)
    assert outcome == {"codes": [0] * processes, "bytes": TOTAL}
    assert len(digests(folders)) == 1
    assert content(Path(folders["cache"]) / "versions" / "m") == MODEL


@pytest.mark.parametrize("flock", ["works", "lies"])
def test_when_the_one_that_fetches_dies_another_goes_on(folders: dict[str, str], tmp_path: Path, flock: str) -> None:
    outcome = played(folders, tmp_path, processes=3, nodes=3, flock=flock, first_dies_at=60, clock_shift_seconds=3600)
    assert sorted(outcome["codes"])[-2:] == [0, 0]
    assert outcome["bytes"] <= TOTAL + LOST_BY_A_KILL
    assert content(Path(folders["cache"]) / "versions" / "m") == MODEL


def test_a_download_that_is_short_loads_nothing_that_takes_longer() -> None:
    code = "import sys, matrixinfer.downloader.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    forbidden = {"aiohttp", "awscrt", "botocore", "httpx2", "huggingface_hub", "kubernetes_asyncio"}
    assert forbidden & set(loaded) == set()
