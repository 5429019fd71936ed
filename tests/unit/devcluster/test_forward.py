"""The forwarder passes on bytes, ends and resets."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from matrixinfer.devcluster.forward import relay

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def forwarded(handler: Handler) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server with this handler, through the forwarder."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    front = await asyncio.start_server(lambda r, w: relay(r, w, address, port), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
    try:
        async with asyncio.timeout(5):
            yield reader, writer
    finally:
        writer.close()
        front.close()
        server.close()


async def test_bytes_pass_both_ways_and_a_half_close_stays_half():
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"<" + await reader.read() + b">")
        writer.close()

    async with forwarded(answer_at_the_end) as (reader, writer):
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        assert await reader.read() == b"<" + b"x" * 1_000_000 + b">"


async def test_a_client_that_hangs_up_is_seen_by_the_server():
    """Else an engine would go on generating for nobody."""
    gone = asyncio.Event()

    async def stream_forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"token")
                await writer.drain()
                await asyncio.sleep(0)
        except OSError:
            gone.set()
        finally:
            writer.close()

    async with forwarded(stream_forever) as (reader, writer):
        await reader.readexactly(5)
        writer.transport.abort()
        await gone.wait()


async def test_a_reset_by_the_server_is_a_reset_for_the_client():
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with forwarded(reset) as (reader, writer):
        writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_an_absent_server_ends_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, port = listener.getsockname()
    front = await asyncio.start_server(lambda r, w: relay(r, w, address, port), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    front.close()
