"""The llama.cpp image's program: what it reads, which file it picks, when it may end."""

import importlib.util
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.engine import Launch

PROGRAM = Path(__file__).parents[3] / "deploy/engines/llamacpp/llama_server.py"


@pytest.fixture(scope="module")
def shim() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llama_server", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_takes_the_command_that_a_pod_gets(shim: ModuleType) -> None:
    config = {"ctx_size": 4096, "parallel": 2, "threads": 1, "warmup": False}
    argv = engine_for("LlamaCpp").command(Launch("/models/x", "quickstart", config=config)).argv
    options = shim.parse(argv[1:])
    assert (options.model, options.alias, options.host, options.port) == (
        Path("/models/x"),
        "quickstart",
        "0.0.0.0",
        8000,
    )
    assert (options.ctx_size, options.parallel, options.threads, options.warmup) == (4096, 2, 1, False)


def test_a_flag_that_it_does_not_have_is_refused(shim: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        shim.parse(["--model", "x", "--max-model-len", "3"])
    assert end.value.code == 2
    assert "--max-model-len" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a.gguf", "READY", "README.md"], "a.gguf"),
        (["deep/er/a.gguf", ".hidden.gguf"], "deep/er/a.gguf"),
        (["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"], "m-00001-of-00003.gguf"),
        (["a.gguf", "mmproj-a.gguf"], "a.gguf"),
    ],
)
def test_the_one_model_of_a_directory_is_found(shim: ModuleType, tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert shim.find_gguf(tmp_path) == tmp_path / found
    assert shim.find_gguf(tmp_path / found) == tmp_path / found


@pytest.mark.parametrize("files", [[], ["a.gguf", "b.gguf"]])
def test_none_or_several_models_are_named_in_the_refusal(shim: ModuleType, tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(shim.NoModel, match=", ".join(files) or "none"):
        shim.find_gguf(tmp_path)


def test_a_path_that_is_not_there_is_refused(shim: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(shim.NoModel, match="does not exist"):
        shim.find_gguf(tmp_path / "x")


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "400000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_threads_are_half_of_what_the_container_may_use(
    shim: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert shim.usable_threads(tmp_path) == threads


class Metrics(BaseHTTPRequestHandler):
    """Says that one request runs, and then that none does."""

    answers: list[int]

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        running = self.answers.pop(0) if self.answers else 0
        self.wfile.write(b"# HELP x\nllamacpp:requests_processing %d\nllamacpp:requests_deferred 0\n" % running)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def engine_port() -> Iterator[int]:
    Metrics.answers = [1]
    server = HTTPServer(("127.0.0.1", 0), Metrics)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_waits_until_nothing_runs(shim: ModuleType, engine_port: int) -> None:
    assert shim.drain("127.0.0.1", engine_port, 5)
    assert Metrics.answers == []


def test_it_does_not_wait_for_ever_nor_for_an_engine_that_is_gone(shim: ModuleType, engine_port: int) -> None:
    Metrics.answers = [1] * 100
    assert not shim.drain("127.0.0.1", engine_port, 0.05)
    assert shim.drain("127.0.0.1", 1, 5)
