"""Arguments say what and where; nothing secret fits in them."""

from pathlib import Path
from typing import Literal

import pytest

from matrixinfer.downloader.cli import ExportArguments, parse_arguments
from matrixinfer.downloader.errors import EXIT_CODES, Cause


def test_the_arguments_that_a_pod_carries() -> None:
    given = parse_arguments(
        [
            *("fetch", "--source", "s3://b/p", "--output", "/models/m"),
            *("--include", "*.gguf", "--include", "*.json", "--exclude", "x"),
            *("--model-version", "v", "--namespace", "ns"),
        ]
    )
    assert (given.source, given.output) == ("s3://b/p", Path("/models/m"))
    assert (given.include, given.exclude) == (("*.gguf", "*.json"), ("x",))
    assert (given.model_version, given.namespace) == ("v", "ns")


def test_a_relative_output_is_made_absolute() -> None:
    assert parse_arguments(["fetch", "--source", "s", "--output", "m"]).output == Path.cwd() / "m"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fetch"],
        ["fetch", "--source", "s3://b"],
        ["fetch", "--source", "s3://b", "--output", "m", "--namespace", "ns"],
        ["fetch", "--source", "s3://b", "--output", "m", "--token", "x"],
        ["fetch", "--sou", "s3://b", "--output", "m"],
        ["delete"],
    ],
)
def test_wrong_arguments_are_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_lists_every_cause_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert all(cause in text for cause in Cause)


def test_every_cause_has_an_exit_code_that_is_neither_success_nor_a_crash() -> None:
    assert set(EXIT_CODES) == set(Cause)
    assert not {0, 1} & set(EXIT_CODES.values())


@pytest.mark.parametrize("form", ["tar", "oci"])
def test_a_model_is_exported_in_the_format_that_is_asked_for(form: Literal["tar", "oci"]) -> None:
    found = parse_arguments(["export", "--model", "/m", "--archive", "/a", "--format", form])
    assert found == ExportArguments(Path("/m"), Path("/a"), form)
