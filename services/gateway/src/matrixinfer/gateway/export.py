"""Spans on their way out: OTLP over HTTP, in JSON, by a thread, in batches, within bounds.

The one side effect of tracing. The hot path only appends to a queue. A collector that is slow or away costs spans,
never a request and never memory: what does not fit, and what could not be delivered, is dropped and counted. This is
the only layer that repeats an export. Specification: OTLP 1.x and the batch processor's OTEL_BSP_* defaults.
"""

import queue
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TypeAlias
from urllib.parse import urlsplit

from matrixinfer.gateway.core.spans import Span, export_body

__all__ = ["ExportSettings", "SpanExporter"]

_TRANSIENT = frozenset({429, 502, 503, 504})
_PAUSES_SECONDS = (0.5, 2.0)

_Batch: TypeAlias = list[Span]


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """Where spans go and how. `endpoint` is the whole URL, empty when nothing is traced."""

    endpoint: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    resource: dict[str, str] = field(default_factory=dict)
    ca_file: str | None = None
    timeout_seconds: float = 10.0
    delay_seconds: float = 5.0
    queue_spans: int = 2048
    batch_spans: int = 512


class SpanExporter:
    """Takes spans from one worker and delivers them."""

    def __init__(self, settings: ExportSettings, resource: Mapping[str, str]) -> None:
        """Start the thread. `resource` says who we are."""
        self.dropped = 0
        """Spans that nobody got."""
        self.exported = 0
        """Spans that a collector took."""
        self._settings = settings
        self._resource = dict(resource)
        self._queue: queue.Queue[_Batch | None] = queue.Queue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._connection: HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name="span-exporter", daemon=True)
        self._thread.start()

    def add(self, spans: list[Span]) -> None:
        """Take the spans of one request, or drop them when too many wait."""
        with self._lock:
            if self._waiting + len(spans) > self._settings.queue_spans:
                self.dropped += len(spans)
                return
            self._waiting += len(spans)
        self._queue.put(spans)
        if self._waiting >= self._settings.batch_spans:
            self._hurry.set()

    def close(self, seconds: float) -> None:
        """Deliver what waits, for at most `seconds`."""
        self._queue.put(None)
        self._hurry.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        is_open = True
        while is_open:
            first = self._queue.get()
            if first is not None:
                # A moment for others to join, unless there are enough of them already.
                self._hurry.wait(self._settings.delay_seconds)
            self._hurry.clear()
            batch, is_open = self._gather(first)
            for at in range(0, len(batch), self._settings.batch_spans):
                self._deliver(batch[at : at + self._settings.batch_spans], may_wait=is_open)
        if self._connection is not None:
            self._connection.close()

    def _gather(self, first: _Batch | None) -> tuple[_Batch, bool]:
        """Everything that waits, and whether more may come."""
        batch: _Batch = []
        item = first
        while True:
            if item is None:
                return batch, False
            batch += item
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True

    def _deliver(self, batch: _Batch, *, may_wait: bool) -> None:
        body = export_body(self._resource, batch)
        pauses = _PAUSES_SECONDS if may_wait else ()
        delivered = self._posted(body)
        for pause in pauses:
            if delivered is not None:
                break
            self._hurry.wait(pause)
            delivered = self._posted(body)
        with self._lock:
            self._waiting -= len(batch)
            self.exported += len(batch) if delivered else 0
            self.dropped += 0 if delivered else len(batch)

    def _posted(self, body: bytes) -> bool | None:
        """Whether a collector took it; None when another try may help."""
        try:
            connection = self._connected()
            connection.request("POST", self._path, body, {"Content-Type": "application/json", **self._settings.headers})
            answer = connection.getresponse()
            answer.read()
        except (OSError, HTTPException):
            # The next try makes a connection of its own.
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return None
        if answer.status in _TRANSIENT:
            return None
        return answer.status < 300

    def _connected(self) -> HTTPConnection:
        if self._connection is None:
            url = urlsplit(self._settings.endpoint)
            host, seconds = url.hostname or "", self._settings.timeout_seconds
            if url.scheme == "https":
                tls = ssl.create_default_context(cafile=self._settings.ca_file)
                self._connection = HTTPSConnection(host, url.port, timeout=seconds, context=tls)
            else:
                self._connection = HTTPConnection(host, url.port, timeout=seconds)
        return self._connection

    @property
    def _path(self) -> str:
        url = urlsplit(self._settings.endpoint)
        return (url.path or "/") + (f"?{url.query}" if url.query else "")
