"""Is this content what the source said it would be? Pure, fed in order.

A `ContentHash` always computes sha256, because the digest of a model is made of it, and beside it whatever the source
vouches for: sha256 (large files of a hub, S3 checksums), git's blob hash (small files of a hub), a CRC (S3 checksums),
md5 (an object uploaded in one part), and the hash of the hashes of parts (an object uploaded in parts). A source that
vouches for nothing is checked by size. The trap: a CRC of 64 bits, or the one with Castagnoli's polynomial, is of
use only where the processor helps, so these come from the AWS runtime's C library, loaded when one is asked for.
"""

import base64
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

__all__ = ["Algorithm", "ContentHash", "Expected", "hex_of_base64"]


class Algorithm(StrEnum):
    """How the source computed what it vouches for."""

    SHA256 = "sha256"
    SHA1 = "sha1"
    GIT_BLOB = "git-blob-sha1"
    MD5 = "md5"
    CRC32 = "crc32"
    CRC32C = "crc32c"
    CRC64NVME = "crc64nvme"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the source vouches for: a lower-case hex value.

    With `part_bytes` it is the hash over the hashes of parts of that size.
    """

    algorithm: Algorithm
    value: str
    part_bytes: int = 0


class _Hash(Protocol):
    def update(self, data: memoryview | bytes, /) -> None: ...
    def digest(self) -> bytes: ...
    def copy(self) -> Self: ...


def hex_of_base64(value: str) -> str:
    """Return a checksum the way this module writes it; raises ValueError when it is none."""
    return base64.b64decode(value, validate=True).hex()


class ContentHash:
    """Hashes one file of known size, chunk by chunk in order."""

    def __init__(self, size: int, expected: Expected | None, *, goes_on: "ContentHash | None" = None) -> None:
        self._size = size
        self._expected = expected
        self._sha256: _Hash = goes_on.sha256_state if goes_on else hashlib.sha256()
        self._other = goes_on.other_state if goes_on else _other_hash(size, expected)

    def copy(self) -> "ContentHash":
        """Return one that goes on from here by itself."""
        return ContentHash(self._size, self._expected, goes_on=self)

    @property
    def sha256_state(self) -> _Hash:
        """A copy of the running sha256."""
        return self._sha256.copy()

    @property
    def other_state(self) -> _Hash | None:
        """A copy of what else runs."""
        return self._other.copy() if self._other is not None else None

    def update(self, chunk: memoryview | bytes) -> None:
        """Take the next bytes of the file."""
        self._sha256.update(chunk)
        if self._other is not None:
            self._other.update(chunk)

    def sha256(self) -> str:
        """The sha256 of what was taken so far, in hex."""
        return self._sha256.digest().hex()

    def mismatch(self) -> str | None:
        """After the last chunk: None when the content is what was promised, else a phrase with both values."""
        expected = self._expected
        if expected is None:
            return None
        found = (self._other or self._sha256).digest().hex()
        if found == expected.value:
            return None
        kind = f"{expected.algorithm} of parts" if expected.part_bytes else expected.algorithm
        return f"its {kind} is {found} where the source promises {expected.value}"


class _OfParts:
    """The hash of the hashes of all parts, the way object stores name what was uploaded in parts."""

    def __init__(
        self,
        make: Callable[[], _Hash],
        part_bytes: int,
        whole: _Hash | None = None,
        part: _Hash | None = None,
        filled: int = 0,
    ) -> None:
        self._make = make
        self._part_bytes = part_bytes
        self._whole = whole or make()
        self._part, self._filled = part or make(), filled

    def update(self, data: memoryview | bytes, /) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._part_bytes - self._filled]
            self._part.update(taken)
            self._filled += len(taken)
            view = view[len(taken) :]
            if self._filled == self._part_bytes:
                self._close_part()

    def digest(self) -> bytes:
        if self._filled:
            self._close_part()
        return self._whole.digest()

    def copy(self) -> "_OfParts":
        return _OfParts(self._make, self._part_bytes, self._whole.copy(), self._part.copy(), self._filled)

    def _close_part(self) -> None:
        self._whole.update(self._part.digest())
        self._part, self._filled = self._make(), 0


class _Crc:
    """A cyclic redundancy check, kept by a function that goes on from a value."""

    def __init__(self, step: Callable[[memoryview | bytes, int], int], width: int, value: int = 0) -> None:
        self._step = step
        self._width = width
        self._value = value

    def update(self, data: memoryview | bytes, /) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width, "big")

    def copy(self) -> "_Crc":
        return _Crc(self._step, self._width, self._value)


def _other_hash(size: int, expected: Expected | None) -> _Hash | None:
    if expected is None or (expected.algorithm is Algorithm.SHA256 and not expected.part_bytes):
        return None
    makers: dict[Algorithm, Callable[[], _Hash]] = {
        Algorithm.SHA256: hashlib.sha256,
        Algorithm.SHA1: lambda: hashlib.sha1(usedforsecurity=False),
        Algorithm.GIT_BLOB: lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False),
        # Finds damage, proves nothing against an attacker: the protocols give nothing better.
        Algorithm.MD5: lambda: hashlib.md5(usedforsecurity=False),
        Algorithm.CRC32: lambda: _Crc(zlib.crc32, 4),
        Algorithm.CRC32C: lambda: _Crc(_native("crc32c"), 4),
        Algorithm.CRC64NVME: lambda: _Crc(_native("crc64nvme"), 8),
    }
    make = makers[expected.algorithm]
    return _OfParts(make, expected.part_bytes) if expected.part_bytes else make()


def _native(name: str) -> Callable[[memoryview | bytes, int], int]:
    # Loaded here because few sources vouch for nothing but such a checksum.
    from awscrt import checksums

    found: Callable[[memoryview | bytes, int], int] = getattr(checksums, name)
    return found
