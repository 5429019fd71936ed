"""Structured logs: one JSON object per line on stdout, for our own code and for every library below it.

The event is a constant snake_case phrase and everything variable is a key: `log.info("rollout_advanced", step=3)`.
Text of libraries arrives as event `library_log`. Owns the process-wide configuration, so only `lifecycle.run` (or a
worker process of its own) calls `configure`. The trap: a logger bound before `configure` must still obey it, which
structlog's lazy proxies do; never keep the result of `.bind()` in a module.
"""

import logging
import re
import sys
from collections.abc import Iterable
from typing import BinaryIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from matrixinfer.service.redaction import Redactor

__all__ = ["configure", "get_logger"]

_EVENT = re.compile(r"[a-z][a-z0-9_]*")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of one module; `name` is its short name and ends up under `component`."""
    # structlog types its proxy as Any; `configure` makes it a filtering bound logger.
    return cast("FilteringBoundLogger", structlog.get_logger(component=name))


def configure(
    service: str, level: str = "info", *, secrets: Iterable[str] = (), stream: BinaryIO | None = None
) -> None:
    """Route all logs of the process, the standard library's included, to `stream` (stdout) as JSON lines.

    `level` is one of debug, info, warning, error. `secrets` are values that are masked wherever they appear.
    """
    redactor = Redactor(secrets)

    def named(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        # What people read first comes first in the line.
        level = "warning" if method == "warn" else method
        return {"time": event.pop("time"), "level": level, "service": service, "event": event.pop("event"), **event}

    def redacted(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: redactor.value(key, value) for key, value in event.items()}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            named,
            _constant_event,
            structlog.processors.format_exc_info,
            redacted,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(stream or sys.stdout.buffer),
        # Not cached: workers and tests configure again, and a proxy costs 3 µs per line.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    # Libraries are chatty at info; their warnings matter.
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.captureWarnings(capture=True)


def _constant_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # A sentence in place of an event would break every query by event; it is kept, as a message.
    if not _EVENT.fullmatch(str(event["event"])):
        event = {**event, "event": "free_text", "message": str(event["event"])}
    return event


def _dumps(value: object, **_options: object) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


class _LibraryHandler(logging.Handler):
    """Hands records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.ERROR))
        try:
            get_logger(record.name).log(level, "library_log", message=record.getMessage(), exc_info=record.exc_info)
        except ValueError:
            # The stream is closed: the interpreter is going down and nobody reads on.
            self.handleError(record)
