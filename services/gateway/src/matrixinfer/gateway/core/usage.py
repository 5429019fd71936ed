"""How many tokens a request took, from the first and the last bytes of its answer. Pure.

Every form that engines answer in names the counts in one object called `usage`, at the very end of a stream and near
one of the two ends of a document. So nothing is parsed while an answer is relayed and no answer is kept: a few
kilobytes of each end are looked at once, when it is over. Counts are cumulative where an engine repeats them, so the
last one holds and nothing is ever summed. The trap: a text that speaks of `"usage"` looks like the member, but inside
a JSON string its quotes are escaped, so the bytes `"usage"` are always a name.
"""

import re

import msgspec

from matrixinfer.gateway.core.load import BYTES_PER_TOKEN
from matrixinfer.gateway.core.surface import is_generation

__all__ = ["END_BYTES", "Answer", "Usage", "usage_of"]

END_BYTES = 8 * 1024
"""How much of each end of an answer is worth keeping."""

# An object with objects inside it, two deep: the details of a count. None of its strings holds a brace. llama.cpp
# tells the counts of a stream in `timings`.
_USAGE = re.compile(rb'"(?:usage|timings)"\s*+:\s*+(\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\})')
_NAMES = (b'"usage"', b'"timings"')


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request; `cached` are those of the prompt that the engine had in its cache already."""

    prompt: int
    completion: int
    cached: int = 0
    is_estimate: bool = False
    """The engine did not say: counted from what went through."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Members(msgspec.Struct):
    """The members of all forms: OpenAI's two, Anthropic's and llama.cpp's, whose prompts leave out what was cached."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_n: int | None = None
    predicted_n: int | None = None
    cache_n: int | None = None


_decoder = msgspec.json.Decoder(_Members)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What is known of an answer when it is over, or when its client left."""

    path: bytes
    first: bytes = b""
    last: bytes = b""
    """How its body began and ended; both may be the same bytes."""
    pieces: int = 0
    is_stream: bool = False
    is_complete: bool = True


def usage_of(answer: Answer, request_bytes: int) -> Usage | None:
    """Return the tokens that a request of so many bytes took; None where there is nothing to count.

    A client that left, and an engine that does not say, are no reason to count nothing.
    """
    found = _reported(answer.first, answer.last)
    tokens = answer.pieces if answer.is_stream else 0
    if found is None:
        # Of other surfaces only what the engine says is known.
        return _estimated(request_bytes, tokens) if is_generation(answer.path) else None
    if answer.is_stream and not answer.is_complete and found.completion * 2 < tokens:
        # Anthropic's streams say at their beginning what the prompt was, and only at their end what came of it.
        return Usage(found.prompt, tokens, found.cached, is_estimate=True)
    return found


def _estimated(request_bytes: int, pieces: int) -> Usage:
    # Engines send a piece per token, or for a few of them.
    return Usage(request_bytes // BYTES_PER_TOKEN, pieces, is_estimate=True)


def _reported(first: bytes, last: bytes) -> Usage | None:
    """What the engine says; its word at the end goes before its word at the beginning."""
    end = _found(last)
    # A short answer is its own beginning and end.
    begin = None if first == last else _found(first)
    if end is None or begin is None:
        found = end or begin
        return None if found is None else _usage(found)
    for name in _Members.__struct_fields__:
        if getattr(end, name) is None:
            setattr(end, name, getattr(begin, name))
    return _usage(end)


def _found(data: bytes) -> _Members | None:
    """The last object called `usage`, leaving out those that are null or cut off."""
    # From the end backwards: the last one holds, and a search for plain bytes is much faster than one for a pattern.
    # llama.cpp ends a document with both; `timings` alone leaves out nothing that `usage` has.
    at = max(map(data.rfind, _NAMES))
    while at >= 0 and (last := _USAGE.match(data, at)) is None:
        at = max(data.rfind(name, 0, at) for name in _NAMES)
    if at < 0 or last is None:
        return None
    try:
        return _decoder.decode(last[1])
    except ValueError:
        # Counts that are no counts: the engine's business, and no reason to fail a request that is over.
        return None


def _usage(found: _Members) -> Usage | None:
    details = found.prompt_tokens_details or found.input_tokens_details
    completion = found.completion_tokens if found.completion_tokens is not None else found.output_tokens or 0
    if found.prompt_tokens is not None:
        return _checked(found.prompt_tokens, completion, (details and details.cached_tokens) or 0)
    if found.input_tokens is not None:
        read = found.cache_read_input_tokens or 0
        prompt = found.input_tokens + read + (found.cache_creation_input_tokens or 0)
        return _checked(prompt, completion, read or (details and details.cached_tokens) or 0)
    if found.prompt_n is not None:
        cached = found.cache_n or 0
        return _checked(found.prompt_n + cached, found.predicted_n or 0, cached)
    if found.total_tokens is not None:
        return _checked(found.total_tokens - completion, completion, 0)
    return None


def _checked(prompt: int, completion: int, cached: int) -> Usage | None:
    return Usage(prompt, completion, cached) if min(prompt, completion, cached) >= 0 else None
