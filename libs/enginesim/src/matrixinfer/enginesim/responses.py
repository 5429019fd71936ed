"""OpenAI's Responses API: reading requests, writing events and objects, keeping what was answered. Pure.

Kept responses are this engine's alone, in memory, as in vLLM and SGLang: another replica does not know them.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from matrixinfer.enginesim.dialects import Text
from matrixinfer.enginesim.tokens import token_ids
from matrixinfer.enginesim.wire import BadRequest, Generation, Usage, chat_text, content_text, generation, wanted_tool

__all__ = ["Kept", "ResponseDialect", "ResponseStore", "input_items", "responses_request"]

_KEPT: Final = 1000
_ECHOED: Final = ("instructions", "metadata", "temperature", "top_p", "max_output_tokens", "previous_response_id")


@dataclass(frozen=True, slots=True)
class Kept:
    """A response that can be asked for again, with the messages that led to it."""

    response: dict[str, Any]
    messages: tuple[dict[str, Any], ...]


class ResponseStore:
    """The newest responses of one engine."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, kept: Kept) -> None:
        """Keep a response, or a newer state of it; the oldest is dropped."""
        self._kept[kept.response["id"]] = kept
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def get(self, response_id: str) -> Kept:
        """A kept response. Raises `BadRequest` (404)."""
        kept = self._kept.get(response_id)
        if kept is None:
            raise BadRequest(f"Response with id '{response_id}' not found.", param="response_id", status=404)
        return kept

    def is_cancelled(self, response_id: str) -> bool:
        """Whether a response was cancelled while it was being made."""
        kept = self._kept.get(response_id)
        return kept is not None and kept.response["status"] == "cancelled"

    def drop(self, response_id: str) -> None:
        """Forget a response. Raises `BadRequest` (404)."""
        self.get(response_id)
        del self._kept[response_id]

    def cancel(self, response_id: str) -> Kept:
        """Mark a response that is still being made as cancelled. Raises `BadRequest`."""
        kept = self.get(response_id)
        if not kept.response.get("background"):
            raise BadRequest("Cannot cancel a synchronous response.", param="response_id")
        if kept.response["status"] in ("queued", "in_progress"):
            kept = replace(kept, response={**kept.response, "status": "cancelled"})
            self.keep(kept)
        return kept


def input_items(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The `input` of a request as a list of messages. Raises `BadRequest`."""
    given = body.get("input")
    if isinstance(given, str):
        return ({"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]},)
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given) or not given:
        raise BadRequest("input must be text or a non-empty array of items", param="input")
    return tuple(given)


def responses_request(body: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> Generation:
    """Read a request that continues `before`. Raises `BadRequest`."""
    messages = [{"role": m.get("role", "user"), "content": content_text(m.get("content"))} for m in before]
    messages += [{"role": m.get("role", "user"), "content": content_text(m.get("content"))} for m in input_items(body)]
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": str(body["instructions"])})
    prompt = tuple(token_ids(chat_text(messages)))
    return generation(body, (prompt,), body.get("max_output_tokens"))


class ResponseDialect:
    """Events and objects of one response."""

    def __init__(self, body: Mapping[str, Any], *, response_id: str, created: int, model: str) -> None:
        self._tool = wanted_tool(body)
        self._item_id = "msg_" + response_id.removeprefix("resp_")
        self._number = 0
        self._text: list[str] = []
        self._finish = "stop"
        self._about: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": created,
            "model": model,
            "background": bool(body.get("background")),
            "parallel_tool_calls": True,
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools", []),
            **{key: body.get(key) for key in _ECHOED},
        }

    def state(self, status: str) -> dict[str, Any]:
        """The response before there is an answer."""
        return {**self._about, "status": status, "output": [], "usage": None}

    def opening(self, choices: int, prompt: int) -> bytes:  # noqa: ARG002
        """The response, its one item, and the item's one part."""
        item = self._item("", "in_progress") | ({} if self._tool else {"content": []})
        events = [
            self._event("response.created", response=self.state("in_progress")),
            self._event("response.in_progress", response=self.state("in_progress")),
            self._event("response.output_item.added", output_index=0, item=item),
        ]
        if not self._tool:
            events.append(self._event("response.content_part.added", **self._at_part, part=_part("")))
        return b"".join(events)

    def token(self, index: int, text: str, finish: str | None) -> bytes:  # noqa: ARG002
        """One piece of text."""
        self._text.append(text)
        self._finish = finish or self._finish
        if self._tool:
            return b""
        return self._event("response.output_text.delta", **self._at_part, delta=text, logprobs=[])

    def closing(self, usage: Usage) -> bytes:
        """Everything again, complete."""
        text, whole = "".join(self._text), self.streamed(usage)
        events = [self._event("response.output_item.done", output_index=0, item=self._item(text, "completed"))]
        if not self._tool:
            events[:0] = [
                self._event("response.output_text.done", **self._at_part, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._at_part, part=_part(text)),
            ]
        return b"".join((*events, self._event(f"response.{whole['status']}", response=whole)))

    def streamed(self, usage: Usage) -> dict[str, object]:
        """The response with the answer that went out as a stream."""
        return self.whole([("".join(self._text), self._finish)], usage)

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, object]:
        """The response with its answer."""
        text, finish = texts[0]
        is_cut = finish == "length"
        return {
            **self._about,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "error": None,
            "output": [self._item(text, "completed")],
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached or 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.completion,
            },
        }

    @property
    def _at_part(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, text: str, status: str) -> dict[str, object]:
        if self._tool:
            call = {"type": "function_call", "name": self._tool, "arguments": "{}", "call_id": f"call_{self._tool}"}
            return {"id": "fc_" + self._item_id.removeprefix("msg_"), "status": status, **call}
        message = {"type": "message", "role": "assistant", "content": [_part(text)]}
        return {"id": self._item_id, "status": status, **message}

    def _event(self, kind: str, **members: object) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **members})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
