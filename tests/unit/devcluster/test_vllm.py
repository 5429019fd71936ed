"""Finding the installed vLLM: what is said when it is missing, and what counts as installed."""

from pathlib import Path

import pytest

from matrixinfer.devcluster.demo import demo
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import repository
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.vllm import INSTALLER, VLLM_HOME, vllm_model_files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VLLM_HOME, str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").touch()
    (tmp_path / "model" / "config.json").touch()
    return tmp_path


def test_an_installation_that_was_interrupted_is_none(home: Path):
    with pytest.raises(ClusterError, match=INSTALLER):
        vllm_model_files()


def test_the_files_of_a_finished_one_are_found(home: Path):
    (home / "installed").touch()
    assert [file.name for file in vllm_model_files()] == ["config.json", "tokenizer.json"]


def test_the_command_that_is_named_exists():
    assert (repository() / INSTALLER).stat().st_mode & 0o111


def test_the_demo_says_so_before_it_starts_anything(home: Path):
    said: list[str] = []
    with pytest.raises(ClusterError, match=INSTALLER):
        demo("vllm", "", Progress(said.append))
    assert said == []
