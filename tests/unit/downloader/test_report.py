"""The kubeconfig for the mounted token holds paths, never the token."""

import json
from pathlib import Path

import pytest

from matrixinfer.downloader.report import kubeconfig_of_token


@pytest.mark.parametrize(
    ("host", "server"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_server_and_the_files_are_named(host: str, server: str) -> None:
    config = json.loads(kubeconfig_of_token(Path("/run/sa"), host, "443"))
    assert config["clusters"][0]["cluster"] == {"server": server, "certificate-authority": "/run/sa/ca.crt"}
    assert config["users"][0]["user"] == {"tokenFile": "/run/sa/token"}
