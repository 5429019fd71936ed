"""Files behind plain URLs: how they are asked for and what answers mean, for sources that only differ in their listing.

A range is pinned with If-Range to the validator of the first answer where there is one. What vouches for the content
is the listing; a server that sends another file of the same size is found out there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from matrixinfer.downloader.core.manifest import SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.redirects import DEFAULT_HOSTS, may_redirect
from matrixinfer.downloader.core.verify import Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.sources.ranged import RangedBody, body_of, range_header, translated
from matrixinfer.downloader.wire.http import Answer, Client

__all__ = ["WebAccess", "WebFiles"]

_AGENT = "matrixinfer-downloader"
_LISTING_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class WebAccess:
    """How to reach a server; `headers` say who we are, and go nowhere else."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_bundle: str = ""
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    redirect_hosts: tuple[str, ...] = DEFAULT_HOSTS


class WebFiles:
    """Files of one server."""

    def __init__(self, name: str, secret_hint: str, access: WebAccess, url_of: Callable[[SourceFile], str]) -> None:
        """`secret_hint` is what to set where the server refuses us."""
        self._name = name
        self._secret_hint = secret_hint
        self._access = access
        self._url_of = url_of
        self._client = Client(
            agent=_AGENT,
            connect_seconds=access.connect_seconds,
            read_seconds=access.read_seconds,
            ca_bundle=access.ca_bundle,
            may_redirect=partial(may_redirect, access.redirect_hosts),
        )
        self._validators: dict[str, str] = {}

    def text(self, url: str) -> bytes | None:
        """Return a small document; None when there is none."""
        with translated(self._name), self._client.exchange("GET", url, self._access.headers) as answer:
            if answer.status == 404:
                return None
            self._refuse(answer, self._name)
            return answer.read(_LISTING_BYTES)

    def size(self, url: str, what: str) -> int:
        """Ask for the length of a file."""
        name = f"{self._name} ({what})"
        with translated(name), self._client.exchange("HEAD", url, self._access.headers) as answer:
            self._refuse(answer, name)
            given = answer.headers.get("content-length", "")
            if not given.isdigit():
                raise DownloadError(Cause.UNREACHABLE, f"{name}: the server does not tell its length")
            return int(given)

    def promise(self, file: SourceFile) -> Expected | None:
        """Nothing that the listing did not say."""
        return file.expected

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[RangedBody]:
        """Open one range of one file."""
        what = f"{self._name} ({file.path})"
        headers = {**self._access.headers, **range_header(file, part)}
        if "Range" in headers and file.path in self._validators:
            headers["If-Range"] = self._validators[file.path]
        with translated(what), self._client.exchange("GET", self._url_of(file), headers) as answer:
            self._refuse(answer, what)
            etag = answer.headers.get("etag", "")
            if etag and not etag.startswith("W/") and self._validators.setdefault(file.path, etag) != etag:
                self._validators.pop(file.path)
                raise DownloadError(Cause.SOURCE_CHANGED, f"{what} changed while it was being downloaded")
            yield body_of(answer, file, part, what)

    def abort(self) -> None:
        """End every request that waits."""
        self._client.abort()

    def _refuse(self, answer: Answer, what: str) -> None:
        status = answer.status
        if status in (200, 206):
            return
        if status in (401, 403):
            raise DownloadError(Cause.ACCESS_DENIED, f"{what}: the server answered {status}; {self._secret_hint}")
        if status in (404, 410):
            raise DownloadError(Cause.NOT_FOUND, f"{what} does not exist")
        if status == 416:
            raise DownloadError(Cause.INTEGRITY, f"{what}: the file is shorter than listed")
        if status in (408, 429) or status >= 500:
            raise TransientError(f"{what}: the server answered {status}", retry_after=answer.retry_after)
        raise DownloadError(Cause.UNREACHABLE, f"{what}: the server answered {status}")
