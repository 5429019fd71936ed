"""Objects of an S3 store, any store that speaks the protocol: `s3://bucket/prefix`, `obs://bucket/prefix`.

Lists with sizes and etags, asks each object for its checksum, reads ranges that are pinned to the etag. Retries
belong to the caller, so the client's own are off. The traps: an etag is an md5 only for objects uploaded in one part
and not encrypted with a managed key; and a client without any credentials would look for a cloud's metadata
service, then fail, where a public bucket needs an unsigned request.
"""

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as StoreConnectionError

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.uri import Bucket
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError

__all__ = ["S3Access", "S3Source", "expected_of"]

_CHUNK_BYTES = 1 << 20
_DENIED = frozenset(
    (
        "AccessDenied",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    )
)
_MISSING = frozenset(("NoSuchBucket", "NoSuchKey", "NotFound"))
_CHANGED = frozenset(("PreconditionFailed", "InvalidRange"))
_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}-[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach the store. Empty keys mean the usual places (web identity, instance role), then no signature."""

    endpoint: str = ""
    region: str = ""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    anonymous: bool = False
    ca_bundle: str = ""
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    connections: int = 16


class S3Source:
    """One prefix, or one object, of one bucket."""

    def __init__(self, location: Bucket, access: S3Access) -> None:
        if location.needs_endpoint and not access.endpoint:
            raise DownloadError(Cause.BAD_REQUEST, "obs:// needs the store's address in the variable ENDPOINT")
        self._location = location
        self._name = f"s3://{location.bucket}/{location.prefix}"
        self._connections = access.connections
        self._client = _client(access)
        self._keys: dict[str, str] = {}

    def listing(self) -> Listing:
        """List the prefix; the revision is a hash over names, sizes and etags."""
        with _translated(self._name):
            objects = list(self._objects())
            self._keys = {self._path(item["Key"]): item["Key"] for item in objects}
            # A few at once: each object's checksum is one small request.
            with ThreadPoolExecutor(self._connections, thread_name_prefix="s3-head") as pool:
                files = tuple(pool.map(self._file, objects))
        if not files:
            raise DownloadError(Cause.NOT_FOUND, f"{self._name} holds no object")
        rows = "\n".join(f"{f.path}\t{f.size}\t{f.version}" for f in sorted(files, key=lambda f: f.path))
        return Listing("listing-" + sha256(rows.encode()).hexdigest()[:16], files)

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[Iterable[bytes]]:
        """Open one range of one object, provided that it still has the etag that was listed."""
        pinned = {"IfMatch": file.version} if file.version else {}
        with _translated(f"{self._name} ({file.path})"):
            answer = self._client.get_object(
                Bucket=self._location.bucket,
                Key=self._keys[file.path],
                Range=f"bytes={part.offset}-{part.end - 1}",
                **pinned,
            )
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206 and part.length != file.size:
                raise DownloadError(Cause.UNREACHABLE, f"{self._name}: the store does not serve ranges")
            body = answer["Body"]
            try:
                yield body.iter_chunks(_CHUNK_BYTES)
            finally:
                body.close()

    def _objects(self) -> Iterator[Mapping[str, Any]]:
        prefix = self._location.prefix
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._location.bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                key = item["Key"]
                inside = not prefix or key == prefix or key.startswith(prefix + "/")
                # A key that ends with a slash is a console's idea of a folder.
                if inside and not key.endswith("/"):
                    yield item

    def _file(self, item: Mapping[str, Any]) -> SourceFile:
        head = self._client.head_object(Bucket=self._location.bucket, Key=item["Key"], ChecksumMode="ENABLED")
        return SourceFile(
            path=self._path(item["Key"]),
            size=int(head["ContentLength"]),
            version=str(head.get("ETag", "")),
            expected=expected_of(head, lambda: self._part_bytes(item["Key"])),
        )

    def _part_bytes(self, key: str) -> int:
        try:
            first = self._client.head_object(Bucket=self._location.bucket, Key=key, PartNumber=1)
        except ClientError:
            # Not every store knows parts after the upload; then nothing but the size is vouched for.
            return 0
        return int(first["ContentLength"])

    def _path(self, key: str) -> str:
        prefix = self._location.prefix
        if key == prefix:
            return key.rsplit("/", 1)[-1]
        return key[len(prefix) + 1 :] if prefix else key


def expected_of(head: Mapping[str, Any], part_bytes: Callable[[], int]) -> Expected | None:
    """Return what the answer to a HEAD vouches for; `part_bytes` asks for the part size, 0 means unknown."""
    checksum = head.get("ChecksumSHA256")
    if checksum and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" and "-" not in checksum:
        return Expected(Algorithm.SHA256, base64.b64decode(checksum).hex())
    if head.get("ServerSideEncryption", "AES256") != "AES256" or head.get("SSECustomerAlgorithm"):
        return None
    etag = str(head.get("ETag", "")).strip('"').lower()
    if _MD5.fullmatch(etag):
        return Expected(Algorithm.MD5, etag)
    if _MD5_OF_PARTS.fullmatch(etag) and (size := part_bytes()):
        # Parts of different sizes cannot be told from outside: a value that cannot fit is not held against the object.
        fits = -(-int(head["ContentLength"]) // size) == int(etag.rsplit("-", 1)[1])
        return Expected(Algorithm.MD5_OF_PARTS, etag, size) if fits else None
    return None


def _client(access: S3Access) -> Any:  # boto3 makes its clients at run time; they have no static type
    session = boto3.session.Session(
        aws_access_key_id=access.access_key or None,
        aws_secret_access_key=access.secret_key or None,
        aws_session_token=access.session_token or None,
        region_name=access.region or None,
    )
    with _translated("the store"):
        unsigned = access.anonymous or session.get_credentials() is None
        config = Config(
            connect_timeout=access.connect_seconds,
            read_timeout=access.read_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=access.connections,
            signature_version=UNSIGNED if unsigned else "s3v4",
            # A store of one's own seldom has a name for every bucket.
            s3={"addressing_style": "path" if access.endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            return session.client(
                "s3",
                endpoint_url=access.endpoint or None,
                region_name=session.region_name or "us-east-1",
                verify=access.ca_bundle or None,
                config=config,
            )
        except ValueError as exc:
            raise DownloadError(
                Cause.BAD_REQUEST, "ENDPOINT is not the address of a store; write https://host"
            ) from exc


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as exc:
        raise _from_answer(what, exc) from exc
    except (NoCredentialsError, PartialCredentialsError) as exc:
        raise DownloadError(
            Cause.ACCESS_DENIED, f"{what} needs credentials: set ACCESS_KEY and SECRET_KEY from a Secret"
        ) from exc
    except EndpointConnectionError as exc:
        raise TransientError(f"{what}: no connection to the store") from exc
    except (StoreConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError) as exc:
        raise TransientError(f"{what}: {type(exc).__name__}") from exc
    except BotoCoreError as exc:
        # The text may hold what was configured, so only the kind of the error is shown.
        raise DownloadError(
            Cause.BAD_REQUEST, f"{what}: the client refused the request ({type(exc).__name__})"
        ) from exc


def _from_answer(what: str, exc: ClientError) -> DownloadError:
    error = exc.response.get("Error", {})
    code = str(error.get("Code", ""))
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _DENIED or status in (401, 403):
        return DownloadError(Cause.ACCESS_DENIED, f"{what}: the store refused the request ({code}); check the Secret")
    if code in _MISSING or status == 404:
        return DownloadError(Cause.NOT_FOUND, f"{what} does not exist ({code})")
    if code in _CHANGED or status in (412, 416):
        return DownloadError(Cause.SOURCE_CHANGED, f"{what} changed while it was being downloaded")
    if status in (408, 429) or status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling"):
        return TransientError(f"{what}: the store answered {status} {code}", retry_after=_retry_after(exc))
    return DownloadError(Cause.BAD_REQUEST, f"{what}: the store answered {status} {code}")


def _retry_after(exc: ClientError) -> float | None:
    value = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return float(value) if value.isdigit() else None
