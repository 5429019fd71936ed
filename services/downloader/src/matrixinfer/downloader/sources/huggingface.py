"""A model repository on a hub: `hf://organisation/name[@revision]`, listed with the huggingface_hub client.

The client resolves the revision to a commit and lists the tree with hashes; the bytes are read by `hubfiles`. All that
comes after the first request names the commit, so a branch that moves changes nothing. The traps: a hub answers 401 for
a repository that does not exist; and the client's own helpers return a folder that is half full when the hub is away,
so none of them is used.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.uri import HubRepo
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.sources.hubfiles import AGENT, HubAccess, HubFiles, from_answer

__all__ = ["HubSource"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(HubFiles):
    """One repository at one revision. The client keeps one connection pool per process: one source per process."""

    def __init__(self, location: HubRepo, access: HubAccess) -> None:
        super().__init__(location, access)
        # False, not None: None would read a token that somebody left in the home folder.
        self._api = HfApi(endpoint=access.endpoint.rstrip("/") or None, token=access.token or False, library_name=AGENT)
        self._connect_seconds = access.connect_seconds
        timeout = httpx2.Timeout(access.read_seconds, connect=access.connect_seconds)
        limits = httpx2.Limits(max_connections=2)
        set_client_factory(lambda: httpx2.Client(timeout=timeout, limits=limits, follow_redirects=True))

    def listing(self) -> Listing:
        """Resolve the revision to a commit and list its files with the hashes the hub vouches for."""
        with self._translated():
            try:
                self.commit = self._resolve()
                tree = self._api.list_repo_tree(self.repo, recursive=True, revision=self.commit)
                return Listing(self.commit, tuple(_file(item) for item in tree if isinstance(item, RepoFile)))
            except (KeyError, TypeError, AttributeError, JSONDecodeError) as exc:
                raise DownloadError(
                    Cause.UNREACHABLE,
                    f"{self.name}: the endpoint does not speak the hub's protocol ({type(exc).__name__})",
                ) from exc

    def _resolve(self) -> str:
        info = self._api.repo_info(self.repo, revision=self.revision or None, timeout=self._connect_seconds)
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise DownloadError(Cause.NOT_FOUND, f"the hub names no commit for {self.name}")
        return commit

    @contextmanager
    def _translated(self) -> Iterator[None]:
        what = self.name
        try:
            yield
        except (HFValidationError, OfflineModeIsEnabled) as exc:
            raise DownloadError(Cause.BAD_REQUEST, f"{what}: {exc}") from exc
        except HfHubHTTPError as exc:
            headers = exc.response.headers
            asked = headers.get("Retry-After", "")
            raise from_answer(
                what,
                exc.response.status_code,
                {name.lower(): value for name, value in headers.items()},
                float(asked) if asked.isdigit() else None,
                has_token=self.has_token,
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
