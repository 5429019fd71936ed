"""What an engine would have to read: the canonical prompt of a request, its block hashes, and how long it is.

Two requests whose prompts begin alike have canonical texts that begin alike, whatever their JSON looks like: the order
is that of chat templates (tools, system, then the messages), a text is the same whether it came as a string or as the
only part of a list and however it was escaped, markers that move from turn to turn (`cache_control`) are left out, and
an image is its digest.

The chain has one hash per full block, each over its block and the one before, so a hit on one means all before it, and
equal blocks after different beginnings never meet. Blocks grow with the distance from the beginning: a sixteenth of
what lies before is fine enough, and there is no horizon: a megabyte has 128 hashes. The seed keeps apart what must not
share: tenants, models, adapters.

The trap: nothing here may refuse. A body that cannot be understood has no prompt, and its engine will say why.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from matrixinfer.gateway.core.load import BYTES_PER_TOKEN
from matrixinfer.gateway.core.peek import Members, Peek, peek, peeked

__all__ = [
    "BLOCK_ENDS",
    "NOTHING",
    "Prompt",
    "adapter_key",
    "chain",
    "matched_tokens",
    "read_body",
    "read_prompt",
    "seed_of",
]

_FIRST_BLOCK: Final = 512
_GRAIN: Final = 16
"""A block is at most this part of what lies before it."""
_LONGEST: Final = 1 << 30

IMAGE_TOKENS: Final = 1024
"""An image of a megapixel in patches of 28 to 32 pixels. Engines differ; what matters is that it is no short text."""
_AUDIO_BYTES_PER_TOKEN: Final = 1024
"""Of base64: speech in compressed form is about 25 tokens and 30 kB a second."""
_EXTRA_PER_TOKEN: Final = 2.5
"""Bytes of UTF-8 beyond the first of a character: two for a Chinese one, which is about 0.8 tokens."""
_BLOB_BYTES: Final = 256
"""A part that is no text and longer than this is its digest."""

# What stands between two texts, so that moving their border makes another prompt.
_FIELD: Final = "\x1f"
_TURN: Final = "\x1e"


def _block_ends() -> Iterator[int]:
    end = 0
    while end < _LONGEST:
        size = _FIRST_BLOCK
        # Powers of two, so that the sizes are few and every border is one for all prompts.
        while size * 2 <= end // _GRAIN:
            size *= 2
        end += size
        yield end


BLOCK_ENDS: Final = tuple(_block_ends())
"""Where the blocks of every canonical text end, in bytes."""
_BLOCKS: Final = tuple(zip((0, *BLOCK_ENDS), BLOCK_ENDS, strict=False))


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request's prompt. `text` is canonical, and empty when there is nothing to share."""

    text: bytes
    tokens: int
    """Estimate, images and audio included."""
    max_tokens: int | None = None
    """Most that the client wants written, over all choices."""


NOTHING: Final = Prompt(b"", 0)
"""Of a request whose body says nothing."""


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    content: "str | list[_Part] | None" = None
    image_url: msgspec.Raw = msgspec.Raw()
    source: msgspec.Raw = msgspec.Raw()
    video_url: msgspec.Raw = msgspec.Raw()
    file: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    audio_url: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # Items of a Responses input that are no messages.
    arguments: str | None = None
    output: str | list[_Part] | None = None


class _Body(Members):
    messages: list[_Message] = msgspec.field(default_factory=list)
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    system: str | list[_Part] | None = None
    instructions: str | None = None
    cache_salt: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()
    n: msgspec.Raw = msgspec.Raw()


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_items = msgspec.json.Decoder(list[_Message]).decode
_decode_text = msgspec.json.Decoder(str).decode


class _Pen:
    """Writes the canonical text and counts what does not show in it."""

    __slots__ = ("pieces", "tokens")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.tokens = 0

    def message(self, message: _Message) -> None:
        """Write one turn."""
        self.pieces += (message.role, _FIELD)
        self.content(message.content)
        for text in (message.name, message.tool_call_id, message.reasoning_content, message.arguments):
            if text:
                self.pieces += (_FIELD, text)
        if message.tool_calls:
            self.pieces += (_FIELD, bytes(message.tool_calls).decode())
        if message.output:
            self.content(message.output)
        self.pieces.append(_TURN)

    def content(self, content: str | list[_Part] | None) -> None:
        """Write a text or a list of parts."""
        if isinstance(content, str):
            self.pieces.append(content)
        elif content:
            for part in content:
                self.part(part)

    def part(self, part: _Part) -> None:
        """Write one part of a content: its text, else what it holds, else its digest."""
        text = part.text or part.refusal or part.thinking
        if text:
            self.pieces.append(text)
            return
        self.pieces += (_FIELD, part.type, _FIELD, part.name or "", _FIELD, bytes(part.input).decode())
        self.content(part.content)
        for image in (part.image_url, part.source, part.video_url, part.file):
            if raw := bytes(image):
                self.blob(raw, IMAGE_TOKENS)
        for audio in (part.input_audio, part.audio_url):
            if raw := bytes(audio):
                self.blob(raw, len(raw) // _AUDIO_BYTES_PER_TOKEN)
        self.pieces.append(_FIELD)

    def blob(self, raw: bytes, tokens: int) -> None:
        """Write what is no text."""
        self.pieces.append(raw.decode() if len(raw) <= _BLOB_BYTES else xxh3_64_hexdigest(raw))
        self.tokens += tokens


def read_prompt(body: bytes) -> Prompt:
    """Return what the JSON body of a generating request asks an engine to read; `NOTHING` when it says nothing."""
    try:
        return _prompt(_decode_body(body))
    except (ValueError, RecursionError):
        return NOTHING


def read_body(body: bytes) -> tuple[Peek, Prompt]:
    """Return what `peek` and `read_prompt` do, from one reading. Raises BodyError."""
    try:
        members = _decode_body(body)
    except (ValueError, RecursionError):
        # No prompt that could be understood; routing may do with less.
        return peek(body), NOTHING
    return peeked(members), _prompt(members)


def _prompt(members: _Body) -> Prompt:
    try:
        pen = _Pen()
        _write(members, pen)
        text = "".join(pen.pieces)
        data = text.encode()
        limit = _limit(members)
    # DecodeError, UnicodeDecodeError and UnicodeEncodeError are ValueErrors.
    except (ValueError, RecursionError):
        return NOTHING
    return Prompt(data, _text_tokens(len(text), len(data)) + pen.tokens, limit)


def chain(text: bytes, seed: int, limit_bytes: int = _LONGEST) -> list[int]:
    """Return one hash per full block of the first `limit_bytes`; each stands for everything before its end."""
    size = min(len(text), limit_bytes)
    hashes: list[int] = []
    for start, end in _BLOCKS:
        if end > size:
            break
        seed = xxh3_64_intdigest(text[start:end], seed)
        hashes.append(seed)
    return hashes


def seed_of(tenant: str, model: str, adapter: str) -> int:
    """Return the seed of chains that may share: one tenant's, on one model as the engine calls it, with one adapter."""
    return xxh3_64_intdigest(f"{tenant}\0{model}\0{adapter}".encode())


def adapter_key(model: str, adapter: str) -> int:
    """Return the hash under which the endpoints are known that have an adapter of `model` loaded."""
    return xxh3_64_intdigest(f"adapter\0{model}\0{adapter}".encode())


def matched_tokens(blocks: int, prompt: Prompt) -> int:
    """Return how many of a prompt's tokens lie in the first `blocks` blocks of its text."""
    return prompt.tokens * BLOCK_ENDS[blocks - 1] // len(prompt.text) if blocks else 0


def _text_tokens(characters: int, size: int) -> int:
    """Guess how many tokens a text has: a quarter of its ASCII characters, and more for other scripts."""
    extra = size - characters
    # Of the scripts that need more than one byte most need three: so many bytes are ASCII.
    return round((size - 1.5 * extra) / BYTES_PER_TOKEN + extra / _EXTRA_PER_TOKEN)


def _write(members: _Body, pen: _Pen) -> None:
    pieces = pen.pieces
    for setting in (members.cache_salt, members.chat_template):
        if setting:
            pieces += (setting, _FIELD)
    for raw, end in ((members.chat_template_kwargs, _FIELD), (members.tools, _TURN)):
        if raw:
            pieces += (bytes(raw).decode(), end)
    for system in (members.system, members.instructions):
        if system:
            pieces += ("system", _FIELD)
            pen.content(system)
            pieces.append(_TURN)
    for message in members.messages:
        pen.message(message)
    if not members.messages:
        _write_input(bytes(members.prompt) or bytes(members.input), pen)


def _write_input(raw: bytes, pen: _Pen) -> None:
    if raw[:1] == b"[" and raw[1:].lstrip()[:1] == b"{":
        for item in _decode_items(raw):
            pen.message(item)
    elif raw:
        pen.pieces.append(_decode_text(raw) if raw[:1] == b'"' else _listed(raw))


def _listed(raw: bytes) -> str:
    """Texts or tokens in lists: a list begins like the first of its items alone."""
    bare = raw.strip(b"[] \t\r\n").decode()
    return bare[1:] if bare[:1] == '"' else bare.replace(" ", "")


def _limit(members: _Body) -> int | None:
    for raw in (members.max_completion_tokens, members.max_tokens, members.max_output_tokens):
        if raw and (digits := bytes(raw)).isdigit():
            choices = bytes(members.n) if members.n else b""
            return int(digits) * (int(choices) if choices.isdigit() else 1)
    return None
