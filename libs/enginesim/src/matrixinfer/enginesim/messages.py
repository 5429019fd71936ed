"""Anthropic's Messages API: reading requests, writing events, documents and errors. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from matrixinfer.enginesim.dialects import Text
from matrixinfer.enginesim.tokens import token_ids
from matrixinfer.enginesim.wire import (
    BadRequest,
    Generation,
    Usage,
    chat_text,
    content_text,
    generation,
    wanted_tool,
)

__all__ = ["MessageDialect", "message_error", "message_tokens", "messages_request"]

_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}


def message_tokens(body: Mapping[str, Any]) -> list[int]:
    """The tokens of the prompt. Raises `BadRequest`."""
    messages = body.get("messages")
    system = content_text(body.get("system"))
    if system and isinstance(messages, list):
        messages = [{"role": "system", "content": system}, *messages]
    return token_ids(chat_text(messages))


def messages_request(body: Mapping[str, Any]) -> Generation:
    """Read a request. Raises `BadRequest`."""
    if body.get("max_tokens") is None:
        raise BadRequest("max_tokens: Field required", param="max_tokens")
    return generation(body, (tuple(message_tokens(body)),), body["max_tokens"])


def message_error(message: str, *, status: int) -> dict[str, object]:
    """Anthropic's error object."""
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}


class MessageDialect:
    """Events and documents of one message."""

    def __init__(self, body: Mapping[str, Any], *, message_id: str, model: str) -> None:
        self._tool = wanted_tool(body)
        self._finish = "stop"
        self._about: dict[str, object] = {"id": message_id, "type": "message", "role": "assistant", "model": model}

    def opening(self, choices: int, prompt: int) -> bytes:  # noqa: ARG002
        """The message, still empty, and its one block."""
        usage = {"input_tokens": prompt, "output_tokens": 0}
        empty = {**self._about, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        block = self._block("")
        return _event("message_start", message=empty) + _event("content_block_start", index=0, content_block=block)

    def token(self, index: int, text: str, finish: str | None) -> bytes:  # noqa: ARG002
        """One piece of text."""
        self._finish = finish or self._finish
        if self._tool:
            return b""
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def closing(self, usage: Usage) -> bytes:
        """Why it ended, and the counts."""
        delta = {"stop_reason": self._reason(self._finish), "stop_sequence": None}
        counts = {"input_tokens": usage.prompt, "output_tokens": usage.completion}
        return b"".join(
            (
                _event("content_block_stop", index=0),
                _event("message_delta", delta=delta, usage=counts),
                _event("message_stop"),
            )
        )

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, object]:
        """The message as one document."""
        text, finish = texts[0]
        return {
            **self._about,
            "content": [self._block(text)],
            "stop_reason": self._reason(finish),
            "stop_sequence": None,
            "usage": {"input_tokens": usage.prompt, "output_tokens": usage.completion},
        }

    def _block(self, text: str) -> dict[str, object]:
        if self._tool:
            return {"type": "tool_use", "id": f"toolu_{self._tool}", "name": self._tool, "input": {}}
        return {"type": "text", "text": text}

    def _reason(self, finish: str) -> str:
        return "tool_use" if self._tool else _REASONS.get(finish, finish)


def _event(kind: str, **members: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **members}))
