"""Forwards a port on loopback outside to an address inside a network namespace; run as a process of its own.

Owns bytes in both directions, with back-pressure, half-closing and abort passed on as they are: a client that hangs
up must be seen by the server inside, or an engine would go on generating for nobody.

The trap: a socket stays in the namespace in which it was opened. The listener is opened first, then the process
enters, and every connection it makes from then on is inside.
"""

import asyncio
import contextlib
import signal
import socket
from pathlib import Path

from matrixinfer.devcluster import netns

__all__ = ["command", "relay", "serve"]

_CHUNK = 256 * 1024
_CONNECT_SECONDS = 10.0


def command(python: str, namespace: Path, local_port: int, address: str, port: int) -> list[str]:
    """Return the command line of a forwarder from 127.0.0.1:`local_port` to `address`:`port` inside."""
    module = [python, "-m", "matrixinfer.devcluster", "forward"]
    return [*module, "--netns", str(namespace), "--listen", str(local_port), "--to", f"{address}:{port}"]


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, port: int) -> None:
    """Connect one client to the server; returns when both directions have ended."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            far_reader, far_writer = await asyncio.open_connection(address, port, limit=_CHUNK)
    except (OSError, TimeoutError):
        writer.transport.abort()
        return
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, far_writer))
            both.create_task(_pump(far_reader, writer))
    except* OSError:
        # A reset on one side is a reset on the other.
        writer.transport.abort()
        far_writer.transport.abort()
    finally:
        writer.close()
        far_writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()


async def _serve(listener: socket.socket, address: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await asyncio.start_server(lambda r, w: relay(r, w, address, port), sock=listener, limit=_CHUNK)
    await stopping.wait()
    server.close()


def serve(namespace: Path, local_port: int, address: str, port: int) -> None:
    """Forward until told to stop (SIGTERM); moves the whole process into the namespace."""
    with socket.create_server(("127.0.0.1", local_port), backlog=512) as listener:
        netns.enter(namespace)
        asyncio.run(_serve(listener, address, port))
