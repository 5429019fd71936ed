"""Where an answer may send us. Pure.

A source that is not what it seems could lead a downloader inside a cluster to addresses that only it can reach, so
nobody is followed to another host unless that host is allowed by name. The same host may use another port.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

__all__ = ["DEFAULT_HOSTS", "may_redirect"]

DEFAULT_HOSTS = ("huggingface.co", "*.huggingface.co", "hf.co", "*.hf.co", "modelscope.cn", "*.modelscope.cn")
"""Where the public hubs keep large files."""


def may_redirect(allowed: Sequence[str], here: str, there: str) -> bool:
    """True when an answer of host `here` may lead to host `there`; `allowed` are globs of host names."""
    return there == here or any(fnmatchcase(there.lower(), pattern.lower()) for pattern in allowed)
