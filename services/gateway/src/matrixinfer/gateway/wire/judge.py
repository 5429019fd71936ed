"""Is this the head of a request that every parser reads the same way? Pure, shared by all inlets.

What two parsers could read differently is how requests are smuggled past one of them, so doubt is a refusal. The
parser has judged the syntax; here is what it lets through: repeated headers, codings, versions, targets, sizes.
"""

import re
from itertools import chain

import msgspec

from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.message import Headers, Refusal

__all__ = ["Head", "judge"]

_SINGLE = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect")
_NONE: frozenset[bytes] = frozenset()
# Visible ASCII without "#": parsers disagree about all else in a target (RFC 9112 §3.2).
_TARGET = re.compile(rb"[!\"$-~]+")
_ABSOLUTE = re.compile(rb"https?://[^/?]+(/?.*)", re.IGNORECASE)
# A length that fits into 63 bits has no more digits; leading zeros are nobody's habit.
_LENGTH_DIGITS = 18
# The colon, the space and the end of a line.
_AROUND_FIELD = 4


class Head(msgspec.Struct):
    """A head that was accepted."""

    target: bytes
    """In origin form, or the asterisk."""
    path: bytes
    """Of the target, still percent-encoded."""
    length: int | None
    """Of the body; None when it comes in chunks."""
    expects_continue: bool
    keep_alive: bool
    fields: dict[bytes, bytes]
    """The headers by name, the first value of each."""


def judge(method: str, target: bytes, version: str, headers: Headers, limits: InletLimits) -> Head | Refusal:
    """Accept a head, or say what is wrong with it. `version` is "1.1" or the like; names are lower-case."""
    if version not in ("1.1", "1.0"):
        return Refusal(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if method == "CONNECT":
        return Refusal(405, "CONNECT is not supported.")
    # The first of a name that came twice; nearly always every one is the only one.
    fields = dict(reversed(headers))
    if len(fields) < len(headers) and any(sum(name == one for name, _ in headers) > 1 for one in _SINGLE):
        return Refusal(400, "A header that may occur once occurs twice.")
    size = len(target) + sum(map(len, chain.from_iterable(headers))) + _AROUND_FIELD * len(headers)
    if size > limits.head_bytes or len(headers) > limits.head_fields:
        return Refusal(431, "The request head is too large.")
    origin = _origin_form(target)
    if origin is None:
        return Refusal(400, "The request target is malformed.")
    refusal = _unsupported(version, fields)
    if refusal is not None:
        return refusal
    length = _length(fields, limits)
    if isinstance(length, Refusal):
        return length
    tokens = _wishes(headers) if b"connection" in fields else _NONE
    return Head(
        origin,
        origin.partition(b"?")[0],
        length,
        # To HTTP/1.0 an interim answer is gibberish (RFC 9110 §10.1.1).
        b"expect" in fields and version == "1.1",
        b"close" not in tokens and (version == "1.1" or b"keep-alive" in tokens),
        fields,
    )


def _wishes(headers: Headers) -> frozenset[bytes]:
    values = [value.lower() for name, value in headers if name == b"connection"]
    return frozenset(token.strip() for value in values for token in value.split(b","))


def _unsupported(version: str, fields: dict[bytes, bytes]) -> Refusal | None:
    if version == "1.1" and b"host" not in fields:
        return Refusal(400, "The request has no Host header.")
    coding, expectation = fields.get(b"transfer-encoding"), fields.get(b"expect")
    if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
        return Refusal(501, "The only transfer coding that is supported is 'chunked'.")
    if expectation is not None and expectation.lower() != b"100-continue":
        return Refusal(417, "The only expectation that is supported is '100-continue'.")
    return None


def _length(fields: dict[bytes, bytes], limits: InletLimits) -> int | Refusal | None:
    text = fields.get(b"content-length")
    if b"transfer-encoding" in fields:
        return None if text is None else Refusal(400, "Content-Length and Transfer-Encoding exclude each other.")
    if text is None:
        return 0
    if not text.isdigit() or len(text) > _LENGTH_DIGITS:
        return Refusal(400, "The Content-Length is malformed.")
    length = int(text)
    if length > limits.body_bytes:
        return Refusal(413, f"The request body exceeds {limits.body_bytes} bytes.")
    return length


def _origin_form(target: bytes) -> bytes | None:
    if not _TARGET.fullmatch(target):
        return None
    if target.startswith(b"/") or target == b"*":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return None
    rest = absolute[1]
    return rest if rest.startswith(b"/") else b"/" + rest
