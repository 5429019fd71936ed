"""The simulator starts with the very command line that a real engine gets."""

from pathlib import Path

import pytest

from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.engine import Launch
from matrixinfer.enginesim.__main__ import main
from matrixinfer.enginesim.config import UsageError, config_from


def test_it_takes_the_command_that_a_pod_gets(tmp_path: Path) -> None:
    given = {"max_model_len": "4k", "enable-prefix-caching": False, "dtype": "bfloat16", "kv-transfer-config": {"a": 1}}
    command = engine_for("vLLM").command(Launch(str(tmp_path), "quickstart", config=given, lora=True))
    assert command.argv[0] == "vllm"
    config = config_from(command.argv[1:], {})
    assert config.names == ("quickstart",)
    assert (config.host, config.port, config.max_model_len) == ("0.0.0.0", 8000, 4000)
    assert config.lora
    assert not config.prefix_caching


def test_underscores_and_adapters_are_read() -> None:
    argv = ["serve", "m", "--max_num_seqs=3", "--lora-modules", "a=/p", '{"name":"b","path":"/q"}']
    config = config_from(argv, {})
    assert config.max_num_seqs == 3
    assert config.adapters == (("a", "/p"), ("b", "/q"))


def test_the_pace_comes_from_flags_before_the_environment() -> None:
    environ = {
        "MATRIXINFER_ENGINESIM_DECODE_TOKENS_PER_SECOND": "5",
        "MATRIXINFER_ENGINESIM_STARTUP_SECONDS": "0.5",
        "POD_NAME": "pod-1",
    }
    config = config_from(["serve", "m", "--sim-decode-tokens-per-second", "7"], environ)
    assert (config.decode_tokens_per_second, config.startup_seconds, config.engine_id) == (7, 0.5, "pod-1")


@pytest.mark.parametrize(
    ("argv", "environ", "why"),
    [
        (["serve"], {}, "which model"),
        (["serve", "/no/such/model"], {}, "does not exist"),
        (["serve", "m", "--port", "x"], {}, "port"),
        (["serve", "m", "--max-num-seqs", "0"], {}, "positive"),
        (["serve", "m", "--lora-modules", "a"], {}, "name=path"),
        (["bench", "m"], {}, "serve"),
        (["serve", "m"], {"MATRIXINFER_ENGINESIM_STARTUP_SECONDS": "soon"}, "STARTUP_SECONDS"),
        (["serve", "m", "--sim-decode-tokens-per-second", "-1"], {}, "at least 0"),
    ],
)
def test_a_wrong_command_line_says_why(argv: list[str], environ: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        config_from(argv, environ)


def test_the_program_ends_with_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "/no/such/model"])
    assert end.value.code == 2
    assert "/no/such/model does not exist" in capsys.readouterr().err
