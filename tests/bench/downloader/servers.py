"""The servers of the bench, each a process of its own, and what they serve."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config

from matrixinfer.devcluster.binaries import build_extra
from matrixinfer.devcluster.controlplane import free_ports
from matrixinfer.devcluster.s3 import REGION, ObjectStore, command, new_keys

__all__ = ["BUCKET", "fill", "hub_server", "offer_by_etag", "s3_server", "through_gate", "upload"]

BUCKET = "bench"


@contextmanager
def s3_server(folder: Path, say: Callable[[str], None]) -> Iterator[tuple[ObjectStore, int]]:
    """A versitygw over a folder; yields it and its process id."""
    (port,) = free_ports(1)
    store = ObjectStore(f"http://127.0.0.1:{port}", *new_keys())
    for name in ("buckets", "metadata"):
        (folder / name).mkdir(exist_ok=True)
    argv = command(build_extra("versitygw", say), f"127.0.0.1:{port}", folder)
    server = subprocess.Popen(argv, env={**os.environ, **store.server_env}, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not store.is_up():
            if time.monotonic() > deadline:
                raise TimeoutError("the S3 server did not come up")
            time.sleep(0.05)
        yield store, server.pid
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def hub_server(folder: Path) -> Iterator[tuple[str, int]]:
    """A hub over a folder; yields its address and its process id."""
    with _module("hub", str(folder)) as started:
        yield started


@contextmanager
def through_gate(store: ObjectStore, bytes_per_second: int) -> Iterator[str]:
    """Yields the address of the store behind a gate that lets so many bytes through."""
    with _module("gate", store.endpoint.removeprefix("http://"), str(bytes_per_second)) as (address, _):
        yield address


@contextmanager
def _module(name: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """A module of this package that prints its port."""
    argv = [sys.executable, "-m", f"tests.bench.downloader.{name}", *arguments]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}", server.pid
    finally:
        server.terminate()
        server.wait(30)


def fill(folder: Path, count: int, file_bytes: int) -> list[Path]:
    """Make so many files of a size; every one is different."""
    folder.mkdir(parents=True, exist_ok=True)
    block = random.Random(count).randbytes(1 << 20)
    made = []
    for index in range(count):
        path = folder / f"model-{index:05}.safetensors"
        made.append(path)
        if path.exists() and path.stat().st_size == file_bytes:
            continue
        with path.open("wb") as opened:
            for start in range(0, file_bytes, len(block)):
                head = f"{index:08}{start:016}".encode()
                opened.write((head + block[len(head) :])[: file_bytes - start])
    return made


def upload(store: ObjectStore, prefix: str, files: Sequence[Path]) -> None:
    """Store the files with their sha256, as a careful uploader does."""
    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, read_timeout=300),
    )
    store.create_bucket(BUCKET)
    for path in files:
        with path.open("rb") as opened:
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.name}", Body=opened, ChecksumAlgorithm="SHA256")
    # Else the first tools would share the disk with what is still being stored.
    os.sync()


def offer_by_etag(folder: Path, prefix: str, other: str) -> None:
    """Offer the objects under another prefix too, there by their etags alone: stores that compute no checksum do so."""
    for kind in ("buckets", "metadata"):
        place = folder / kind / BUCKET
        shutil.copytree(place / prefix, place / other, copy_function=os.link)
    for checksums in (folder / "metadata" / BUCKET / other).glob("*/meta/checksums"):
        checksums.unlink()
