"""What a container is limited to counts, not what its node has."""

import os
from pathlib import Path

import pytest

from matrixinfer.downloader.cores import usable_cores


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("50000 100000", 0.5), ("max 100000", None), ("99900000 100000", None), ("nonsense", None), ("1 0", None)],
)
def test_a_limit_of_the_container_counts(limit: str, cores: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert usable_cores(tmp_path / "cpu.max") == (cores or len(os.sched_getaffinity(0)))


def test_without_control_groups_every_core_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "nothing") == len(os.sched_getaffinity(0))
