"""Revisions: a short, stable name for a JSON value.

The bytes that are hashed begin with a version of the scheme, so a later scheme can never collide with this one, and an
upgrade that changes it is visible (every revision changes at once). The trap: floats have more than one text form;
revisions are taken of specs, which hold none.
"""

import hashlib
import json
from typing import Final

from matrixinfer.api.meta import Json

__all__ = ["REVISION_LENGTH", "canonical", "revision"]

REVISION_LENGTH: Final = 10
"""Hex digits of a revision: 40 bits, label-safe and short enough for generated names."""

_SCHEME: Final = b"v1-"


def canonical(value: Json) -> bytes:
    """Return the one byte form of a JSON value: keys sorted, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def revision(value: Json) -> str:
    """Return the revision of `value`: the first hex digits of sha256 over the scheme and the canonical form."""
    return hashlib.sha256(_SCHEME + canonical(value)).hexdigest()[:REVISION_LENGTH]
