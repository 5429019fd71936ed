"""What every accepted connection brings along from its listener."""

import socket

import pytest
from pydantic import ValidationError

from matrixinfer.gateway.fleet import listeners
from matrixinfer.gateway.settings import GatewaySettings


def test_a_client_that_vanished_is_noticed_by_the_kernel() -> None:
    """Without power nobody says goodbye: after a minute without an acknowledgement the connection is gone."""
    [listener] = listeners("127.0.0.1", 0, 1)
    listener.listen()
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            idle, interval, count = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 60


def test_the_longest_time_that_can_be_set_is_one_that_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXINFER_GATEWAY_WRITE_STALL_SECONDS", "65535")
    [listener] = listeners("127.0.0.1", 0, 1, lost_seconds=GatewaySettings().write_stall_seconds)
    listener.close()
    for beyond in ("65536", "inf", "nan"):
        monkeypatch.setenv("MATRIXINFER_GATEWAY_WRITE_STALL_SECONDS", beyond)
        with pytest.raises(ValidationError, match="write_stall_seconds"):
            GatewaySettings()
