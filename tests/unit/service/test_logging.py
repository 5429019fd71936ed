"""Every line on stdout is one JSON object with a constant event, whoever logged it."""

import io
import json
import logging as stdlib_logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from matrixinfer.service.logging import configure, get_logger

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = stdlib_logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.BytesIO()
    configure("relay", "info", secrets=["topsecret-1"], stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    stdlib_logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level


def test_a_line_carries_service_logger_level_time_and_keys(lines: Lines) -> None:
    get_logger("plan").info("rollout_advanced", step=3)
    (line,) = lines()
    assert line["event"] == "rollout_advanced"
    assert (line["service"], line["component"], line["level"], line["step"]) == ("relay", "plan", "info", 3)
    assert line["time"].endswith("Z")


def test_a_logger_made_before_configure_obeys_it(lines: Lines) -> None:
    early = get_logger("early")
    early.info("woke_up")
    assert lines()[0]["component"] == "early"


def test_a_sentence_is_not_an_event(lines: Lines) -> None:
    get_logger("x").info("Advanced rollout 3")
    assert lines()[0]["event"] == "free_text"
    assert lines()[0]["message"] == "Advanced rollout 3"


def test_levels_below_the_setting_are_dropped(lines: Lines) -> None:
    get_logger("x").debug("chatter")
    stdlib_logging.getLogger("lib").info("chatter of a library")
    assert lines() == []


def test_library_messages_arrive_as_json_and_redacted(lines: Lines) -> None:
    stdlib_logging.getLogger("urllib3.pool").warning("retrying %s", "https://s/x?X-Amz-Signature=abcd topsecret-1")
    (line,) = lines()
    assert (line["event"], line["component"], line["level"]) == ("library_log", "urllib3.pool", "warning")
    assert "abcd" not in line["message"]
    assert "topsecret-1" not in line["message"]


def test_a_traceback_is_one_redacted_line(lines: Lines) -> None:
    try:
        raise ValueError("bad topsecret-1")
    except ValueError as exc:
        get_logger("x").error("crashed", exc_info=exc)
    (line,) = lines()
    assert "ValueError: bad [redacted]" in line["exception"]


def test_values_without_json_form_do_not_break_a_line(lines: Lines) -> None:
    get_logger("x").info("seen", what={1: object}, raw=b"x")
    assert lines()[0]["event"] == "seen"


def test_context_reaches_every_line(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(key="ns/name"):
        get_logger("x").warning("slow")
    assert lines()[0]["key"] == "ns/name"
