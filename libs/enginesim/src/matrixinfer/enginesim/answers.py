"""Deterministic text: the same prompt, model and seed give the same answer on every replica, today and tomorrow."""

import base64
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["answer_tokens", "embedding", "embedding_base64", "natural_length", "prompt_seed"]

_OPENING: Final = ("This", " is", " a", " simulated", " answer", ":")
_TEXT: Final = (
    "the model reads a prompt and writes one token after another while every replica gives the same words for the "
    "same question so that a test can compare what it got with what it must get and nothing here was learnt from data "
    "or drawn by chance each stream has its own pace its own length and its own end"
)
_WORDS: Final = tuple(f" {word}" for word in _TEXT.split())
_MASK: Final = (1 << 64) - 1


def prompt_seed(tokens: Sequence[int], model: str, seed: int = 0) -> int:
    """One number that stands for a prompt put to a model."""
    state = seed & _MASK
    for value in (*model.encode(), *tokens):
        state = ((state ^ value) * 0x100000001B3 + 0x9E3779B97F4A7C15) & _MASK
    return state


def natural_length(seed: int) -> int:
    """How many tokens an answer has when nothing cuts it: 24 to 87."""
    return 24 + (seed >> 17) % 64


def answer_tokens(seed: int) -> Iterator[str]:
    """The endless text of an answer, token by token; take as many as the answer is long."""
    yield from _OPENING
    state = seed | 1
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) & _MASK
        yield _WORDS[(state >> 33) % len(_WORDS)]


def embedding(seed: int, dimensions: int) -> list[float]:
    """A unit vector that depends on the seed only."""
    state, raw = seed | 1, []
    for _ in range(dimensions):
        state = (state * 6364136223846793005 + 1442695040888963407) & _MASK
        raw.append((state >> 11) / (1 << 53) * 2 - 1)
    norm = math.sqrt(math.fsum(value * value for value in raw)) or 1.0
    return [value / norm for value in raw]


def embedding_base64(vector: Sequence[float]) -> str:
    """OpenAI's `encoding_format: base64`: little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
