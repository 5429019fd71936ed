"""Clients that read slowly, or leave: what they may cost."""

import asyncio
import socket

from tests.unit.gateway.rig import Asked, Client, Rig, post

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = post(b'{"model":"m","stream":true}')
EVENT = b"data: " + b"x" * 32760 + b"\n\n"
PIECE = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
CLIENTS = 16


async def slow_client(rig: Rig) -> Client:
    """One whose kernel takes little and who reads none of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
    client = Client(*await asyncio.open_connection(sock=sock, limit=1024))
    rig.clients.append(client)
    return client


async def test_many_slow_clients_hold_little_memory_and_slow_nobody_else(rig: Rig) -> None:
    written = 0

    async def flood(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        if b"stream" not in asked.body:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            return
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writer.write(STREAM_HEAD)
        while True:
            writer.write(PIECE)
            await writer.drain()
            written += len(PIECE)

    await rig.engine(flood)
    await rig.start()
    for _ in range(CLIENTS):
        client = await slow_client(rig)
        client.send(STREAM)
        await client.head()
    before = -1
    while written != before:
        before = written
        assert (await rig.ask()).body == b"ok"
        await asyncio.sleep(0.02)
    held = [connection._transport.get_write_buffer_size() for connection in rig.inlet.connections]
    # The mark at which the engine is read no more, and what was read at once before that.
    assert max(held) <= rig.limits.write_buffer_bytes + 2 * 262144
    # However much engines have to say, the kernel's buffers and ours are all that is taken of it.
    assert written / CLIENTS < 8 << 20


async def test_a_client_that_leaves_ends_the_engines_work_within_the_same_tick(rig: Rig) -> None:
    async def one_piece(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + PIECE)
        await asyncio.Event().wait()

    engine = await rig.engine(one_piece)
    await rig.start()
    client = await rig.client(limit=1 << 20)
    client.send(STREAM)
    await client.head()
    await client.chunk()
    (connection,) = rig.inlet.connections
    (upstream,) = rig.pool._peers
    assert not upstream._transport.is_closing()
    connection.connection_lost(ConnectionResetError())
    # Not a moment later: no await lies between.
    assert upstream._transport.is_closing()
    await engine.lost.wait()
    assert rig.in_flight() == [0] * 64
