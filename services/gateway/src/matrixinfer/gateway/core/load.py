"""What is known of the load of endpoints: our own counts, exact and at once, and what engines say, with its age.

Owns the shapes. All sequences run parallel to the slots that were asked for, so that 500 endpoints are a few tuples
and not 500 objects. The trap: an engine that says nothing is not idle. What is not known is NaN, which compares false
with everything, and the age of what is known travels with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf, nan
from typing import Final

import msgspec

__all__ = [
    "BYTES_PER_TOKEN",
    "FRESH_SECONDS",
    "KV_COMFORT",
    "UNKNOWN",
    "Burden",
    "EngineLoads",
    "EngineReport",
    "Loads",
    "Progress",
    "answer_tokens",
    "burden",
    "progress",
]

BYTES_PER_TOKEN: Final = 4
"""What a token of English text weighs, about."""
FRESH_SECONDS: Final = 5.0
"""Over this time the word of an engine fades from full to nothing."""
KV_COMFORT: Final = 0.8
"""Below this use of the KV memory nothing has to wait for it."""
_DECODE_TOKENS: Final = 256
_AT_LEAST_TOKENS: Final = 16
# What an engine is taken for that shows nothing until it is done: a slow one, so that it is never taken for idle early.
_READ_TOKENS_PER_SECOND: Final = 2000.0
_READ_SECONDS: Final = 0.5
_WRITE_TOKENS_PER_SECOND: Final = 20.0


class Burden(msgspec.Struct, frozen=True, gc=False):
    """What one request lays on an endpoint, as far as it can be told before: tokens the engine has to read before it
    can answer (those it has cached do not count), tokens it is expected to write."""

    prefill_tokens: int = 0
    decode_tokens: int = 0


def burden(size: int, max_tokens: int | None = None) -> Burden:
    """Estimate what a request with a body of `size` bytes asks of an engine that has none of its prompt cached."""
    return Burden(-(-size // BYTES_PER_TOKEN), answer_tokens(max_tokens))


def answer_tokens(max_tokens: int | None) -> int:
    """Estimate how long an answer will be."""
    if max_tokens is None or max_tokens > _DECODE_TOKENS:
        return _DECODE_TOKENS
    return max_tokens if max_tokens > 0 else 1


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far an engine has come with a request."""

    is_read: bool
    """Whether its prompt was read."""
    decode_tokens: int
    """Tokens that the answer still lacks."""


def progress(laid: Burden, *, streams: bool, pieces: int, seconds: float) -> Progress:
    """Judge a request that was sent `seconds` ago and of whose answer `pieces` have come, each about a token.

    An answer that comes in one piece shows nothing until it is done, so time has to tell. A running answer is never as
    good as done: how long it will be is a guess, and until it ends it has its place in the batch.
    """
    is_read, written = pieces > 0, float(pieces)
    if not streams:
        writing = seconds - _READ_SECONDS - laid.prefill_tokens / _READ_TOKENS_PER_SECOND
        is_read = is_read or writing > 0
        written = max(0.0, writing) * _WRITE_TOKENS_PER_SECOND
    return Progress(is_read, max(laid.decode_tokens - int(written), min(laid.decode_tokens, _AT_LEAST_TOKENS)))


class Loads(msgspec.Struct, frozen=True, gc=False):
    """Our own requests in flight per endpoint, over all workers of this gateway."""

    requests: Sequence[int]
    """Requests that were sent and whose answer has not ended."""
    prefill_tokens: Sequence[int]
    """Tokens of the requests that wait for their first byte."""
    decode_tokens: Sequence[int]
    """Tokens that the answers in flight are still expected to have."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What one engine said of itself in one scrape; NaN is what it did not say."""

    running: float = nan
    """Requests in the batch."""
    waiting: float = nan
    """Requests that wait for a place in it."""
    kv_usage: float = nan
    """Used share of the memory for keys and values, 0 to 1; of several ranks the fullest."""
    prefix_hit_ratio: float = nan
    """Share of the prompt tokens that were found in the prefix cache between the last two scrapes, 0 to 1."""
    kv_tokens: float = nan
    """Tokens that the memory for keys and values holds."""
    ttft_seconds: float = nan
    """Mean time to first token of the requests that got it between the last two scrapes that saw any."""
    tpot_seconds: float = nan
    """Mean time of a token after the first, likewise."""


UNKNOWN: Final = EngineReport()
"""Of an engine that was never scraped."""


@dataclass(frozen=True)
class EngineLoads:
    """The newest report of each engine, in columns, and what follows from them alone: many decisions see one report."""

    ages: Sequence[float]
    """Seconds since the engine said it; infinite when it never did."""
    failures: Sequence[float]
    """Scrapes in a row that failed since; 0 while all is well."""
    running: Sequence[float]
    waiting: Sequence[float]
    kv_usage: Sequence[float]
    prefix_hit_ratio: Sequence[float]
    kv_tokens: Sequence[float]
    ttft_seconds: Sequence[float]
    tpot_seconds: Sequence[float]

    @cached_property
    def at_work(self) -> Sequence[float]:
        """Requests that each engine has, waiting ones included; negative where it says none, or said it long ago."""
        columns = zip(self.running, self.waiting, self.ages, strict=True)
        # NaN compares false.
        return [
            running + waiting if running + waiting > 0.0 and age < FRESH_SECONDS else -1.0
            for running, waiting, age in columns
        ]

    @cached_property
    def adds_work(self) -> bool:
        """Whether any engine says something that may add to our own counts."""
        return any(self.failures) or max(self.at_work, default=-1.0) > 0.0

    @cached_property
    def lacks_memory(self) -> bool:
        """Whether any engine's memory for keys and values is not known to have room."""
        # Who says nothing does not count as comfortable.
        columns = zip(self.kv_usage, self.ages, strict=True)
        return not all(usage <= KV_COMFORT and age < FRESH_SECONDS for usage, age in columns)

    @cached_property
    def tells_memory(self) -> bool:
        """Whether any engine said of late how much of that memory is used."""
        return any(usage >= 0.0 and age < FRESH_SECONDS for usage, age in zip(self.kv_usage, self.ages, strict=True))

    @staticmethod
    def unknown(count: int) -> "EngineLoads":
        """Nothing known of `count` endpoints."""
        nothing = (nan,) * count
        reported = len(fields(EngineReport))
        return EngineLoads((inf,) * count, (0.0,) * count, *[nothing] * reported)
