"""A listener hands out the newest whole certificate, to every client, without a restart."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
import uvloop
from cryptography import x509

from matrixinfer.service.tls import CertificateError, ReloadingContext, server_context

CA = trustme.CA()


def pair(name: str = "localhost") -> tuple[bytes, bytes]:
    leaf = CA.issue_cert(name)
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


def serial(certificate_pem: bytes) -> int:
    return x509.load_pem_x509_certificate(certificate_pem).serial_number


@asynccontextmanager
async def listening(tls: ReloadingContext) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def connect(port: int, name: str | None = "localhost") -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.check_hostname = name is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number, reader, writer


@pytest.mark.parametrize("name", ["localhost", None], ids=["with a server name", "without one"])
async def test_a_replaced_pair_serves_new_connections_and_keeps_old_ones(name: str | None) -> None:
    first, second = pair(), pair()
    tls = ReloadingContext(*first)
    async with listening(tls) as port:
        seen, reader, writer = await connect(port, name)
        assert seen == serial(first[0])
        tls.replace(*second)
        seen_again, _, other = await connect(port, name)
        assert seen_again == serial(second[0])
        writer.write(b"still there\n")
        assert await reader.readline() == b"still there\n"
        writer.close()
        other.close()


async def test_files_that_change_are_picked_up_and_a_torn_pair_is_not(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    first, second = pair(), pair()
    certificate.write_bytes(first[0])
    key.write_bytes(first[1])
    tls = ReloadingContext.from_files(certificate, key)
    async with listening(tls) as port:
        assert not tls.reload_if_changed()
        certificate.write_bytes(second[0])
        assert not tls.reload_if_changed()
        seen, _, writer = await connect(port)
        writer.close()
        assert seen == serial(first[0])
        key.write_bytes(second[1])
        assert tls.reload_if_changed()
        seen, _, writer = await connect(port)
        writer.close()
        assert seen == serial(second[0])


async def test_watch_reloads_by_itself(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    first, second = pair(), pair()
    certificate.write_bytes(first[0])
    key.write_bytes(first[1])
    tls = ReloadingContext.from_files(certificate, key)
    before = tls.not_after
    watching = asyncio.ensure_future(tls.watch(every_seconds=0.001))
    certificate.write_bytes(second[0])
    key.write_bytes(second[1])
    async with listening(tls) as port, asyncio.timeout(5):
        while True:
            seen, _, writer = await connect(port)
            writer.close()
            if seen == serial(second[0]):
                break
    watching.cancel()
    assert before > datetime.now(UTC)


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(CertificateError, match="cannot be used together"):
        server_context(pair()[0], pair()[1])


def test_text_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(CertificateError):
        ReloadingContext(b"hello", b"world")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"tls\.crt cannot be read"):
        ReloadingContext.from_files(tmp_path / "tls.crt", tmp_path / "tls.key")


def test_files_that_vanish_keep_the_old_pair(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    first = pair()
    certificate.write_bytes(first[0])
    key.write_bytes(first[1])
    tls = ReloadingContext.from_files(certificate, key)
    certificate.unlink()
    assert not tls.reload_if_changed()
    assert tls.not_after > datetime.now(UTC)


def test_old_protocol_versions_are_off() -> None:
    assert server_context(*pair()).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_swap_works_on_the_loop_that_services_run_on() -> None:
    async def swapped() -> tuple[int, int]:
        tls = ReloadingContext(*pair())
        second = pair()
        async with listening(tls) as port:
            tls.replace(*second)
            seen, _, writer = await connect(port)
            writer.close()
            return seen, serial(second[0])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen, expected = runner.run(swapped())
    assert seen == expected
