"""OpenAI's wire forms: reading requests, and the objects that all answers share. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matrixinfer.enginesim.tokens import token_ids

__all__ = [
    "BadRequest",
    "Generation",
    "Usage",
    "chat_request",
    "chat_text",
    "completion_request",
    "content_text",
    "embedding_request",
    "error_body",
    "generation",
    "model_of",
    "prompt_tokens_of",
    "wanted_tool",
    "whole_number",
]


class BadRequest(Exception):
    """The client's fault; becomes an OpenAI error object."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; `cached` is shown only when the engine was told to."""

    prompt: int
    completion: int
    cached: int | None = None

    def to_json(self) -> dict[str, object]:
        """The `usage` object."""
        details = None if self.cached is None else {"cached_tokens": self.cached}
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "prompt_tokens_details": details,
        }


@dataclass(frozen=True, slots=True)
class Generation:
    """A chat or completion request as the engine needs it."""

    model: str
    prompts: tuple[tuple[int, ...], ...]
    choices: int
    limit: int | None
    minimum: int
    stream: bool
    include_usage: bool
    ignore_eos: bool
    seed: int


def chat_text(messages: object) -> str:
    """The chat template: the text that the model would see."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a non-empty array", param="messages")
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("each message must be an object with a role", param="messages")
        parts.append(f"<|im_start|>{message['role']}\n{content_text(message.get('content'))}<|im_end|>\n")
    return "".join(parts) + "<|im_start|>assistant\n"


def content_text(content: object) -> str:
    """Message content: text, or the text parts of a list, joined."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def chat_request(body: Mapping[str, Any]) -> Generation:
    """Read a chat completion request. Raises `BadRequest`."""
    prompt = tuple(token_ids(chat_text(body.get("messages"))))
    limit = body.get("max_completion_tokens")
    return generation(body, (prompt,), limit if limit is not None else body.get("max_tokens"))


def completion_request(body: Mapping[str, Any]) -> Generation:
    """Read a completion request; without `max_tokens` it is 16, as OpenAI says. Raises `BadRequest`."""
    limit = body.get("max_tokens")
    return generation(body, prompt_tokens_of(body.get("prompt"), "prompt"), 16 if limit is None else limit)


def embedding_request(body: Mapping[str, Any]) -> tuple[tuple[tuple[int, ...], ...], int, bool]:
    """Inputs, dimensions, and whether vectors go out as base64. Raises `BadRequest`."""
    inputs = prompt_tokens_of(body.get("input"), "input")
    dimensions = whole_number(body, "dimensions", 64, low=1, high=4096)
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise BadRequest("encoding_format must be float or base64", param="encoding_format")
    return inputs, dimensions, encoding == "base64"


def prompt_tokens_of(value: object, param: str) -> tuple[tuple[int, ...], ...]:
    """Text, token ids, or a list of either, as token ids per sequence. Raises `BadRequest`."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRequest(f"{param} must be text, token ids, or a non-empty array of them", param=param)
    return tuple(_sequence(item, param) for item in value)


def _sequence(item: object, param: str) -> tuple[int, ...]:
    if isinstance(item, str):
        return tuple(token_ids(item)) or (0,)
    if isinstance(item, list) and item and all(type(token) is int for token in item):
        return tuple(item)
    raise BadRequest(f"{param} must be text, token ids, or a non-empty array of them", param=param)


def generation(body: Mapping[str, Any], prompts: tuple[tuple[int, ...], ...], limit: object) -> Generation:
    """Read what all generating requests have in common. Raises `BadRequest`."""
    stream = body.get("stream") or False
    options = body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise BadRequest("stream must be a boolean and stream_options an object", param="stream")
    if options and not stream:
        raise BadRequest("Stream options can only be defined when `stream=True`.", param="stream_options")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise BadRequest(f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
    return Generation(
        model=model_of(body),
        prompts=prompts,
        choices=whole_number(body, "n", 1, low=1, high=64),
        limit=limit,
        minimum=whole_number(body, "min_tokens", 0, low=0, high=1 << 31),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        ignore_eos=bool(body.get("ignore_eos")),
        seed=whole_number(body, "seed", 0, low=-(1 << 63), high=(1 << 63) - 1),
    )


def wanted_tool(body: Mapping[str, Any]) -> str:
    """The function that must be called, as `tool_choice` says in any of the APIs; empty when text will do."""
    choice, tools = body.get("tool_choice"), body.get("tools") or []
    if isinstance(choice, dict) and choice.get("type") in ("function", "tool"):
        return str(choice.get("name") or choice.get("function", {}).get("name", ""))
    if tools and (choice == "required" or (isinstance(choice, dict) and choice.get("type") == "any")):
        return str(tools[0].get("name") or tools[0].get("function", {}).get("name", ""))
    return ""


def model_of(body: Mapping[str, Any]) -> str:
    """The model asked for; empty when the request leaves it out. Raises `BadRequest`."""
    model = body.get("model", "")
    if not isinstance(model, str):
        raise BadRequest("model must be text", param="model")
    return model


def whole_number(body: Mapping[str, Any], key: str, default: int, *, low: int, high: int) -> int:
    """A member that is a whole number within bounds. Raises `BadRequest`."""
    value = body.get(key)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise BadRequest(f"{key} must be a whole number from {low} to {high}", param=key)
    return value


def error_body(message: str, *, status: int, param: str | None = None) -> dict[str, object]:
    """OpenAI's error object, with vLLM's names for the types."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}
    return {
        "error": {"message": message, "type": kinds.get(status, "InternalServerError"), "param": param, "code": status}
    }
