"""What peers say to one another: names of files, what is held of one, and the note that a download leaves for it. Pure.

A file has two names: the state of its origin (known before a byte is there, so that pods that fetch at the same time
can share what they have so far), and the sha256 of its content where that is known. Neither tells a model's name.

    /v1/origins/<origin>                 does this pod fetch from there, and how far is it
    /v1/held/<origin>/<file>/<sha256|->  which bytes of it are here
    /v1/bytes/<origin>/<file>/<sha256|-> bytes of it, with Range
    /v1/models/<sha256>                  the READY of a digest
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrixinfer.downloader.core.ranges import Part

__all__ = [
    "SHARING_NAME",
    "FileName",
    "Held",
    "Share",
    "is_key",
    "is_sha256",
    "read_held",
    "read_share",
    "share_note",
    "whole_range",
]

SHARING_NAME = "sharing.json"
"""The note of a download, in its work folder, for as long as it is under way."""

_KEY = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class FileName:
    """One state of one file of one origin; `sha256` is empty where the source does not tell it."""

    origin: str
    file: str
    sha256: str = ""

    @property
    def place(self) -> str:
        """The name as the end of a path."""
        return f"{self.origin}/{self.file}/{self.sha256 or '-'}"

    @classmethod
    def parse(cls, place: str) -> "FileName | None":
        """Read the end of a path; None for anything else."""
        match place.split("/"):
            case [origin, file, content] if is_key(origin) and is_key(file) and (content == "-" or is_sha256(content)):
                return cls(origin, file, content.removeprefix("-"))
        return None


def is_key(text: str) -> bool:
    """True for the name of an origin, or of a state of a file."""
    return _KEY.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    """True for the name of a content."""
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Held:
    """Which bytes of a file are there: its size, and parts that do not touch, in order."""

    size: int
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, size: int, parts: Iterable[Part]) -> "Held":
        """Join parts that touch."""
        joined: list[Part] = []
        for part in sorted(parts):
            if joined and joined[-1].end >= part.offset:
                joined[-1] = Part(joined[-1].offset, max(joined[-1].end, part.end) - joined[-1].offset)
            else:
                joined.append(part)
        return cls(size, tuple(joined))

    def has(self, part: Part) -> bool:
        """True when every byte of the part is there."""
        return any(held.offset <= part.offset and part.end <= held.end for held in self.parts)

    def to_json(self) -> bytes:
        """Return the document that is sent."""
        return json.dumps({"size": self.size, "parts": [[p.offset, p.length] for p in self.parts]}).encode()


def read_held(text: bytes) -> Held | None:
    """Read what a peer says it holds; None for anything else."""
    try:
        document = json.loads(text)
        parts = [Part(int(offset), int(length)) for offset, length in document["parts"]]
        return Held.of(int(document["size"]), [part for part in parts if part.offset >= 0 and part.length > 0])
    # Of a stranger: it may be nested as deep as it likes.
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def whole_range(header: str) -> Part | None:
    """Read a Range header of one range with both ends; None for anything else."""
    found = _RANGE.fullmatch(header)
    if found is None or int(found[2]) < int(found[1]):
        return None
    return Part(int(found[1]), int(found[2]) - int(found[1]) + 1)


@dataclass(frozen=True, slots=True)
class Share:
    """One file that a download is about to bring."""

    path: str
    size: int
    version: str
    sha256: str = ""


def read_share(text: bytes) -> tuple[int, Mapping[str, Share]] | None:
    """Read the note of a download: size of its parts, files by key; None for anything else."""
    try:
        document: dict[str, Any] = json.loads(text)
        files = {str(key): Share(*row) for key, row in document["files"].items()}
        return int(document["partBytes"]), files
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def share_note(part_bytes: int, files: Sequence[tuple[str, Share]]) -> bytes:
    """Return the note of a download."""
    rows = {key: [share.path, share.size, share.version, share.sha256] for key, share in files}
    return json.dumps({"partBytes": part_bytes, "files": rows}).encode()
