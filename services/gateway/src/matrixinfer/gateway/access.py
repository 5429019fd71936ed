"""One line per request on stdout: who asked what, which pod answered, why that one, and where the time went.

Prompts, tokens and credentials never get here. Records are gathered for a moment, encoded together and written by a
thread, because a slow reader of stdout must not stop the streams; what does not fit into the backlog is dropped and
counted.
"""

import asyncio
import os
import queue
import threading
from datetime import datetime
from typing import Final

import msgspec

__all__ = ["LINE_BEGIN", "AccessLog", "AccessRecord", "DecisionRecord"]

_FLUSH_SECONDS = 0.1
# Each chunk wakes the writing thread, and a thread that wakes takes the interpreter from the streams for a moment; so
# does the encoding of very many lines.
_FLUSH_LINES = 128
_BACKLOG_CHUNKS = 64

LINE_BEGIN: Final = ("gateway", "info", "request")
"""What every line says of its service, level and event."""


class DecisionRecord(msgspec.Struct, omit_defaults=True):
    """Why this pod: the table's revision, how many candidates, how many of them tied for the best score."""

    revision: int
    rule: str
    target: str
    candidates: int
    tied: int
    score: float
    removed: dict[str, int] = {}
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Estimates, of the prompt and of what of it the pod has in its cache."""
    rung: str = ""
    """What was left out for lack of time, when anything was."""

    def header(self, pod: str, attempt: int) -> bytes:
        """Return it in the form that clients are told: one line, names and numbers only."""
        removed = "+".join(f"{name}:{count}" for name, count in self.removed.items())
        parts: dict[str, str | float] = {
            "pod": pod,
            "server": self.target,
            "rule": self.rule,
            "attempt": attempt,
            "candidates": self.candidates,
            "tied": self.tied,
            "score": self.score,
            "removed": removed,
            "prompt-tokens": self.prompt_tokens,
            "cached-tokens": self.cached_tokens,
            "rung": self.rung,
            "revision": self.revision,
        }
        return "; ".join(f"{name}={_token(value)}" for name, value in parts.items() if value != "").encode()


def _token(value: str | float) -> str:
    # A rule's name is free text; a header must not be.
    return "".join(c if c.isascii() and c.isprintable() and c not in " ;=" else "_" for c in str(value))


class AccessRecord(msgspec.Struct, omit_defaults=True):
    """One request. Times in milliseconds: `total` and `first_byte` from its last byte received, the others are spans.

    -1 is left out: nothing of the kind happened, or nobody knows.
    """

    time: datetime
    request_id: str
    method: str
    path: str
    status: int
    outcome: str
    # Made, so that they are no defaults to be left out.
    service: str = msgspec.field(default_factory=lambda: LINE_BEGIN[0])
    level: str = msgspec.field(default_factory=lambda: LINE_BEGIN[1])
    event: str = msgspec.field(default_factory=lambda: LINE_BEGIN[2])
    worker: int = -1
    client: str = ""
    model: str = ""
    route: str = ""
    server: str = ""
    pod: str = ""
    endpoint: str = ""
    stream: bool = False
    retries: int = 0
    stale_connections: int = 0
    failures: list[str] = []
    bytes_in: int = 0
    bytes_out: int = 0
    total_ms: float = -1.0
    overhead_ms: float = -1.0
    queue_ms: float = -1.0
    connect_ms: float = -1.0
    first_byte_ms: float = -1.0
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1
    tokens_estimated: bool = False
    trace_id: str = ""
    decision: DecisionRecord | None = None
    lines_left_out: int = 0
    """Refusals before this one that were too many to have a line each."""


class AccessLog:
    """Gathers lines and hands them to a writing thread."""

    def __init__(self, fd: int) -> None:
        """Write to `fd`."""
        self.dropped = 0
        """Lines lost because nobody read them."""
        self._fd = fd
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._records: list[AccessRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_BACKLOG_CHUNKS)
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def write(self, record: AccessRecord) -> None:
        """Log one request."""
        self._records.append(record)
        if len(self._records) >= _FLUSH_LINES:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush)

    def close(self, seconds: float) -> None:
        """Write what is left, for at most `seconds`."""
        self._flush()
        try:
            self._chunks.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._records:
            return
        records, self._records = self._records, []
        try:
            self._chunks.put_nowait(self._encode_lines(records))
        except queue.Full:
            self.dropped += len(records)

    def _write_all(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            rest = memoryview(chunk)
            try:
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                # Nobody reads stdout any more; the requests matter more than their lines.
                self.dropped += chunk.count(b"\n")
