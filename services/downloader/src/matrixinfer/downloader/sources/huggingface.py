"""A model repository on a hub: `hf://organisation/name[@revision]`, read with the huggingface_hub client.

The client resolves the revision to a commit, lists the tree with hashes and knows the addresses; the bytes go through
ranges into our own files, because its download functions keep nothing of a killed process and check sizes only. A hub
sends large files from elsewhere; the token stays at home, and so do we unless the place is allowed. Everything after
the first request names the commit, so a branch that moves changes nothing. The traps: a hub answers 401 for a
repository that does not exist; its storage answers 403 when a signature has expired; and the client's own helpers
return a folder that is half full when the hub is away, so none of them is used.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from json import JSONDecodeError

import httpx2
from huggingface_hub import HfApi, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.redirects import DEFAULT_HOSTS, may_redirect
from matrixinfer.downloader.core.uri import HubRepo
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.sources.ranged import RangedBody, body_of, range_header, translated
from matrixinfer.downloader.wire.http import Answer, Client, origin_of

__all__ = ["HubAccess", "HubSource"]

_AGENT = "matrixinfer-downloader"
_COMMIT = re.compile(r"[0-9a-f]{40}")
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


class HubSource:
    """One repository at one revision. The client keeps one connection pool per process: one source per process."""

    def __init__(self, location: HubRepo, access: HubAccess) -> None:
        self._repo = location.repo
        self._revision = location.revision
        self._commit = ""
        self._endpoint = access.endpoint.rstrip("/") or None
        # False, not None: None would read a token that somebody left in the home folder.
        self._token = access.token or False
        self._api = HfApi(endpoint=self._endpoint, token=self._token, library_name=_AGENT)
        self._connect_seconds = access.connect_seconds
        timeout = httpx2.Timeout(access.read_seconds, connect=access.connect_seconds)
        limits = httpx2.Limits(max_connections=2)
        set_client_factory(lambda: httpx2.Client(timeout=timeout, limits=limits, follow_redirects=True))
        self._client = Client(
            agent=_AGENT,
            connect_seconds=access.connect_seconds,
            read_seconds=access.read_seconds,
            ca_bundle=access.ca_bundle,
            may_redirect=partial(may_redirect, access.redirect_hosts),
        )
        self._places: dict[str, str] = {}

    def listing(self) -> Listing:
        """Resolve the revision to a commit and list its files with the hashes the hub vouches for."""
        with self._translated():
            try:
                self._commit = self._resolve()
                tree = self._api.list_repo_tree(self._repo, recursive=True, revision=self._commit)
                return Listing(self._commit, tuple(_file(item) for item in tree if isinstance(item, RepoFile)))
            except (KeyError, TypeError, AttributeError, JSONDecodeError) as exc:
                raise DownloadError(
                    Cause.UNREACHABLE,
                    f"{self._name}: the endpoint does not speak the hub's protocol ({type(exc).__name__})",
                ) from exc

    def promise(self, file: SourceFile) -> Expected | None:
        """Nothing that the listing did not say."""
        return file.expected

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[RangedBody]:
        """Open one range of one file of the commit."""
        what = f"{self._name} ({file.path})"
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
        url = hf_hub_url(self._repo, file.path, revision=self._commit, endpoint=self._endpoint)
        asked = {**headers, "Authorization": f"Bearer {self._token}"} if self._token else dict(headers)
        with translated(what), self._client.exchange("GET", url, asked) as answer:
            is_elsewhere = origin_of(answer.url) != origin_of(url)
            if is_elsewhere and answer.status in _NOT_SIGNED_WELL:
                raise TransientError(f"{what}: the hub's storage answered {answer.status} to what the hub just signed")
            if answer.status not in (200, 206):
                raise _from_answer(what, answer.status, answer.headers, answer.retry_after, has_token=bool(self._token))
            if is_elsewhere:
                self._places[file.path] = answer.url
            yield answer

    def _resolve(self) -> str:
        info = self._api.repo_info(self._repo, revision=self._revision or None, timeout=self._connect_seconds)
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise DownloadError(Cause.NOT_FOUND, f"the hub names no commit for {self._name}")
        return commit

    @property
    def _name(self) -> str:
        return f"hf://{self._repo}" + (f"@{self._revision}" if self._revision else "")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        what = self._name
        try:
            yield
        except (HFValidationError, OfflineModeIsEnabled) as exc:
            raise DownloadError(Cause.BAD_REQUEST, f"{what}: {exc}") from exc
        except HfHubHTTPError as exc:
            headers = exc.response.headers
            asked = headers.get("Retry-After", "")
            raise _from_answer(
                what,
                exc.response.status_code,
                {name.lower(): value for name, value in headers.items()},
                float(asked) if asked.isdigit() else None,
                has_token=bool(self._token),
            ) from exc
        except httpx2.TimeoutException as exc:
            raise TransientError(f"{what}: the hub did not answer in time ({type(exc).__name__})") from exc
        except httpx2.HTTPError as exc:
            raise TransientError(f"{what}: the connection to the hub failed ({type(exc).__name__})") from exc


def _file(item: RepoFile) -> SourceFile:
    if item.lfs is not None:
        sha256 = item.lfs.sha256
        return SourceFile(item.path, int(item.lfs.size), sha256, Expected(Algorithm.SHA256, sha256))
    return SourceFile(item.path, int(item.size), item.blob_id, Expected(Algorithm.GIT_BLOB, item.blob_id))


def _from_answer(
    what: str, status: int, headers: Mapping[str, str], retry_after: float | None, *, has_token: bool
) -> DownloadError:
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
