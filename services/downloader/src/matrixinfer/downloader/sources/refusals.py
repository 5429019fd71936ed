"""What an object store means when it refuses: the cause, and the sentence that names the fix. Pure.

Stores of every make answer with a status and, but for HEAD, a code in XML. The traps: codes tell apart what a status
does not (an expired token comes as 400), an answer to HEAD has no body to hold one, and a request without a signature
is refused with the very words that wrong keys get.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from matrixinfer.downloader.errors import Cause, DownloadError, TransientError

__all__ = ["Refusal"]

_CHECK = "check the Secret that ACCESS_KEY and SECRET_KEY come from"
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"))
_DENIED = {
    "AccessDenied": "these keys may not list it, or not read it; allow them s3:ListBucket and s3:GetObject",
    "AllAccessDisabled": "the store has closed it to everybody",
    "AuthorizationHeaderMalformed": "the store is in another region; set AWS_REGION",
    "Forbidden": _CHECK,
    "InvalidAccessKeyId": f"the store does not know the access key; {_CHECK}",
    "RequestTimeTooSkewed": "set the node's clock right, and keep it so with NTP",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key; {_CHECK}",
    **dict.fromkeys(
        _EXPIRED, "the session token is no longer valid; put new keys with AWS_SESSION_TOKEN into the Secret"
    ),
}
_UNSIGNED = "no credentials were found; set ACCESS_KEY and SECRET_KEY from a Secret, or give the pod a role"
_MISSING = {
    "NoSuchBucket": "the store has no such bucket; check the source, and ENDPOINT",
    "NoSuchKey": "the store has no such object",
    "NotFound": "the store has it not",
}
_CHANGED = frozenset(("PreconditionFailed", "InvalidRange"))
_PASSING = frozenset(("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"))
_REGION = re.compile(r"[a-z0-9-]{1,40}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer that is none of content."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None = None

    @property
    def code(self) -> str:
        """What the store calls it; empty when it does not say."""
        return self._text("Code")

    @property
    def region(self) -> str:
        """The region that the store says the bucket is in; empty when it says none."""
        named = self.headers.get("x-amz-bucket-region", "") or self._text("Region")
        # It becomes part of a host's name.
        return named if _REGION.fullmatch(named) else ""

    @property
    def may_be_expired(self) -> bool:
        """True when other keys may be answered better."""
        return self.code in _EXPIRED or (not self.code and self.status in (400, 401, 403))

    def error(self, what: str, *, is_signed: bool, now: datetime) -> DownloadError:
        """Return what it means for the download."""
        status, code = self.status, self.code
        if code in _DENIED or status in (401, 403):
            why = _DENIED.get(code or "AccessDenied", _CHECK) if is_signed else _UNSIGNED
            if code == "RequestTimeTooSkewed":
                why = f"{self._skew(now)}; {why}"
            return DownloadError(Cause.ACCESS_DENIED, f"{what}: the store refused the request ({_shown(code)}): {why}")
        if code in _MISSING or status == 404:
            why = _MISSING.get(code, "the store has it not")
            return DownloadError(Cause.NOT_FOUND, f"{what} does not exist ({_shown(code)}): {why}")
        if code in _CHANGED or status in (412, 416):
            return DownloadError(Cause.SOURCE_CHANGED, f"{what} changed while it was being downloaded")
        if status in (408, 429) or status >= 500 or code in _PASSING:
            return TransientError(f"{what}: the store answered {status} {_shown(code)}", retry_after=self.retry_after)
        if status in (301, 307, 308):
            return DownloadError(
                Cause.BAD_REQUEST, f"{what}: the store is elsewhere ({_shown(code)}); set AWS_REGION or ENDPOINT"
            )
        return DownloadError(Cause.BAD_REQUEST, f"{what}: the store answered {status} {_shown(code)}")

    def _skew(self, now: datetime) -> str:
        try:
            seconds = (now - parsedate_to_datetime(self.headers.get("date", ""))).total_seconds()
        except (ValueError, TypeError):
            return "the clock of this node is not the store's"
        return f"the clock of this node is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the store's"

    def _text(self, tag: str) -> str:
        found = re.search(rf"<{tag}>([A-Za-z0-9.-]{{1,64}})</{tag}>".encode(), self.body)
        return found.group(1).decode() if found else ""


def _shown(code: str) -> str:
    return code or "without a code"
