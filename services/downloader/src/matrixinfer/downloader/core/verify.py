"""Is this content what the source said it would be? Pure, fed in order.

A `ContentHash` always computes sha256, because the digest of a model is made of it, and beside it whatever the source
vouches for: sha256 (large files of a hub, S3 checksums), git's blob hash (small files of a hub), md5 (an object
uploaded in one part), md5 of md5s (an object uploaded in parts). A source that vouches for nothing is checked by size.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = ["Algorithm", "ContentHash", "Expected"]


class Algorithm(StrEnum):
    """How the source computed what it vouches for."""

    SHA256 = "sha256"
    GIT_BLOB = "git-blob-sha1"
    MD5 = "md5"
    MD5_OF_PARTS = "md5-of-parts"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the source vouches for: a lower-case hex value; `part_bytes` is the part size of `MD5_OF_PARTS`."""

    algorithm: Algorithm
    value: str
    part_bytes: int = 0


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class ContentHash:
    """Hashes one file of known size, chunk by chunk in order."""

    def __init__(self, size: int, expected: Expected | None) -> None:
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._other = _other_hash(size, expected)

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the file."""
        self._sha256.update(chunk)
        if self._other is not None:
            self._other.update(chunk)

    def sha256(self) -> str:
        """The sha256 of what was taken so far, in hex."""
        return self._sha256.hexdigest()

    def mismatch(self) -> str | None:
        """After the last chunk: None when the content is what was promised, else a phrase with both values."""
        if self._expected is None:
            return None
        found = (self._other or self._sha256).hexdigest()
        if found == self._expected.value:
            return None
        return f"its {self._expected.algorithm} is {found} where the source promises {self._expected.value}"


class _Md5OfParts:
    """The md5 of the md5s of all parts, the way object stores name what was uploaded in parts."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._done: list[bytes] = []
        self._part, self._filled = _md5(), 0

    def update(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._part_bytes - self._filled]
            self._part.update(taken)
            self._filled += len(taken)
            view = view[len(taken) :]
            if self._filled == self._part_bytes:
                self._close_part()

    def hexdigest(self) -> str:
        if self._filled:
            self._close_part()
        return f"{_md5(b''.join(self._done)).hexdigest()}-{len(self._done)}"

    def _close_part(self) -> None:
        self._done.append(self._part.digest())
        self._part, self._filled = _md5(), 0


def _other_hash(size: int, expected: Expected | None) -> _Hash | None:
    makers: dict[Algorithm, Callable[[], _Hash]] = {
        Algorithm.GIT_BLOB: lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False),
        Algorithm.MD5: _md5,
        Algorithm.MD5_OF_PARTS: lambda: _Md5OfParts(expected.part_bytes if expected else 0),
    }
    if expected is None or expected.algorithm is Algorithm.SHA256:
        return None
    return makers[expected.algorithm]()


def _md5(data: bytes = b"") -> "hashlib._Hash":
    # Finds damage, proves nothing against an attacker: the protocols give nothing better.
    return hashlib.md5(data, usedforsecurity=False)
