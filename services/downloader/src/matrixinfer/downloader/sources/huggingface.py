"""A model repository on a hub: `hf://organisation/name[@revision]`, read with the huggingface_hub client.

The client resolves the revision to a commit, lists the tree with hashes, and brings addresses, headers, error meanings
and its connection pool; the bytes go through ranges into our own files, because its download functions keep nothing of
a killed process and check sizes only. Everything after the first request names the commit, so a branch that moves
changes nothing. The traps: a hub answers 401 for a repository that does not exist; and the client's own helpers
return a folder that is half full when the hub is away, so none of them is used.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import JSONDecodeError

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status, set_client_factory
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.uri import HubRepo
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError

__all__ = ["HubAccess", "HubSource"]

_CHUNK_BYTES = 1 << 20
_AGENT = "matrixinfer-downloader"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How to reach the hub; an empty endpoint is the public one, an empty token reads what is public."""

    endpoint: str = ""
    token: str = field(default="", repr=False)
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    connections: int = 16


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
        limits = httpx2.Limits(max_connections=access.connections)
        set_client_factory(lambda: httpx2.Client(timeout=timeout, limits=limits, follow_redirects=True))

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

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[Iterable[bytes]]:
        """Open one range of one file of the commit."""
        url = hf_hub_url(self._repo, file.path, revision=self._commit, endpoint=self._endpoint)
        # Compressed bytes have no ranges, and their length is another.
        headers = {"Range": f"bytes={part.offset}-{part.end - 1}", "Accept-Encoding": "identity", "User-Agent": _AGENT}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        with self._translated(file.path), get_session().stream("GET", url, headers=headers) as answer:
            hf_raise_for_status(answer)
            chunks = answer.iter_raw(_CHUNK_BYTES)
            if answer.status_code == 206:
                _check_range(answer, file, part)
                yield chunks
            else:
                # The server ignored the range: the whole file comes, of which this part is taken.
                yield _cut(chunks, part)

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
    def _translated(self, path: str = "") -> Iterator[None]:
        what = f"{self._name} ({path})" if path else self._name
        try:
            yield
        except (HFValidationError, OfflineModeIsEnabled) as exc:
            raise DownloadError(Cause.BAD_REQUEST, f"{what}: {exc}") from exc
        except HfHubHTTPError as exc:
            raise _from_answer(what, exc, has_token=bool(self._token)) from exc
        except httpx2.TimeoutException as exc:
            raise TransientError(f"{what}: the hub did not answer in time ({type(exc).__name__})") from exc
        except httpx2.HTTPError as exc:
            raise TransientError(f"{what}: the connection to the hub failed ({type(exc).__name__})") from exc


def _file(item: RepoFile) -> SourceFile:
    if item.lfs is not None:
        sha256 = item.lfs.sha256
        return SourceFile(item.path, int(item.lfs.size), sha256, Expected(Algorithm.SHA256, sha256))
    return SourceFile(item.path, int(item.size), item.blob_id, Expected(Algorithm.GIT_BLOB, item.blob_id))


def _check_range(answer: httpx2.Response, file: SourceFile, part: Part) -> None:
    wanted = f"bytes {part.offset}-{part.end - 1}/{file.size}"
    if (given := answer.headers.get("Content-Range", "")) != wanted:
        raise DownloadError(
            Cause.INTEGRITY, f"{file.path}: asked for {wanted!r}, the hub answered {given!r}; its size is not as listed"
        )


def _cut(chunks: Iterable[bytes], part: Part) -> Iterator[bytes]:
    position = 0
    for chunk in chunks:
        inside = chunk[max(0, part.offset - position) : max(0, part.end - position)]
        position += len(chunk)
        if inside:
            yield inside
        if position >= part.end:
            return


def _from_answer(what: str, exc: HfHubHTTPError, *, has_token: bool) -> DownloadError:
    status = exc.response.status_code
    if isinstance(exc, GatedRepoError | DisabledRepoError) or status in (401, 403):
        fix = (
            "the token may not read it, or it does not exist"
            if has_token
            else "set HF_TOKEN from a Secret if it is private"
        )
        return DownloadError(Cause.ACCESS_DENIED, f"{what}: the hub answered {status}; {fix}")
    if isinstance(exc, RevisionNotFoundError):
        return DownloadError(Cause.NOT_FOUND, f"{what}: the hub knows the repository but not this revision")
    if isinstance(exc, RepositoryNotFoundError) or status == 404:
        return DownloadError(Cause.NOT_FOUND, f"{what} does not exist on the hub")
    if status == 416:
        return DownloadError(Cause.INTEGRITY, f"{what}: the file is shorter than the hub listed it")
    if status in (408, 429) or status >= 500:
        return TransientError(f"{what}: the hub answered {status}", retry_after=_retry_after(exc))
    return DownloadError(Cause.UNREACHABLE, f"{what}: the hub answered {status}")


def _retry_after(exc: HfHubHTTPError) -> float | None:
    value = exc.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
