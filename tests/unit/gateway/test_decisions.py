"""Small decisions: what a path is, and whether a failed attempt is repeated."""

import pytest

from matrixinfer.gateway.core.retry import Failure, RetryPolicy, may_retry, status_is_transient
from matrixinfer.gateway.core.surface import Surface, surface

POLICY = RetryPolicy(attempts=2, interval_seconds=0)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/v1/chat/completions", Surface.INFERENCE),
        (b"/v1/completions", Surface.INFERENCE),
        (b"/v1/embeddings", Surface.INFERENCE),
        (b"/v1/rerank", Surface.INFERENCE),
        (b"/v1/audio/speech", Surface.INFERENCE),
        (b"/v1/models", Surface.MODELS),
        (b"/v1/models/org/name", Surface.MODEL),
        (b"/healthz", Surface.HEALTH),
        (b"/readyz", Surface.READY),
        (b"/", Surface.NOTHING),
        (b"*", Surface.NOTHING),
        (b"/metrics", Surface.NOTHING),
        (b"/v2/chat", Surface.NOTHING),
        (b"/v1/load_lora_adapter", Surface.NOTHING),
        (b"/v1/unload_lora_adapter/", Surface.NOTHING),
        (b"/v1/LOAD_lora_adapter", Surface.NOTHING),
        (b"/v1/../metrics", Surface.MALFORMED),
        (b"/v1/./chat", Surface.MALFORMED),
        (b"/v1//load_lora_adapter", Surface.MALFORMED),
        (b"/v1/chat\r\nx: y", Surface.MALFORMED),
        (b"/v1\\chat", Surface.MALFORMED),
    ],
)
def test_paths(path: bytes, kind: Surface) -> None:
    assert surface(path) is kind


@pytest.mark.parametrize(
    ("failure", "transient", "expected"),
    [
        (Failure.CONNECT, False, True),
        (Failure.RESET, False, True),
        (Failure.PROTOCOL, False, True),
        (Failure.ENDPOINT_GONE, False, True),
        (Failure.STATUS, True, True),
        (Failure.STATUS, False, False),
        (Failure.FIRST_BYTE, False, False),
        (Failure.IDLE, False, False),
        (Failure.TOTAL, False, False),
    ],
)
def test_what_may_be_repeated(failure: Failure, transient: bool, expected: bool) -> None:
    assert may_retry(failure, 0, POLICY, 60, transient=transient) is expected
    assert may_retry(failure, 2, POLICY, 60, transient=transient) is False
    assert may_retry(failure, 0, POLICY, 0, transient=transient) is False


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, b"", True),
        (502, b"", True),
        (504, b"", False),
        (500, b"boom", False),
        (500, b'{"error":"cannot schedule new futures after shutdown"}', True),
    ],
)
def test_which_engine_errors_speak_of_the_endpoint(status: int, body: bytes, expected: bool) -> None:
    assert status_is_transient(status, body) is expected
