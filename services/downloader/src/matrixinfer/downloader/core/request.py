"""What is asked of one run, and the names that follow from it. Pure.

Two runs that must agree on anything (a lock, what is known of a file) agree through these names, so they depend on the
request alone. The trap: revisions of one source share most of their files, so the revision is no part of its origin.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

__all__ = ["Request", "origin"]

_KEY_DIGITS = 32
_encoded = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Request:
    """What to bring where.

    `expected_digest` is what this version was found to be before, empty when it was not. With a `cache` the files are
    kept there by content, and `output` becomes a link to them.
    """

    source: str
    output: Path
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    expected_digest: str = ""
    cache: Path | None = None

    @property
    def key(self) -> str:
        """Names what is asked for: the source and the choice of its files."""
        return _key([self.source, list(self.include), list(self.exclude)])

    @property
    def origin_key(self) -> str:
        """Names where it comes from, at whatever revision."""
        return _key([origin(self.source)])

    def file_key(self, path: str, size: int, version: str) -> str:
        """Names one state of one file of the origin."""
        return _key([origin(self.source), path, size, version])


def origin(source: str) -> str:
    """Return the source without its revision."""
    scheme, separator, rest = source.partition("://")
    return scheme + separator + (rest.partition("@")[0] if scheme in ("hf", "ms") else rest)


def _key(value: list[object]) -> str:
    return sha256(_encoded(value).encode()).hexdigest()[:_KEY_DIGITS]
