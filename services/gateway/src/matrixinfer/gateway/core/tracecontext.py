"""The identity of a distributed trace: W3C `traceparent`, and which traces are kept. Pure; chance is an argument.

The samplers are those of the OpenTelemetry specification, under its names. The trap: a broken header must neither fail
a request nor be passed on, so it counts as none.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["SAMPLERS", "Sampler", "TraceContext", "parse", "sampler"]

_HEADER = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span of one trace, as others refer to it. Ids are lower-case hex."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def header(self) -> bytes:
        """The value of `traceparent` that makes others children of this span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}".encode()


Sampler: TypeAlias = Callable[[TraceContext | None, str], bool]
"""Whether a trace is kept: given the caller's span, when there is one, and the trace's id."""


def parse(value: bytes | None) -> TraceContext | None:
    """Return what a `traceparent` says; None when there is none, or none that can be used."""
    match = _HEADER.fullmatch(value) if value else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # Later versions may say more behind what is known; version 00 may not, and ff is none.
    if version == b"ff" or (version == b"00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & _SAMPLED))


def sampler(name: str, ratio: float) -> Sampler:
    """Return the sampler of a name in `SAMPLERS`; `ratio` in [0, 1] is the share that `traceidratio` keeps."""
    root = _ROOTS[name.removeprefix("parentbased_")](ratio)
    if not name.startswith("parentbased_"):
        return root
    return lambda parent, trace_id: root(None, trace_id) if parent is None else parent.sampled


def _ratio(ratio: float) -> Sampler:
    # The same id is kept or not by every service that a request meets.
    bound = round(ratio * (1 << 64))
    return lambda _parent, trace_id: int(trace_id[16:], 16) < bound


_ROOTS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda _ratio: lambda _parent, _trace_id: True,
    "always_off": lambda _ratio: lambda _parent, _trace_id: False,
    "traceidratio": _ratio,
}

SAMPLERS = (*_ROOTS, *(f"parentbased_{name}" for name in _ROOTS))
"""The names that OTEL_TRACES_SAMPLER may have."""
