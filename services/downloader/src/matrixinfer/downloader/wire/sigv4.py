"""AWS Signature Version 4 for requests without a body. Pure.

Stores of every make check it. The trap: the path is signed as it is sent, escaped once, and the query in sorted order.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from urllib.parse import quote

__all__ = ["Keys", "escaped_path", "escaped_query", "signed_headers"]

_NOTHING = sha256(b"").hexdigest()
_SERVICE = "s3"


@dataclass(frozen=True, slots=True)
class Keys:
    """Who signs."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)


def escaped_path(path: str) -> str:
    """Return a path as it stands in the request line."""
    return quote(path, safe="/-_.~")


def escaped_query(parameters: Mapping[str, str]) -> str:
    """Return a query as it stands in the request line, sorted."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parameters.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed_headers(
    keys: Keys, region: str, method: str, host: str, path: str, query: str, headers: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """Return `headers` and those that sign them; `path` and `query` are escaped already."""
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/{_SERVICE}/aws4_request"
    sent = {**headers, "x-amz-content-sha256": _NOTHING, "x-amz-date": stamp}
    if keys.token:
        sent["x-amz-security-token"] = keys.token
    signed = sorted({"host": host, **{name.lower(): value for name, value in sent.items()}}.items())
    names = ";".join(name for name, _ in signed)
    canonical = "\n".join([method, path, query, *(f"{n}:{v.strip()}" for n, v in signed), "", names, _NOTHING])
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, sha256(canonical.encode()).hexdigest()])
    key = _signing_key(keys.secret_key, stamp[:8], region)
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={keys.access_key}/{scope}"
    sent["Authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return sent


@lru_cache(maxsize=16)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, _SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
