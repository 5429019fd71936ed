"""`ms://organisation/name[@revision]`: a model repository of ModelScope, through its HTTP interface.

Its listing has the size and sha256 of every file. The trap: it names branches and tags, not commits, so a revision may
move between listing and reading; what was listed is what is verified, and a file that differs ends the download.
"""

import json
from hashlib import sha256
from urllib.parse import urlencode

from matrixinfer.downloader.core.manifest import Listing, SourceFile
from matrixinfer.downloader.core.uri import ScopeRepo
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.web import WebAccess, WebFiles

__all__ = ["PUBLIC_ENDPOINT", "ModelScopeSource"]

PUBLIC_ENDPOINT = "https://www.modelscope.cn"
_DEFAULT_REVISION = "master"


class ModelScopeSource(WebFiles):
    """One repository at one revision."""

    def __init__(self, location: ScopeRepo, endpoint: str, access: WebAccess) -> None:
        self._repo = location.repo
        self._revision = location.revision or _DEFAULT_REVISION
        self._base = f"{(endpoint or PUBLIC_ENDPOINT).rstrip('/')}/api/v1/models/{location.repo}/repo"
        super().__init__(f"ms://{location.repo}", "set MS_TOKEN from a Secret if it is private", access, self._url)

    def listing(self) -> Listing:
        """List the repository; the revision is a hash over names and hashes."""
        text = self.text(f"{self._base}/files?{urlencode({'Revision': self._revision, 'Recursive': 'True'})}")
        if text is None:
            raise DownloadError(Cause.NOT_FOUND, f"ms://{self._repo}@{self._revision} does not exist")
        try:
            rows = json.loads(text)["Data"]["Files"]
            files = tuple(_file(row) for row in rows if row["Type"] != "tree")
        except (ValueError, KeyError, TypeError) as exc:
            raise DownloadError(
                Cause.UNREACHABLE, f"ms://{self._repo}: the endpoint does not speak ModelScope's protocol"
            ) from exc
        rows_text = "\n".join(f"{file.path}\t{file.version}" for file in sorted(files, key=lambda f: f.path))
        return Listing("listing-" + sha256(rows_text.encode()).hexdigest()[:16], files)

    def _url(self, file: SourceFile) -> str:
        return f"{self._base}?{urlencode({'Revision': self._revision, 'FilePath': file.path})}"


def _file(row: dict[str, object]) -> SourceFile:
    digest = str(row.get("Sha256") or "").lower()
    promise = Expected(Algorithm.SHA256, digest) if digest else None
    return SourceFile(str(row["Path"]), int(str(row["Size"])), digest or str(row.get("Revision") or ""), promise)
