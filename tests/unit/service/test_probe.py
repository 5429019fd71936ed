"""The probe finds the admin port by the service's own settings, and never hangs."""

import socket

import pytest

from matrixinfer.service.probe import address, main, ready


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("127.0.0.1", 9090)),
        ({"MATRIXINFER_GATEWAY_ADMIN_PORT": "9191"}, ("127.0.0.1", 9191)),
        ({"MATRIXINFER_GATEWAY_ADMIN_HOST": "127.0.0.7"}, ("127.0.0.7", 9090)),
        ({"MATRIXINFER_MODEL_CONTROLLER_ADMIN_HOST": "0.0.0.0"}, ("127.0.0.1", 9090)),
        ({"MATRIXINFER_GATEWAY_ADMIN_HOST": "::"}, ("::1", 9090)),
        ({"OTHER_ADMIN_PORT": "1"}, ("127.0.0.1", 9090)),
    ],
)
def test_the_address_follows_the_settings(environ: dict[str, str], expected: tuple[str, int]) -> None:
    assert address(environ) == expected


def test_a_closed_port_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ok, text = ready("127.0.0.1", port, "/readyz", 1.0)
    assert not ok
    assert "did not answer" in text


def test_a_process_that_accepts_and_says_nothing_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ok, _ = ready("127.0.0.1", listener.getsockname()[1], "/readyz", 0.05)
    assert not ok


def test_the_exit_code_is_the_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MATRIXINFER_RELAY_ADMIN_PORT", str(port))
    assert main(["livez"]) == 1
    assert "did not answer" in capsys.readouterr().out
