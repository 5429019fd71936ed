"""How a generated answer is written down: as server-sent events or as one document, in each API's own form. Pure.

Owns: chat completions and completions; `responses` and `messages` have the other two. Trap: a chunk is made of bytes
prepared once per request with only the text encoded per token; that is what lets one process send thousands of chunks
a second.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import orjson

from matrixinfer.enginesim.wire import Usage

__all__ = ["DONE", "ChunkDialect", "Dialect", "Text"]

DONE: Final = b"data: [DONE]\n\n"

Text = tuple[str, str]
"""Text and finish reason of one choice."""


class Dialect(Protocol):
    """Writes one answer; the methods for a stream are called in this order."""

    def opening(self, choices: int, prompt: int) -> bytes:
        """The events before the first token; `prompt` counts tokens."""
        ...

    def token(self, index: int, text: str, finish: str | None) -> bytes:
        """The events of one token; `finish` is set on the last one of a choice."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """The events after the last token."""
        ...

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, object]:
        """The answer as one document."""
        ...


class ChunkDialect:
    """OpenAI's chunks: chat completions and completions.

    With `tool`, the answer is a call of that function, whatever text was generated.
    """

    def __init__(
        self, *, request_id: str, created: int, model: str, chat: bool, include_usage: bool, tool: str = ""
    ) -> None:
        self._chat = chat
        self._include_usage = include_usage
        self._tool = tool
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._about: dict[str, object] = {"id": request_id, "object": kind, "created": created, "model": model}
        self._head = b"data: " + orjson.dumps(self._about)[:-1]
        self._text = b'"delta":{"content":' if chat else b'"text":'
        self._after_text = b"}" if chat else b""

    def opening(self, choices: int, prompt: int) -> bytes:  # noqa: ARG002
        """Chat streams begin with a chunk per choice that names the role."""
        if not self._chat:
            return b""
        first = b'"delta":{"role":"assistant","content":""}'
        if self._tool:
            first = b'"delta":' + orjson.dumps({"role": "assistant", "tool_calls": [_tool_call(self._tool, index=0)]})
        return b"".join(self._event(index, first, b"null") for index in range(choices))

    def token(self, index: int, text: str, finish: str | None) -> bytes:
        """One token; chat streams tell the end in a chunk of its own, completions with the last token."""
        if self._tool:
            return self._event(index, b'"delta":{}', b'"tool_calls"') if finish is not None else b""
        words = self._text + orjson.dumps(text) + self._after_text
        reason = b"null" if finish is None else b'"' + finish.encode() + b'"'
        if self._chat and finish is not None:
            return self._event(index, words, b"null") + self._event(index, b'"delta":{}', reason)
        return self._event(index, words, reason)

    def closing(self, usage: Usage) -> bytes:
        """The chunk without choices that carries the token counts, if it was asked for, and the end."""
        counts = self._head + b',"choices":[],"usage":' + orjson.dumps(usage.to_json()) + b"}\n\n"
        return (counts if self._include_usage else b"") + DONE

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, object]:
        """The whole answer of a request that did not stream."""
        choices: list[dict[str, object]] = []
        for index, (text, finish) in enumerate(texts):
            reason = "tool_calls" if self._tool else finish
            content = {"message": self._message(text)} if self._chat else {"text": text}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": reason})
        kind = "chat.completion" if self._chat else "text_completion"
        return self._about | {"object": kind, "choices": choices, "usage": usage.to_json()}

    def _message(self, text: str) -> dict[str, object]:
        if self._tool:
            return {"role": "assistant", "content": None, "tool_calls": [_tool_call(self._tool)]}
        return {"role": "assistant", "content": text}

    def _event(self, index: int, words: bytes, reason: bytes) -> bytes:
        return b'%b,"choices":[{"index":%d,%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
            self._head,
            index,
            words,
            reason,
        )


def _tool_call(name: str, **more: int) -> dict[str, object]:
    call = {"name": name, "arguments": "{}"}
    return {"id": f"chatcmpl-tool-{name}", "type": "function", "function": call, **more}
