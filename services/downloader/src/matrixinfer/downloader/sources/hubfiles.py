"""The files of one commit of a model repository on a hub, read by ranges without the hub's client.

Its download functions keep nothing of a killed process and check sizes only, and it takes most of a second to load. A
hub sends large files from elsewhere; the token stays at home, and so do we unless the place is allowed. The trap: its
storage answers 403 when a signature has expired.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.redirects import DEFAULT_HOSTS, may_redirect
from matrixinfer.downloader.core.uri import HubRepo
from matrixinfer.downloader.core.verify import Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.sources.ranged import RangedBody, body_of, range_header, translated
from matrixinfer.downloader.wire.http import Answer, Client, origin_of

__all__ = ["AGENT", "HubAccess", "HubFiles", "from_answer"]

AGENT = "matrixinfer-downloader"
_PUBLIC_ENDPOINT = "https://huggingface.co"
# How storages say that an address has expired, or is not theirs: nothing about what a token may read.
_NOT_SIGNED_WELL = frozenset((400, 401, 403, 410))


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How to reach the hub; an empty endpoint is the public one, an empty token reads what is public."""

    endpoint: str = ""
    token: str = field(default="", repr=False)
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    ca_bundle: str = ""
    redirect_hosts: tuple[str, ...] = DEFAULT_HOSTS


class HubFiles:
    """The files of one commit, which the revision names, or which is found out by a listing."""

    def __init__(self, location: HubRepo, access: HubAccess) -> None:
        self.repo = location.repo
        self.revision = location.revision
        self.commit = location.revision
        self.has_token = bool(access.token)
        self._endpoint = access.endpoint.rstrip("/") or _PUBLIC_ENDPOINT
        self._token = access.token
        self._client = Client(
            agent=AGENT,
            connect_seconds=access.connect_seconds,
            read_seconds=access.read_seconds,
            ca_bundle=access.ca_bundle,
            may_redirect=partial(may_redirect, access.redirect_hosts),
        )
        self._places: dict[str, str] = {}

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def listing(self) -> Listing:
        """Nothing: who reads for others is told what there is."""
        return Listing(self.commit, ())

    def url_of(self, path: str) -> str:
        """Where the hub has a file, as its client would ask for it."""
        return f"{self._endpoint}/{self.repo}/resolve/{self.commit}/{quote(path)}"

    def promise(self, file: SourceFile) -> Expected | None:
        """Nothing that the listing did not say."""
        return file.expected

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[RangedBody]:
        """Open one range of one file of the commit."""
        what = f"{self.name} ({file.path})"
        with self._answering(file, range_header(file, part), what) as answer:
            yield body_of(answer, file, part, what)

    def abort(self) -> None:
        """End every request that waits."""
        self._client.abort()

    @contextmanager
    def _answering(self, file: SourceFile, headers: Mapping[str, str], what: str) -> Iterator[Answer]:
        """Ask where the hub sent us last for this file, then the hub: such addresses are signed, and expire."""
        known = self._places.pop(file.path, None)
        if known is not None:
            with translated(what), self._client.exchange("GET", known, headers) as answer:
                if answer.status in (200, 206):
                    self._places[file.path] = known
                    yield answer
                    return
        url = self.url_of(file.path)
        asked = {**headers, "Authorization": f"Bearer {self._token}"} if self._token else dict(headers)
        with translated(what), self._client.exchange("GET", url, asked) as answer:
            is_elsewhere = origin_of(answer.url) != origin_of(url)
            if is_elsewhere and answer.status in _NOT_SIGNED_WELL:
                raise TransientError(f"{what}: the hub's storage answered {answer.status} to what the hub just signed")
            if answer.status not in (200, 206):
                raise from_answer(what, answer.status, answer.headers, answer.retry_after, has_token=self.has_token)
            if is_elsewhere:
                self._places[file.path] = answer.url
            yield answer


def from_answer(
    what: str, status: int, headers: Mapping[str, str], retry_after: float | None, *, has_token: bool
) -> DownloadError:
    """Return what an answer means that is not one of content."""
    code = headers.get("x-error-code", "")
    if code in ("RevisionNotFound", "EntryNotFound"):
        thing = "revision" if code == "RevisionNotFound" else "file"
        return DownloadError(Cause.NOT_FOUND, f"{what}: the hub knows the repository but not this {thing}")
    if code == "GatedRepo":
        owner = "with the account of HF_TOKEN" if has_token else "and set HF_TOKEN from a Secret"
        return DownloadError(
            Cause.ACCESS_DENIED, f"{what}: the repository is gated; ask for access on its page of the hub, {owner}"
        )
    if code == "DisabledRepo":
        return DownloadError(Cause.ACCESS_DENIED, f"{what}: the hub has disabled the repository for everybody")
    if status in (401, 403):
        fix = (
            "the token may not read it, or it does not exist"
            if has_token
            else "set HF_TOKEN from a Secret if it is private"
        )
        return DownloadError(Cause.ACCESS_DENIED, f"{what}: the hub answered {status}; {fix}")
    if code == "RepoNotFound" or status == 404:
        return DownloadError(Cause.NOT_FOUND, f"{what} does not exist on the hub")
    if status == 416:
        return DownloadError(Cause.INTEGRITY, f"{what}: the file is shorter than the hub listed it")
    if status in (408, 429) or status >= 500:
        return TransientError(f"{what}: the hub answered {status}", retry_after=retry_after)
    return DownloadError(Cause.UNREACHABLE, f"{what}: the hub answered {status}")
