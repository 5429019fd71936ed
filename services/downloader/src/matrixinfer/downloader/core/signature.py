"""Who may ask: requests of peers, signed with the token of the namespace. Pure.

The token itself never travels. What does is good for one range of one file, for a few minutes: whoever reads it on the
wire has read the bytes as well. The trap: two clocks are compared, so a node whose clock is minutes off is refused, and
fetches from the origin.
"""

import hmac
from hashlib import sha256

__all__ = ["LONGEST_SECONDS", "is_signed", "signature"]

LONGEST_SECONDS = 120
"""How far the clocks of two pods may be apart, which is also how long a signature is good for."""

_SCHEME = "MatrixInfer-Peer"


def signature(token: str, path: str, asked_range: str, at: int) -> str:
    """Return the value of the Authorization header of a request for a path, made at a time (seconds)."""
    return f"{_SCHEME} {at}:{_mac(token, path, asked_range, str(at))}"


def is_signed(token: str, header: str, path: str, asked_range: str, now: float) -> bool:
    """True when the header was made with the token, for this very request, not long ago."""
    scheme, _, value = header.partition(" ")
    at, _, mac = value.partition(":")
    if not token or scheme != _SCHEME or not (at.isascii() and at.isdigit()) or len(at) > 12:
        return False
    matches = hmac.compare_digest(mac.encode(), _mac(token, path, asked_range, at).encode())
    return matches and abs(now - int(at)) <= LONGEST_SECONDS


def _mac(token: str, path: str, asked_range: str, at: str) -> str:
    return hmac.new(token.encode(), f"{path}\n{asked_range}\n{at}".encode(), sha256).hexdigest()
