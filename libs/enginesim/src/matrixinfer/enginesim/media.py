"""Sound and pictures: small, deterministic and valid, so that clients can decode what they get. Pure."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

from matrixinfer.enginesim.answers import answer_tokens, prompt_seed
from matrixinfer.enginesim.wire import BadRequest, whole_number

__all__ = ["heard_text", "image_base64", "images_wanted", "spoken"]

_RATE: Final = 8000
_SIDE: Final = 8


def heard_text(audio: bytes, words: int = 12) -> list[str]:
    """The tokens of the text that is heard in some audio; equal bytes sound alike."""
    tokens = answer_tokens(zlib.crc32(audio))
    return [next(tokens) for _ in range(words)]


def spoken(text: str) -> bytes:
    """A WAV file that hums for a hundredth of a second per character."""
    samples = bytes((index * 7 % 256) for index in range(len(text) * _RATE // 100))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _RATE, _RATE, 1, 8)
    size = len(samples)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size) + samples


def images_wanted(body: Mapping[str, Any]) -> int:
    """How many pictures are wanted. Raises `BadRequest`."""
    if not isinstance(body.get("prompt"), str):
        raise BadRequest("prompt must be text", param="prompt")
    return whole_number(body, "n", 1, low=1, high=10)


def image_base64(prompt: str, number: int) -> str:
    """A PNG of one colour that the prompt decides."""
    colour = prompt_seed(prompt.encode(), "image", number).to_bytes(8, "big")[:3]
    rows = (b"\0" + colour * _SIDE) * _SIDE
    head = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
