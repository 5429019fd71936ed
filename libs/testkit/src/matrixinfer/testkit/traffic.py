"""Streaming chat requests, one after another on several connections, while a test breaks things.

Owns sending and judging: a stream is whole when it ends with `[DONE]` after at least one piece of text. The trap: a
client that retries would hide what a test wants to see, so nothing is retried here.
"""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import orjson

__all__ = ["Answer", "Traffic", "ask"]

REQUEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to: `error` is empty when its stream was whole."""

    status: int
    text: str
    error: str = ""


@dataclass(slots=True)
class Traffic:
    """Everything that was answered so far."""

    answers: list[Answer] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    @contextmanager
    def flowing(cls, gateway: str, model: str, *, connections: int = 4, max_tokens: int = 40) -> Iterator[Self]:
        """Keep `connections` streams going until the block ends; the last ones are waited for."""
        traffic = cls()
        threads = [
            threading.Thread(target=traffic._flow, args=(gateway, model, max_tokens), name=f"traffic-{n}")
            for n in range(connections)
        ]
        for thread in threads:
            thread.start()
        try:
            yield traffic
        finally:
            traffic._stopping.set()
            for thread in threads:
                thread.join(REQUEST_SECONDS)

    @property
    def failures(self) -> list[Answer]:
        """The answers whose stream was refused or cut."""
        return [answer for answer in self.answers if answer.error]

    def wait_for_more(self, count: int, seconds: float = 60.0) -> None:
        """Return when `count` more requests have been answered; raises `TimeoutError` after `seconds`."""
        with self._changed:
            wanted = len(self.answers) + count
            if not self._changed.wait_for(lambda: len(self.answers) >= wanted, seconds):
                raise TimeoutError(
                    f"{count} answers did not come within {seconds:.0f} s; failures: {self.failures[-3:]}"
                )

    def _flow(self, gateway: str, model: str, max_tokens: int) -> None:
        while not self._stopping.is_set():
            answer = ask(gateway, model, "tell me a story", max_tokens=max_tokens)
            with self._changed:
                self.answers.append(answer)
                self._changed.notify_all()
            if answer.error:
                # A refused connection answers at once: do not spin on it.
                time.sleep(0.05)


def ask(gateway: str, model: str, question: str, *, max_tokens: int = 40) -> Answer:
    """Ask one question as a stream and return what came of it; never raises for what the other side does."""
    url = urlsplit(gateway)
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=REQUEST_SECONDS)
    body = {
        "model": model,
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    }
    pieces: list[str] = []
    status, done = 0, False
    try:
        connection.request("POST", "/v1/chat/completions", orjson.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        status = response.status
        if status != http.HTTPStatus.OK:
            return Answer(status, "", response.read().decode(errors="replace")[:300])
        while line := response.readline():
            payload = line.removeprefix(b"data:").strip()
            done = done or payload == b"[DONE]"
            if line.startswith(b"data:") and payload != b"[DONE]":
                pieces += _text(payload)
    except (OSError, http.client.HTTPException) as exc:
        return Answer(status, "".join(pieces), f"{type(exc).__name__}: {exc} after {len(pieces)} pieces")
    finally:
        connection.close()
    return Answer(
        status, "".join(pieces), "" if done and pieces else f"the stream ended early after {len(pieces)} pieces"
    )


def _text(payload: bytes) -> list[str]:
    chunk = orjson.loads(payload)
    if "error" in chunk:
        raise http.client.HTTPException(str(chunk["error"]))
    return [text for choice in chunk.get("choices", []) if (text := (choice.get("delta") or {}).get("content"))]
