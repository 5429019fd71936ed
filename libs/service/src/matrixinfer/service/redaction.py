"""What must never reach a log: values under telling keys, known secrets, and strings that look like credentials.

A last line of defence: code still must not log credentials. Owns only the rules; `logging` applies them to every
line. The trap: libraries put whole URLs and headers into their messages, so values are searched, not only keys.
"""

import re
from collections.abc import Iterable

__all__ = ["MASK", "Redactor"]

MASK = "[redacted]"

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:token|password|passwd|secret|secret_key|authorization|api_key|access_key|cookie)$", re.I
)
_CREDENTIAL = re.compile(
    r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9+/=._~-]{8,}"
    r"|(\b(?:x-amz-signature|x-amz-credential|x-amz-security-token|sig|signature|token|awsaccesskeyid)=)[^&\s\"']+"
    r"|(://[^/\s:@]*:)[^/\s@]+(?=@)"
    r"|\b(hf_)[A-Za-z0-9]{16,}"
)
# Short values would mask half of every line.
_SHORTEST_SECRET = 6


class Redactor:
    """Masks credentials in text; `secrets` are exact values this process knows to be secret."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # Longest first: a secret that contains another is masked whole.
        self._secrets = tuple(sorted({s for s in secrets if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True))

    def text(self, value: str) -> str:
        """Return `value` with known secrets and whatever looks like a credential masked."""
        for secret in self._secrets:
            value = value.replace(secret, MASK)
        return _CREDENTIAL.sub(_keep_label, value)

    def value(self, key: str, value: object) -> object:
        """Return what may be logged under `key`: masked whole when the key says so, searched when it is text."""
        if _SECRET_KEY.search(key) and value not in (None, "", True, False):
            return MASK
        match value:
            case str():
                return self.text(value)
            case dict():
                return {str(k): self.value(str(k), v) for k, v in value.items()}
            case list() | tuple():
                return [self.value("", item) for item in value]
            case _:
                return value


def _keep_label(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group), "") + MASK
