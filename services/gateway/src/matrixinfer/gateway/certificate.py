"""The gateway's own certificate: where it lies, and TLS made of it. Loaded by the supervisor, to refuse a bad one at
the start, and by every worker; each looks at the files by itself, so a new certificate needs no restart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matrixinfer.service.tls import ReloadingContext

__all__ = ["CertificateFiles", "load"]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files, and how often to look whether they have changed."""

    certificate: str
    key: str
    reload_seconds: float


def load(files: CertificateFiles) -> "ReloadingContext":
    """Return TLS for the inlet, to be kept fresh with `watch`. Raises CertificateError."""
    # Here, because a worker that speaks plain HTTP need not carry what reads certificates (8 MiB).
    from matrixinfer.service.tls import ReloadingContext

    return ReloadingContext.from_files(Path(files.certificate), Path(files.key), alpn=("http/1.1",))
