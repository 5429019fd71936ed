"""TLS towards clients, on real sockets: which versions and protocols, how it ends, and a certificate that changes."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from tests.unit.gateway.rig import OK, Asked, Client, Rig, post

from matrixinfer.gateway.certificate import CertificateFiles, load
from matrixinfer.gateway.settings import GatewaySettings
from matrixinfer.service.tls import ReloadingContext

BOTH_INLETS = True
CA = trustme.CA()
BODY = b'{"model":"m"}'


class Files:
    """A mounted Secret."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.rotate()

    def rotate(self) -> None:
        leaf = CA.issue_cert("localhost")
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self.key.write_bytes(leaf.private_key_pem.bytes())

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number

    def load(self) -> ReloadingContext:
        return load(CertificateFiles(str(self.certificate), str(self.key), 10.0))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def trusting(*, alpn: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


async def connect(rig: Rig, context: ssl.SSLContext | None = None) -> Client:
    return await rig.client(ssl=context or trusting(), server_hostname="localhost")


def seen_serial(client: Client) -> int:
    der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


async def test_a_certificate_is_replaced_while_a_stream_runs(rig: Rig, files: Files) -> None:
    go_on = asyncio.Event()

    async def stream(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    await rig.engine(stream)
    tls = files.load()
    rig.tls = tls.context
    await rig.start()
    old, first = await connect(rig), files.serial
    assert seen_serial(old) == first
    old.send(post())
    await old.head()
    assert await old.chunk() == b"one"
    files.rotate()
    assert tls.reload_if_changed()
    new = await connect(rig)
    assert seen_serial(new) == files.serial != first
    go_on.set()
    assert await old.chunk() == b"two"
    assert await old.chunk() == b""
    old.send(b"GET /healthz HTTP/1.1\r\nhost: gw\r\n\r\n")
    assert (await old.answer()).status == 200
    assert seen_serial(old) == first


async def test_http_1_1_is_agreed_on_and_h2_is_not(rig: Rig, files: Files) -> None:
    await rig.engine()
    rig.tls = files.load().context
    await rig.start()
    for offered, agreed in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None), (None, None)):
        client = await connect(rig, trusting(alpn=offered))
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
        client.send(post())
        assert (await client.answer()).status == 200


async def test_tls_before_1_2_is_refused(rig: Rig, files: Files) -> None:
    await rig.engine()
    rig.tls = files.load().context
    assert rig.tls.minimum_version is ssl.TLSVersion.TLSv1_2
    await rig.start()
    context = trusting()
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    client = await connect(rig, context)
    client.send(post())
    assert (await client.answer()).status == 200
    # A client that offers TLS 1.1 at most, as its bytes: OpenSSL's own no longer can.
    old = await rig.client()
    hello = b"\x01\x00\x00\x2b\x03\x02" + bytes(32) + b"\x00\x00\x04\xc0\x13\x00\x2f\x01\x00"
    old.send(b"\x16\x03\x01" + len(hello).to_bytes(2) + hello)
    alert = await old.reader.read(5)
    assert alert[:1] in (b"\x15", b"")


async def test_plain_http_on_the_tls_port_is_closed(rig: Rig, files: Files) -> None:
    engine = await rig.engine()
    rig.tls = files.load().context
    await rig.start()
    plain = await rig.client()
    plain.send(post())
    assert b"HTTP/1.1 200" not in await plain.reader.read()
    assert engine.asked == []


async def test_a_handshake_that_does_not_come_is_given_up(rig: Rig, files: Files) -> None:
    await rig.engine()
    rig.tls = files.load().context
    await rig.start(handshake_seconds=0.1)
    client = await rig.client()
    client.send(b"\x16\x03\x01")
    assert await client.is_closed()
    assert rig.inlet.open_connections == 0


async def test_an_answer_that_ends_with_the_connection_ends_with_a_farewell(rig: Rig, files: Files) -> None:
    """Without one the client cannot tell the end from an attack, and Python's raises an error."""
    await rig.engine(lambda _asked, writer: _streamed(writer))
    rig.tls = files.load().context
    await rig.start()
    client = await connect(rig)
    client.send(post().replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    _, headers = await client.head()
    assert headers[b"connection"] == b"close"
    assert await client.reader.read() == b"hello"


async def _streamed(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize("request_", [post(connection="close"), b"nonsense\r\n\r\n"], ids=["asked for", "refused"])
async def test_the_last_answer_of_a_connection_arrives_whole(rig: Rig, files: Files, request_: bytes) -> None:
    await rig.engine()
    rig.tls = files.load().context
    await rig.start()
    client = await connect(rig)
    client.send(request_)
    answer = await client.answer()
    assert (answer.complete, answer.headers[b"connection"]) == (True, b"close")
    assert await client.reader.read() == b""


async def test_a_large_refused_body_does_not_drown_its_refusal(rig: Rig, files: Files) -> None:
    await rig.engine()
    rig.tls = files.load().context
    await rig.start(body_bytes=2000)
    client = await connect(rig)
    client.send(post(BODY.ljust(2_000_000)))
    assert (await client.answer()).status == 413


async def test_a_client_that_leaves_ends_the_engines_work(rig: Rig, files: Files) -> None:
    async def silent(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine = await rig.engine(silent)
    rig.tls = files.load().context
    await rig.start()
    client = await connect(rig)
    client.send(post())
    await rig.until(lambda: engine.asked)
    client.close()
    await engine.lost.wait()


async def test_an_answer_goes_through_byte_for_byte(rig: Rig, files: Files) -> None:
    body = bytes(range(256)) * 8000

    async def large(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"content-length: 11", b"content-length: %d" % len(body)).partition(b"{")[0] + body)

    engine = await rig.engine(large)
    rig.tls = files.load().context
    await rig.start()
    client = await connect(rig)
    client.send(post(BODY.ljust(500_000)))
    assert (await client.answer()).body == body
    assert engine.asked[0].body == BODY.ljust(500_000)


def test_a_certificate_without_its_key_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    monkeypatch.setenv("MATRIXINFER_GATEWAY_TLS_CERT_FILE", str(files.certificate))
    with pytest.raises(ValueError, match="set both, or neither"):
        GatewaySettings()
    monkeypatch.setenv("MATRIXINFER_GATEWAY_TLS_KEY_FILE", str(files.key))
    assert GatewaySettings().tls == CertificateFiles(str(files.certificate), str(files.key), 10.0)
