"""A fleet of worker processes without a supervisor around it, for tests that hand the routing table over themselves."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence

from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.fleet import Fleet
from matrixinfer.gateway.health import HealthBoard
from matrixinfer.gateway.ipc import Configure
from matrixinfer.gateway.ledger import Ledger
from matrixinfer.gateway.metrics import Traffic
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.terms import TrafficDefaults
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.pool import PoolLimits
from matrixinfer.service.clock import monotonic

CONFIG = Configure(
    "info", InletLimits(), PoolLimits(), TrafficDefaults(), access_log=False, upstream_ca_file=None, drain_seconds=5
)
SLOTS = 64
_PREFIX_BYTES = 1 << 16


@contextlib.contextmanager
def fleet_on(sockets: Sequence[socket.socket], traffic: Traffic, config: Configure = CONFIG) -> Iterator[Fleet]:
    """One worker for each socket, with small shared memories that last as long as the block. Call `run` on it."""
    workers = len(sockets)
    board = LoadBoard.create(workers, SLOTS)
    prefixes = PrefixIndex.create(workers=workers, capacity=SLOTS, table_bytes=_PREFIX_BYTES)
    ledger, health = Ledger.create(workers, SLOTS), HealthBoard.create(workers, SLOTS)
    try:
        yield Fleet(
            listeners=sockets,
            board_fd=board,
            slots=SLOTS,
            prefix_fd=prefixes,
            prefix_bytes=_PREFIX_BYTES,
            ledger_fd=ledger,
            ledger_entries=SLOTS,
            health_fd=health,
            config=config,
            traffic=traffic,
            clock=monotonic,
        )
    finally:
        for fd in (board, prefixes, ledger, health):
            os.close(fd)
