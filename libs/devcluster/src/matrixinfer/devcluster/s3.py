"""An S3 server over a folder (versitygw), and the little of the protocol that is needed to fill it.

Owns the server's command line and signed PUT requests. Refuses to own reading: the downloader is what reads, with a
client of its own. `sign` is AWS Signature Version 4 as a pure function.
"""

import hashlib
import hmac
import http.client
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from matrixinfer.devcluster.errors import ClusterError

__all__ = ["REGION", "ObjectStore", "command", "new_keys", "sign"]

REGION = "us-east-1"
_NOTHING = hashlib.sha256(b"").hexdigest()


def new_keys() -> tuple[str, str]:
    """Return a fresh access key and secret key."""
    return secrets.token_hex(10), secrets.token_hex(20)


def command(program: Path, address: str, folder: Path) -> list[str]:
    """Return the server's command line; the root user's keys come by environment (see `ObjectStore.server_env`)."""
    # Checksums go to a sidecar folder: not every file system keeps extended attributes.
    backend = ["posix", "--sidecar", str(folder / "metadata"), str(folder / "buckets")]
    return [str(program), "--port", address, "--region", REGION, "--quiet", "--keep-alive", *backend]


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A server's URL and the keys that open it."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def server_env(self) -> dict[str, str]:
        """The environment that gives the server these keys."""
        return {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}

    @property
    def client_env(self) -> dict[str, str]:
        """The environment by which S3 clients find these keys."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
        }

    def is_up(self) -> bool:
        """Whether the server answers."""
        try:
            self._request("GET", "/", b"", _NOTHING)
        except ClusterError:
            return False
        return True

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket; that it exists is fine."""
        self._request("PUT", f"/{bucket}", b"", _NOTHING, accepted=(200, 409))

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store an object."""
        self._request("PUT", f"/{bucket}/{key}", content, hashlib.sha256(content).hexdigest())

    def put_file(self, bucket: str, key: str, path: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        """Store a file as an object, without holding it in memory."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            self._request("PUT", f"/{bucket}/{key}", file, digest, size=path.stat().st_size)
        progress(path.stat().st_size)

    def _request(
        self,
        method: str,
        path: str,
        body: object,
        digest: str,
        *,
        size: int | None = None,
        accepted: tuple[int, ...] = (200,),
    ) -> None:
        parts = urlsplit(self.endpoint)
        encoded = quote(path, safe="/~")
        headers = sign(self, method, parts.netloc, encoded, digest, datetime.now(UTC))
        if size is not None:
            headers["Content-Length"] = str(size)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
        try:
            # http.client takes bytes and open files alike.
            connection.request(method, encoded, body, headers)  # type: ignore[arg-type]
            response = connection.getresponse()
            answer = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(f"no answer from the S3 server at {self.endpoint}: {error}") from error
        finally:
            connection.close()
        if response.status not in accepted:
            raise ClusterError(f"the S3 server answered {response.status} to {method} {path}: {answer[:300]}")


def sign(store: ObjectStore, method: str, host: str, path: str, payload_sha256: str, now: datetime) -> dict[str, str]:
    """Return the headers of a signed request without a query (AWS Signature Version 4)."""
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    headers: Mapping[str, str] = {"host": host, "x-amz-content-sha256": payload_sha256, "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join([method, path, "", *(f"{k}:{v}" for k, v in headers.items()), "", names, payload_sha256])
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{store.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={store.access_key}/{scope}"
    return {
        "Host": host,
        "x-amz-content-sha256": payload_sha256,
        "x-amz-date": stamp,
        "Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}",
    }
