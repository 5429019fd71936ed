"""What a model consists of: which files of a source, under which names, and the digest of the whole. Pure.

Owns the selection, the safety of names, the canonical digest and the READY document. The traps: names come from a
server that we do not trust, so each is checked before any byte is written; and the digest is for ever, so its
canonical form (JSON array of [path, size, "sha256:…"], sorted by path, no spaces, UTF-8) never changes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from matrixinfer.downloader.core.verify import Expected
from matrixinfer.downloader.errors import Cause, DownloadError

__all__ = [
    "READY_NAME",
    "WORK_PREFIX",
    "Listing",
    "Ready",
    "Selection",
    "SourceFile",
    "VerifiedFile",
    "digest",
    "parse_ready",
    "select",
]

READY_NAME = "READY"
"""The file that says, by being there, that all others are complete."""

WORK_PREFIX = ".matrixinfer"
"""Names that begin so belong to the downloader, in every folder it publishes into."""

_READY_FORMAT = 1
_UNPRINTABLE = re.compile(r"[\\\x00-\x1f\x7f]")
_NAME_BYTES = 255
_PATH_BYTES = 1024
_SHOWN = 5

# Weights that frameworks other than the one in use would read: many repositories carry all of them.
_BESIDE_SAFETENSORS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.msgpack",
    "*.h5",
    "*.ot",
    "*.gguf",
    "*.onnx",
    "original/*",
    "onnx/*",
)
_NEVER_NEEDED = (".gitattributes", ".gitignore", ".git/*", ".cache/*")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as the source lists it; `version` changes whenever its content may have (an etag, a blob id)."""

    path: str
    size: int
    version: str
    expected: Expected | None = None
    place: str = ""
    """What the source calls it, where its path does not tell."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds at one revision."""

    revision: str
    files: Sequence[SourceFile]


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to fetch, sorted by path, and those left out with the reason."""

    files: Sequence[SourceFile]
    skipped: Sequence[tuple[str, str]]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files to fetch."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """One file as it is on the volume; `sha256` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The content of READY: what is published here and where it came from."""

    source: str
    include: Sequence[str]
    exclude: Sequence[str]
    resolved_revision: str
    digest: str
    files: Sequence[VerifiedFile]
    published_at: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def answers(self, source: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
        """True when it is the publication of exactly this request."""
        return (self.source, tuple(self.include), tuple(self.exclude)) == (source, tuple(include), tuple(exclude))

    def to_json(self) -> bytes:
        """Return the document as it is written."""
        document = {
            "format": _READY_FORMAT,
            "source": self.source,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "resolvedRevision": self.resolved_revision,
            "digest": self.digest,
            "totalBytes": self.total_bytes,
            "fileCount": len(self.files),
            "publishedAt": self.published_at,
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def parse_ready(text: bytes) -> Ready | None:
    """Read a READY document; None for anything that is not one, or whose digest is not that of its own list."""
    try:
        document: dict[str, Any] = json.loads(text)
        if document["format"] != _READY_FORMAT:
            return None
        files = tuple(VerifiedFile(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in document["files"])
        ready = Ready(
            source=str(document["source"]),
            include=tuple(map(str, document["include"])),
            exclude=tuple(map(str, document["exclude"])),
            resolved_revision=str(document["resolvedRevision"]),
            digest=str(document["digest"]),
            files=files,
            published_at=str(document["publishedAt"]),
        )
    # It may come from anybody, nested as deep as they like.
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return ready if ready.digest == digest(files) and not _refusal(f.path for f in files) else None


def digest(files: Iterable[VerifiedFile]) -> str:
    """Return `sha256:…` over the canonical list of path, size and hash of all files."""
    rows = sorted([file.path, file.size, f"sha256:{file.sha256}"] for file in files)
    canonical = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def select(listing: Listing, include: Sequence[str], exclude: Sequence[str]) -> Selection:
    """Return what to fetch; raises DownloadError (UnsafePath, NothingSelected).

    A pattern is a shell glob over the whole path, in which `*` also crosses `/`; one without `/` is tried on the
    file's name too. `include` empty means all that an engine needs: without hidden files of git, and, where there are
    safetensors, without the same weights in other formats. With `include` given only what it names is taken.
    """
    if refusal := _refusal(file.path for file in listing.files):
        raise DownloadError(Cause.UNSAFE_PATH, refusal)
    has_safetensors = any(f.path.endswith(".safetensors") and not _matches(f.path, exclude) for f in listing.files)
    chosen: list[SourceFile] = []
    skipped: list[tuple[str, str]] = []
    for file in sorted(listing.files, key=lambda f: f.path):
        why = _why_not(file.path, include, exclude, has_safetensors=has_safetensors)
        if why:
            skipped.append((file.path, why))
        else:
            chosen.append(file)
    if not chosen:
        raise DownloadError(Cause.NOTHING_SELECTED, _nothing(listing, skipped))
    return Selection(tuple(chosen), tuple(skipped))


def _why_not(path: str, include: Sequence[str], exclude: Sequence[str], *, has_safetensors: bool) -> str:
    if path == READY_NAME or path.startswith(WORK_PREFIX):
        return "the name is reserved"
    if _matches(path, exclude):
        return "excluded"
    if include:
        return "" if _matches(path, include) else "not included"
    if _matches(path, _NEVER_NEEDED):
        return "no engine needs it"
    if has_safetensors and _matches(path, _BESIDE_SAFETENSORS):
        return "the same weights come as safetensors"
    return ""


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rsplit("/", 1)[-1]
    return any(fnmatchcase(path, p) or ("/" not in p and fnmatchcase(name, p)) for p in patterns)


def _nothing(listing: Listing, skipped: Sequence[tuple[str, str]]) -> str:
    if not listing.files:
        return "the source holds no file"
    shown = ", ".join(f"{path} ({why})" for path, why in skipped[:_SHOWN])
    more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return f"no file of the source is selected: {shown}{more}; widen include or narrow exclude"


def _refusal(paths: Iterable[str]) -> str:
    """Why these names cannot be files of one folder; empty when they can."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        if problem := _unsafe(path):
            return f"the source lists {path[:200]!r}, which {problem}; nothing was written"
        if path in seen:
            return f"the source lists {path!r} twice; nothing was written"
        seen.add(path)
        segments = path.split("/")
        folders.update("/".join(segments[:depth]) for depth in range(1, len(segments)))
    if both := sorted(seen & folders):
        return f"the source lists {both[0]!r} both as a file and as a folder; nothing was written"
    return ""


def _unsafe(path: str) -> str:
    segments = path.split("/")
    if path.startswith("/"):
        return "is an absolute path"
    if ".." in segments or "." in segments or "" in segments:
        return "has an empty, '.' or '..' segment"
    if _UNPRINTABLE.search(path):
        return "holds a backslash or a control character"
    try:
        too_long = len(path.encode()) > _PATH_BYTES or any(len(s.encode()) > _NAME_BYTES for s in segments)
    except UnicodeEncodeError:
        return "is not valid text"
    return "is too long for a file system" if too_long else ""
