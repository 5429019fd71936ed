"""A gate in front of a server: so many bytes a second, to all connections together, as a store gives one pod.

    python -m tests.bench.downloader.gate HOST:PORT BYTES_PER_SECOND

Prints its port. Answers are spliced from socket to socket, so the gate itself costs next to no processor.
"""

import os
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress

_CHUNK_BYTES = 1 << 18
# Shorter pauses than this would be longer than asked for.
_LEAST_PAUSE_SECONDS = 0.005
# What was not used of late may be used now: else every wait for a processor would count as bytes.
_BURST_SECONDS = 0.2


class Rate:
    """When the next bytes may pass."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def passed(self, count: int) -> None:
        """Wait until the next bytes may follow these."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + count / self._bytes_per_second
            ahead = self._free_at - now
        if ahead > _LEAST_PAUSE_SECONDS:
            time.sleep(ahead)


class Gate(socketserver.ThreadingTCPServer):
    """The gate."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, origin: tuple[str, int], rate: Rate) -> None:
        self.origin, self.rate = origin, rate
        super().__init__(("127.0.0.1", 0), _Passage)

    def handle_error(self, *_: object) -> None:
        """A client that went away is not worth a traceback."""


class _Passage(socketserver.BaseRequestHandler):
    server: Gate
    request: socket.socket

    def handle(self) -> None:
        with socket.create_connection(self.server.origin) as origin:
            threading.Thread(target=_requests, args=(self.request, origin), daemon=True).start()
            _answers(origin, self.request, self.server.rate)


def _requests(client: socket.socket, origin: socket.socket) -> None:
    with suppress(OSError):
        while asked := client.recv(_CHUNK_BYTES):
            origin.sendall(asked)
        origin.shutdown(socket.SHUT_WR)


def _answers(origin: socket.socket, client: socket.socket, rate: Rate) -> None:
    out, into = os.pipe()
    try:
        while left := os.splice(origin.fileno(), into, _CHUNK_BYTES):
            rate.passed(left)
            while left:
                left -= os.splice(out, client.fileno(), left)
    finally:
        os.close(out)
        os.close(into)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    with Gate((host, int(port)), Rate(float(sys.argv[2]))) as gate:
        sys.stdout.write(f"{gate.server_address[1]}\n")
        sys.stdout.flush()
        gate.serve_forever()
