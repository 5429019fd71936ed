"""What supervisor and workers say to each other over a socket pair: length-prefixed msgpack frames.

Both ends run the same build, so the shapes may change freely. The trap: a worker that stops reading must not make the
supervisor grow, so only the newest snapshot is ever waiting to be sent, and frames have a bound.
"""

import asyncio
import struct
from typing import Literal, TypeAlias

import msgspec

from matrixinfer.gateway.certificate import CertificateFiles
from matrixinfer.gateway.core.types import Snapshot
from matrixinfer.gateway.export import ExportSettings
from matrixinfer.gateway.stats import StatsReport
from matrixinfer.gateway.terms import TrafficDefaults
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.pool import PoolLimits

__all__ = [
    "Acknowledged",
    "Configure",
    "Drain",
    "Explain",
    "Explained",
    "FromWorker",
    "Publish",
    "Report",
    "Serving",
    "ToWorker",
    "Wanted",
    "encode",
    "read_from_worker",
    "read_to_worker",
]

_FRAME_LIMIT = 256 * 1024 * 1024
_PREFIX = struct.Struct(">I")


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """The first frame to a worker: all that it needs to know of settings."""

    log_level: Literal["debug", "info", "warning", "error"]
    inlet: InletLimits
    pool: PoolLimits
    traffic: TrafficDefaults
    access_log: bool
    upstream_ca_file: str | None
    drain_seconds: float
    stream_usage: Literal["ask", "as-sent"] = "ask"
    inlet_kind: Literal["httptools", "aiohttp"] = "httptools"
    tls: CertificateFiles | None = None
    """Without it, clients speak plain HTTP."""
    decision_header: Literal["asked", "always", "never"] = "asked"
    spans: ExportSettings = ExportSettings()
    sampler: str = "parentbased_always_on"
    sampler_ratio: float = 1.0


class Publish(msgspec.Struct, frozen=True, tag="publish"):
    """Route by this from now on."""

    snapshot: Snapshot


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """`closing`: clients shall come back on another connection, serving goes on. `last`: accept no more and finish."""

    step: Literal["closing", "last"]


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """The worker accepts connections."""


class Acknowledged(msgspec.Struct, frozen=True, tag="acknowledged"):
    """The worker routes by this revision; no request of it will use an older one."""

    revision: int


class Report(msgspec.Struct, frozen=True, tag="report"):
    """What the worker counted so far; also its heartbeat."""

    stats: StatsReport


class Wanted(msgspec.Struct, frozen=True, tag="wanted"):
    """A request waits for this server, which has no endpoint: wake it up where that is possible. Said again at most
    once a second while requests wait, so a word that was lost is no harm."""

    namespace: str
    name: str


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """Tell why a request went where it went; `number` comes back with the answer."""

    number: int
    request_id: str


class Explained(msgspec.Struct, frozen=True, tag="explained"):
    """The story as JSON; None when the worker does not remember the request."""

    number: int
    page: bytes | None


ToWorker: TypeAlias = Configure | Publish | Drain | Explain
FromWorker: TypeAlias = Serving | Acknowledged | Report | Wanted | Explained

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """Return the frame of a message."""
    body = _encoder.encode(message)
    return _PREFIX.pack(len(body)) + body


async def read_to_worker(reader: asyncio.StreamReader) -> ToWorker | None:
    """Wait for the supervisor's next message; None when it has gone."""
    body = await _read_frame(reader)
    return None if body is None else _to_worker.decode(body)


async def read_from_worker(reader: asyncio.StreamReader) -> FromWorker | None:
    """Wait for a worker's next message; None when it has gone."""
    body = await _read_frame(reader)
    return None if body is None else _from_worker.decode(body)


async def _read_frame(reader: asyncio.StreamReader) -> bytes | None:
    try:
        (size,) = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
        if size > _FRAME_LIMIT:
            raise ValueError(f"a frame of {size} bytes is no frame of ours")
        return await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
