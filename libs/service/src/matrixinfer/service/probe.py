"""The HEALTHCHECK of every image: `python -m matrixinfer.service.probe`; exit code 0 when ready, 1 when not.

Runs every few seconds in every container, so it imports almost nothing and speaks HTTP by hand. The port is
that of the service's own setting (`MATRIXINFER_<SERVICE>_ADMIN_PORT`), or 9090. `probe livez` asks another path.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence

__all__ = ["address", "main", "ready"]

_DEFAULT_PORT = 9090
_DEADLINE_SECONDS = 2.0
# Names the wildcard to replace it; nothing is bound here.
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port of this container's admin port, from the settings the service itself reads."""
    found = {suffix: _setting(environ, suffix) for suffix in ("_ADMIN_HOST", "_ADMIN_PORT")}
    host = found["_ADMIN_HOST"]
    return _WILDCARDS.get(host, host), int(found["_ADMIN_PORT"] or _DEFAULT_PORT)


def ready(host: str, port: int, path: str, deadline_seconds: float) -> tuple[bool, str]:
    """Ask the admin port; return whether it answered 200, and what it said."""
    try:
        with socket.create_connection((host, port), timeout=deadline_seconds) as connection:
            connection.settimeout(deadline_seconds)
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
    except OSError as exc:
        return False, f"{host}:{port} did not answer: {exc}"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return status == [b"200"], body.decode(errors="replace").strip()


def main(argv: Sequence[str]) -> int:
    """Probe once, print the answer, return the exit code."""
    path = "/" + (argv[0] if argv else "readyz").lstrip("/")
    ok, text = ready(*address(os.environ), path, _DEADLINE_SECONDS)
    sys.stdout.write(text + "\n")
    return 0 if ok else 1


def _setting(environ: Mapping[str, str], suffix: str) -> str:
    keys = sorted(k for k in environ if k.startswith("MATRIXINFER_") and k.endswith(suffix))
    return environ[keys[0]] if keys else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
