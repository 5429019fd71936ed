"""Certificates: real TLS between what they are issued for."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from matrixinfer.devcluster.pki import Authority, write_service_account_key

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki", datetime.now(UTC))


def test_server_and_client_know_each_other(authority: Authority):
    now = datetime.now(UTC)
    server = authority.issue("server", "etcd", now, names=["127.0.0.1", "localhost"])
    client = authority.issue("client", "admin", now, groups=["system:masters"])
    there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    there.load_cert_chain(server.cert, server.key)
    there.verify_mode = ssl.CERT_REQUIRED
    here = ssl.create_default_context(cafile=str(authority.ca))
    here.load_cert_chain(client.cert, client.key)
    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with there.wrap_socket(connection, server_side=True) as secure:
                seen.append(secure.getpeercert())
                secure.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as plain,
            here.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            assert secure.recv(5) == b"hello"
        thread.join()
    assert "('organizationName', 'system:masters')" in str(seen)


def test_a_client_certificate_is_no_server(authority: Authority):
    certificate = x509.load_pem_x509_certificate(authority.issue("c", "c", NOW).cert.read_bytes())
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_keys_are_for_their_owner_only(authority: Authority):
    pair = authority.issue("a", "a", NOW)
    account = write_service_account_key(authority.folder)
    for path in (pair.key, account.key, authority.folder / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
