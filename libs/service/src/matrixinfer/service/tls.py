"""Server TLS whose certificate changes while the server runs: no restart, no dropped connection.

`ReloadingContext` keeps one outer `SSLContext` for the listener and answers every handshake with the newest whole
pair. Owns loading and swapping; who writes the files, or issues the certificate, is not its business. The trap:
calling `load_cert_chain` on a context in use leaves it broken when key and certificate do not belong together (a
half-written pair), so each pair goes into a context of its own first, and only a whole one is swapped in.
"""

import asyncio
import os
import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509

from matrixinfer.service.logging import get_logger

__all__ = ["CertificateError", "ReloadingContext", "server_context"]

log = get_logger("tls")


class CertificateError(Exception):
    """A certificate or key that cannot be used; the text says which and why."""


def server_context(certificate_pem: bytes, key_pem: bytes, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return a server context for one certificate chain and its key, TLS 1.2 and up; raises CertificateError.

    `alpn` are the protocols that it agrees to; a client that offers none of them is served all the same.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    # The ssl module reads keys from a path only. A file in memory touches no disk and needs no writable folder, which
    # a container with a read-only root does not have.
    with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as pair:
        pair.write(certificate_pem + b"\n" + key_pem)
        pair.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{pair.fileno()}")
        except (ssl.SSLError, OSError) as exc:
            raise CertificateError(f"the certificate and its key cannot be used together: {exc}") from exc
    return context


class ReloadingContext:
    """A server's TLS, by `context`, that always hands out the newest certificate.

    Made from PEM bytes; `replace` swaps the pair, `from_files` and `watch` do that whenever the files change.
    Connections that are open keep the certificate they began with.
    """

    def __init__(self, certificate_pem: bytes, key_pem: bytes, alpn: Sequence[str] = ()) -> None:
        self._alpn = tuple(alpn)
        self._current = server_context(certificate_pem, key_pem, self._alpn)
        self._not_after = _not_after(certificate_pem)
        self._files: tuple[Path, Path] | None = None
        self._seen: tuple[bytes, bytes] = (certificate_pem, key_pem)
        # The outer context holds the first pair too: OpenSSL wants a usable one before it asks the callback.
        self.context = server_context(certificate_pem, key_pem, self._alpn)
        self.context.sni_callback = self._choose

    @classmethod
    def from_files(cls, certificate: Path, key: Path, alpn: Sequence[str] = ()) -> "ReloadingContext":
        """Load a pair of PEM files, to be kept fresh with `watch`; raises CertificateError."""
        made = cls(*_read(certificate, key), alpn)
        made._files = (certificate, key)
        return made

    @property
    def not_after(self) -> datetime:
        """When the newest certificate expires."""
        return self._not_after

    def replace(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """Use this pair from the next handshake on; raises CertificateError, and keeps the old one otherwise."""
        fresh, not_after = server_context(certificate_pem, key_pem, self._alpn), _not_after(certificate_pem)
        self._current, self._not_after = fresh, not_after

    def reload_if_changed(self) -> bool:
        """Read the files again; True when a new pair is in use. One that does not fit is logged once and not used."""
        if self._files is None:
            return False
        try:
            pair = _read(*self._files)
            if pair == self._seen:
                return False
            self._seen = pair
            self.replace(*pair)
        except CertificateError as exc:
            log.warning("tls_reload_failed", reason=str(exc), keeps_until=self._not_after.isoformat())
            return False
        log.info("tls_reloaded", not_after=self._not_after.isoformat())
        return True

    async def watch(self, every_seconds: float = 10.0) -> None:
        """Look at the files for ever, as a task of the service. Kubernetes swaps mounted Secrets within a minute."""
        while True:
            await asyncio.sleep(every_seconds)
            await asyncio.to_thread(self.reload_if_changed)

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _outer: ssl.SSLContext) -> None:
        # Called for every handshake, also for clients that name no server.
        connection.context = self._current


def _read(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    try:
        return certificate.read_bytes(), key.read_bytes()
    except OSError as exc:
        raise CertificateError(f"{exc.filename} cannot be read: {exc.strerror}") from exc


def _not_after(certificate_pem: bytes) -> datetime:
    try:
        return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc
    except ValueError as exc:
        raise CertificateError(f"the certificate is not PEM: {exc}") from exc
