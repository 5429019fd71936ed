"""Objects of an S3 store, any store that speaks the protocol: `s3://bucket/prefix`, `obs://bucket/prefix`.

Lists with sizes and etags, learns checksums from the answers themselves, reads ranges that are pinned to the etag.
Retries belong to the caller. The traps: an etag is an md5 only for objects uploaded in one part and not encrypted with
a managed key; a client without any credentials would look for a cloud's metadata service, then fail, where a public
bucket needs an unsigned request; and a bucket of another region answers with a redirect that a signature does not
survive, so the request is signed anew for the region that the answer names.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal
from urllib.parse import unquote_plus, urlsplit
from xml.etree import ElementTree as ET

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.uri import Bucket
from matrixinfer.downloader.core.verify import Algorithm, Expected, hex_of_base64
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.ranged import RangedBody, body_of, range_header, translated
from matrixinfer.downloader.sources.refusals import Refusal
from matrixinfer.downloader.wire.credentials import Credentials
from matrixinfer.downloader.wire.http import Answer, Client, WireError, origin_of
from matrixinfer.downloader.wire.sigv4 import Keys, escaped_path, escaped_query, signed_headers

__all__ = ["Addressing", "S3Access", "S3Source", "expected_of"]

Addressing = Literal["auto", "path", "virtual"]

_AGENT = "matrixinfer-downloader"
_LISTING_BYTES = 16 << 20
_MOST_OBJECTS = 200_000
_PUBLIC_REGION = "us-east-1"
_CHECKSUM_MODE = {"x-amz-checksum-mode": "ENABLED"}
_MD5 = re.compile(r"[0-9a-f]{32}")
_OF_PARTS = re.compile(r"[0-9a-f]{32}-[1-9][0-9]*")
# In order of preference: what proves most first, then what costs least.
_CHECKSUMS = (
    ("x-amz-checksum-sha256", Algorithm.SHA256),
    ("x-amz-checksum-crc64nvme", Algorithm.CRC64NVME),
    ("x-amz-checksum-crc32c", Algorithm.CRC32C),
    ("x-amz-checksum-crc32", Algorithm.CRC32),
    ("x-amz-checksum-sha1", Algorithm.SHA1),
)


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach the store; an empty endpoint is the public one, without credentials requests are not signed."""

    credentials: Credentials
    endpoint: str = ""
    region: str = ""
    addressing: Addressing = "auto"
    ca_bundle: str = ""
    connect_seconds: float = 10.0
    read_seconds: float = 30.0


class S3Source:
    """One prefix, or one object, of one bucket."""

    def __init__(
        self, location: Bucket, access: S3Access, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        if location.needs_endpoint and not access.endpoint:
            raise DownloadError(Cause.BAD_REQUEST, "obs:// needs the store's address in the variable ENDPOINT")
        self._location = location
        self._name = f"s3://{location.bucket}/{location.prefix}"
        self._credentials = access.credentials
        self._now = now
        self._client = Client(
            agent=_AGENT,
            connect_seconds=access.connect_seconds,
            read_seconds=access.read_seconds,
            ca_bundle=access.ca_bundle,
        )
        self._access = access
        self._address = _address(location.bucket, access, access.region or _PUBLIC_REGION)

    def listing(self) -> Listing:
        """List the prefix; the revision is a hash over names, sizes and etags."""
        files: list[SourceFile] = []
        for found in self._objects():
            if len(files) >= _MOST_OBJECTS:
                raise DownloadError(Cause.BAD_REQUEST, f"{self._name} holds more than {_MOST_OBJECTS} objects")
            files.append(self._file(found))
        if not files:
            raise DownloadError(Cause.NOT_FOUND, f"{self._name} holds no object")
        rows = "\n".join(f"{f.path}\t{f.size}\t{f.version}" for f in sorted(files, key=lambda f: f.path))
        return Listing("listing-" + sha256(rows.encode()).hexdigest()[:16], tuple(files))

    def promise(self, file: SourceFile) -> Expected | None:
        """Ask for the checksum of an object that several requests bring."""
        key = self._key(file)
        with self._asked("HEAD", key, _CHECKSUM_MODE, {}, file.path) as answer:
            return expected_of(answer.headers, file.size, lambda: self._part_bytes(key))

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[RangedBody]:
        """Open one range of one object, provided that it still has the etag that was listed."""
        headers = {"If-Match": file.version} if file.version else {}
        whole = part.length == file.size
        headers |= _CHECKSUM_MODE if whole else range_header(file, part)
        with self._asked("GET", self._key(file), headers, {}, file.path) as answer:
            # A part size would cost another request, while this one is open.
            promise = expected_of(answer.headers, file.size, lambda: 0) if whole else None
            yield body_of(answer, file, part, f"{self._name} ({file.path})", promise)

    def keys(self, refused: Keys | None) -> Keys | None:
        """Return the keys in force, for another process; other ones than the store refused, if there are any."""
        if refused is not None:
            self._credentials.renewed(refused)
        return self._credentials.keys()

    def abort(self) -> None:
        """End every request that waits."""
        self._client.abort()

    @contextmanager
    def _asked(
        self, method: str, key: str, headers: Mapping[str, str], query: Mapping[str, str], what: str
    ) -> Iterator[Answer]:
        """Send one signed request; an answer that is none of content raises what it means."""
        name = f"{self._name} ({what})" if what else self._name
        moved = renewed = False
        while True:
            address, keys = self._address, self._credentials.keys()
            path = escaped_path(f"{address.path}/{key}" if key or not address.path else address.path)
            asked = escaped_query(query)
            sent = dict(headers)
            if keys is not None:
                host = origin_of(address.base).authority
                sent = signed_headers(keys, address.region, method, host, path, asked, headers, self._now())
            url = f"{address.base}{path}" + (f"?{asked}" if asked else "")
            with translated(name), self._client.exchange(method, url, sent) as answer:
                if answer.status < 300:
                    yield answer
                    return
                refusal = Refusal(answer.status, answer.headers, answer.read(), answer.retry_after)
            if not moved and refusal.region and refusal.region != address.region:
                moved = True
                self._address = _address(self._location.bucket, self._access, refusal.region)
            elif not renewed and keys is not None and refusal.may_be_expired and self._credentials.renewed(keys):
                renewed = True
            else:
                raise refusal.error(name, is_signed=keys is not None, now=self._now())

    def _objects(self) -> "Iterator[_Object]":
        prefix = self._location.prefix
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        token = ""
        while True:
            with self._asked(
                "GET", "", {}, {**query, **({"continuation-token": token} if token else {})}, ""
            ) as answer:
                body = answer.read(_LISTING_BYTES)
            page = _page(self._name, body)
            for found in page.objects:
                inside = not prefix or found.key == prefix or found.key.startswith(prefix + "/")
                # A key that ends with a slash is a console's idea of a folder.
                if inside and not found.key.endswith("/"):
                    yield found
            if not page.next_token or page.next_token == token:
                return
            token = page.next_token

    def _part_bytes(self, key: str) -> int:
        try:
            with self._asked("HEAD", key, {}, {"partNumber": "1"}, "") as answer:
                return int(answer.headers.get("content-length", "0"))
        except (DownloadError, ValueError):
            # Not every store knows parts after the upload; then nothing but the size is vouched for.
            return 0

    def _file(self, found: "_Object") -> SourceFile:
        prefix = self._location.prefix
        if found.key == prefix:
            return SourceFile(found.key.rsplit("/", 1)[-1], found.size, found.etag, place=found.key)
        return SourceFile(found.key[len(prefix) + 1 :] if prefix else found.key, found.size, found.etag)

    def _key(self, file: SourceFile) -> str:
        prefix = self._location.prefix
        return file.place or (f"{prefix}/{file.path}" if prefix else file.path)


def expected_of(headers: Mapping[str, str], size: int, part_bytes: Callable[[], int]) -> Expected | None:
    """Return what an answer vouches for; `part_bytes` asks for the part size, 0 means unknown."""
    for name, algorithm in _CHECKSUMS:
        value, _, parts = headers.get(name, "").partition("-")
        of_parts = bool(parts) or headers.get("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT"
        if value and not of_parts:
            return Expected(algorithm, _hex(value))
        if value and (found := _of_parts(algorithm, _hex(value), size, int(parts or 0), part_bytes)):
            return found
    if headers.get("x-amz-server-side-encryption", "AES256") != "AES256" or (
        "x-amz-server-side-encryption-customer-algorithm" in headers
    ):
        return None
    etag = headers.get("etag", "").strip('"').lower()
    if _MD5.fullmatch(etag):
        return Expected(Algorithm.MD5, etag)
    if _OF_PARTS.fullmatch(etag):
        value, _, parts = etag.partition("-")
        return _of_parts(Algorithm.MD5, value, size, int(parts), part_bytes)
    return None


def _of_parts(
    algorithm: Algorithm, value: str, size: int, parts: int, part_bytes: Callable[[], int]
) -> Expected | None:
    length = part_bytes()
    # Parts of different sizes cannot be told from outside: a value that cannot fit is not held against the object.
    fits = length > 0 and (not parts or -(-size // length) == parts)
    return Expected(algorithm, value, length) if fits else None


def _hex(value: str) -> str:
    try:
        return hex_of_base64(value)
    except ValueError:
        # It cannot be equal to anything, so the file is refused, and the message shows it.
        return value


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a bucket is: the base of its URLs, the path before its keys, and the region that signatures name."""

    base: str
    path: str
    region: str


def _address(bucket: str, access: S3Access, region: str) -> _Address:
    given = access.endpoint.rstrip("/")
    if given and "://" not in given:
        given = f"https://{given}"
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    base = given or f"https://s3.{region}.{domain}"
    try:
        origin = origin_of(base)
    except WireError as exc:
        raise DownloadError(Cause.BAD_REQUEST, "ENDPOINT is not the address of a store; write https://host") from exc
    above = urlsplit(base).path.rstrip("/")
    # A store of one's own seldom has a name for every bucket; a bucket with a dot has no certificate.
    by_path = access.addressing == "path" or (access.addressing == "auto" and bool(given or "." in bucket))
    if by_path:
        return _Address(f"{origin.scheme}://{origin.authority}", f"{above}/{bucket}", region)
    return _Address(f"{origin.scheme}://{bucket}.{origin.authority}", above, region)


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Page:
    objects: tuple[_Object, ...]
    next_token: str


def _page(name: str, body: bytes) -> _Page:
    try:
        # The parser bounds what entities may grow to, and the text is no longer than one page may be.
        root = ET.fromstring(body)  # noqa: S314
        space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
        is_url = root.findtext(f"{space}EncodingType") == "url"
        objects = tuple(
            _Object(
                _unescaped(item.findtext(f"{space}Key") or "", is_url=is_url),
                int(item.findtext(f"{space}Size") or 0),
                item.findtext(f"{space}ETag") or "",
            )
            for item in root.iter(f"{space}Contents")
        )
    except (ET.ParseError, ValueError) as exc:
        raise DownloadError(Cause.UNREACHABLE, f"{name}: the endpoint does not speak the store's protocol") from exc
    if not root.tag.endswith("ListBucketResult"):
        raise DownloadError(Cause.UNREACHABLE, f"{name}: the endpoint does not speak the store's protocol")
    return _Page(objects, root.findtext(f"{space}NextContinuationToken") or "")


def _unescaped(key: str, *, is_url: bool) -> str:
    return unquote_plus(key) if is_url else key
