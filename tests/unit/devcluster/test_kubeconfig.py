"""Kubeconfig files."""

import stat
from pathlib import Path

import yaml

from matrixinfer.devcluster.kubeconfig import Access, Credentials, read_access, render, write


def test_what_is_written_is_read_back(tmp_path: Path):
    access = Access("https://127.0.0.1:6443", b"ca", Credentials(b"cert", b"key"), "there")
    assert read_access(write(tmp_path / "a" / "kubeconfig", access)) == access
    access = Access("https://127.0.0.1:6443", b"ca", Credentials(token="secret"))
    assert read_access(write(tmp_path / "kubeconfig", access)) == access


def test_only_the_owner_can_read_it(tmp_path: Path):
    path = write(tmp_path / "kubeconfig", Access("https://x", b"ca", Credentials(token="secret")))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["kubeconfig"]


def test_a_token_stands_alone():
    document = yaml.safe_load(render(Access("https://x", b"ca", Credentials(token="secret"))))
    assert document["users"][0]["user"] == {"token": "secret"}
