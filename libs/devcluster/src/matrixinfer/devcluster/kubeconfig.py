"""Kubeconfig files: rendered here, read by kubectl, by the components and by our services alike.

Owns the format only. Certificates and tokens are embedded, so that a file can be copied and works anywhere that
reaches the server.
"""

import base64
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from matrixinfer.devcluster.pki import KeyPair

__all__ = ["Access", "Credentials", "read_access", "render", "write"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who calls: a client certificate (PEM) with its key, or a bearer token."""

    certificate: bytes = b""
    key: bytes = b""
    token: str = ""

    @classmethod
    def of(cls, pair: KeyPair) -> "Credentials":
        """Read a certificate and its key from their files."""
        return cls(certificate=pair.cert.read_bytes(), key=pair.key.read_bytes())


@dataclass(frozen=True, slots=True)
class Access:
    """A server, the authority (PEM) that vouches for it, and who calls."""

    server: str
    ca: bytes
    credentials: Credentials
    namespace: str = "default"


def render(access: Access) -> str:
    """Return the kubeconfig as YAML."""
    who = access.credentials
    user: dict[str, str] = {"token": who.token} if who.token else {}
    if who.certificate:
        user["client-certificate-data"] = _encoded(who.certificate)
        user["client-key-data"] = _encoded(who.key)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "devcluster",
                "cluster": {"server": access.server, "certificate-authority-data": _encoded(access.ca)},
            }
        ],
        "users": [{"name": "devcluster", "user": user}],
        "contexts": [
            {
                "name": "devcluster",
                "context": {"cluster": "devcluster", "user": "devcluster", "namespace": access.namespace},
            }
        ],
        "current-context": "devcluster",
    }
    return yaml.safe_dump(document, sort_keys=False)


def write(path: Path, access: Access) -> Path:
    """Write the kubeconfig with mode 0600, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(render(access))
    partial.replace(path)
    return path


def read_access(path: Path) -> Access:
    """Read the current context of a kubeconfig whose credentials are embedded, as `write` makes them."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    context = next(c["context"] for c in document["contexts"] if c["name"] == document["current-context"])
    cluster = next(c["cluster"] for c in document["clusters"] if c["name"] == context["cluster"])
    user = next(u["user"] for u in document["users"] if u["name"] == context["user"])
    return Access(
        server=cluster["server"],
        ca=base64.b64decode(cluster["certificate-authority-data"]),
        credentials=Credentials(
            certificate=base64.b64decode(user.get("client-certificate-data", "")),
            key=base64.b64decode(user.get("client-key-data", "")),
            token=user.get("token", ""),
        ),
        namespace=context.get("namespace", "default"),
    )


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
