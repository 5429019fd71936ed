"""`http(s)://host/folder`: files of a web server, named by a manifest that lies beside them.

The manifest is the first of these that is there: READY (what this service publishes, so any folder of a cache can be
served), `manifest.json` (`{"files": [{"path", "size", "sha256"}]}`), `SHA256SUMS` (what `sha256sum` writes). A URI
may also name the manifest itself. The trap: without a manifest there is no telling what belongs to a model, nor
whether it is whole, so a folder without one is not fetched.
"""

import json
import re
from hashlib import sha256
from urllib.parse import quote

from matrixinfer.downloader.core.manifest import READY_NAME, Listing, SourceFile
from matrixinfer.downloader.core.uri import WebFolder
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.web import WebAccess, WebFiles

__all__ = ["WebsiteSource"]

_SUMS = "SHA256SUMS"
_NAMES = (READY_NAME, "manifest.json", _SUMS)
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class WebsiteSource(WebFiles):
    """One folder of one server."""

    def __init__(self, location: WebFolder, access: WebAccess) -> None:
        folder, _, last = location.url.rpartition("/")
        self._names = (last,) if last in _NAMES else _NAMES
        self._base = folder if last in _NAMES else location.url
        super().__init__(location.url, "set HTTP_TOKEN from a Secret", access, lambda file: self._url(file.path))

    def listing(self) -> Listing:
        """Read the manifest; the revision is its hash."""
        for name in self._names:
            text = self.text(f"{self._base}/{name}")
            if text is not None:
                files = self._sums(text) if name == _SUMS else _files(self._base, text)
                return Listing("manifest-" + sha256(text).hexdigest()[:16], files)
        raise DownloadError(
            Cause.NOT_FOUND, f"{self._base} has no manifest; put one of {', '.join(_NAMES)} beside the files"
        )

    def _sums(self, text: bytes) -> tuple[SourceFile, ...]:
        found = []
        for line in text.decode(errors="replace").splitlines():
            if not line.strip():
                continue
            match = _SUM_LINE.fullmatch(line)
            if match is None:
                raise _unreadable(self._base)
            path = match[2].removeprefix("./")
            found.append(_file(path, self.size(self._url(path), path), match[1].lower()))
        return tuple(found)

    def _url(self, path: str) -> str:
        return f"{self._base}/{quote(path)}"


def _files(base: str, text: bytes) -> tuple[SourceFile, ...]:
    try:
        rows = json.loads(text)["files"]
        files = tuple(_file(str(row["path"]), int(row["size"]), str(row["sha256"]).lower()) for row in rows)
    except (ValueError, KeyError, TypeError) as exc:
        raise _unreadable(base) from exc
    if any(file.size < 0 or not _SHA256.fullmatch(file.version) for file in files):
        raise _unreadable(base)
    return files


def _file(path: str, size: int, digest: str) -> SourceFile:
    return SourceFile(path, size, digest, Expected(Algorithm.SHA256, digest))


def _unreadable(base: str) -> DownloadError:
    return DownloadError(Cause.UNREACHABLE, f"{base}: its manifest is not one; each file needs path, size and sha256")
