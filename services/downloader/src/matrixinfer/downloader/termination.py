"""The termination message: how it ended, as JSON, where the kubelet looks for it.

It is the only report that always works: it needs no API access, and whoever sees the failed pod sees it.
The kubelet keeps 4096 bytes and cuts the rest, which would make it unreadable for programs, so the message is cut here.
"""

import json
from pathlib import Path

from matrixinfer.downloader.core.manifest import Ready
from matrixinfer.downloader.errors import DownloadError
from matrixinfer.service.logging import get_logger

__all__ = ["failure_message", "success_message", "write"]

log = get_logger("termination")

_LIMIT_BYTES = 4096


def success_message(ready: Ready, peer_bytes: int) -> str:
    """Return the message of a download that ended well, to which other pods gave so many bytes."""
    return _encode(
        {
            "outcome": "Ready",
            "exitCode": 0,
            "source": ready.source,
            "resolvedRevision": ready.resolved_revision,
            "digest": ready.digest,
            "totalBytes": ready.total_bytes,
            "fileCount": len(ready.files),
            "peerBytes": peer_bytes,
        }
    )


def failure_message(source: str, error: DownloadError) -> str:
    """Return the message of a download that did not."""
    return _encode(
        {
            "outcome": "Failed",
            "cause": str(error.cause),
            "exitCode": error.exit_code,
            "message": error.message,
            "source": source,
        }
    )


def write(path: Path, message: str) -> None:
    """Write it; a path that cannot be written (no kubelet here) is not an error."""
    try:
        path.write_text(message)
    except OSError as exc:
        log.debug("termination_log_not_written", path=str(path), reason=exc.strerror)


def _encode(document: dict[str, str | int]) -> str:
    """Return the JSON form, its texts cut in half until it fits."""
    longest = _LIMIT_BYTES
    while True:
        cut = {key: value[:longest] if isinstance(value, str) else value for key, value in document.items()}
        text = json.dumps(cut, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) <= _LIMIT_BYTES:
            return text
        longest //= 2
