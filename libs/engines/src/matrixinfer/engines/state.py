"""What an engine's page says of its load, in words that fit every engine.

Owns which metrics that takes and how each engine says it. What an engine does not say is `None`, never 0: an engine
that is renamed, half started or broken must not look idle.
"""

from dataclasses import dataclass
from typing import Final

from matrixinfer.engines.exposition import Reading, Sample
from matrixinfer.engines.glance import Glance
from matrixinfer.engines.metric_names import ADAPTER_INFO, CACHE_INFO, Aliases, Metric, part_of

__all__ = ["STATE_METRICS", "EngineState", "StateReader", "engine_state"]

_TTFT_SECONDS: Final = part_of(Metric.TTFT, "sum")
_TTFT_COUNT: Final = part_of(Metric.TTFT, "count")
_TPOT_SECONDS: Final = part_of(Metric.ITL, "sum")
_TPOT_COUNT: Final = part_of(Metric.ITL, "count")

STATE_METRICS: Final[tuple[Metric | Aliases | str, ...]] = (
    Metric.RUNNING,
    Metric.WAITING,
    Metric.KV_USAGE,
    Metric.PREFIX_QUERIES,
    Metric.PREFIX_HITS,
    Metric.PREFIX_HIT_RATIO,
    Metric.KV_TOKENS,
    CACHE_INFO,
    ADAPTER_INFO,
    _TTFT_SECONDS,
    _TTFT_COUNT,
    _TPOT_SECONDS,
    _TPOT_COUNT,
)
"""What a reader must look for so that `engine_state` has all there is."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """The load of one engine process, all its data-parallel ranks together."""

    running: float | None = None
    """Requests in the batch."""
    waiting: float | None = None
    """Requests that wait for a place in it."""
    kv_usage: float | None = None
    """Used share of the memory for keys and values, 0 to 1, of the fullest rank."""
    kv_tokens: float | None = None
    """Tokens that this memory holds."""
    prefix_queries: float | None = None
    """Prompt tokens looked up in the prefix cache since the start."""
    prefix_hits: float | None = None
    """Those of them that were found."""
    prefix_hit_ratio: float | None = None
    """The engine's own word on the share found, where it has one; 0 to 1."""
    adapters: frozenset[str] | None = None
    """Adapters that requests use right now. Others may be loaded."""
    ttft_seconds: float | None = None
    """What requests waited for their first token since the start, added up; of several ranks that of the first."""
    ttft_count: float | None = None
    """So many did."""
    tpot_seconds: float | None = None
    """What the tokens after the first took, likewise."""
    tpot_count: float | None = None

    @property
    def says_load(self) -> bool:
        """Whether it says how busy the engine is."""
        return self.running is not None


def engine_state(reading: Reading) -> EngineState:
    """Return what a page says; `reading` must have looked for `STATE_METRICS`."""
    ratio = reading.number(Metric.PREFIX_HIT_RATIO)
    return EngineState(
        running=reading.number(Metric.RUNNING),
        waiting=reading.number(Metric.WAITING),
        kv_usage=reading.number(Metric.KV_USAGE),
        kv_tokens=_kv_tokens(reading),
        prefix_queries=reading.number(Metric.PREFIX_QUERIES),
        prefix_hits=reading.number(Metric.PREFIX_HITS),
        # Old releases of vLLM say -1 when the cache is off.
        prefix_hit_ratio=ratio if ratio is not None and ratio >= 0 else None,
        adapters=_adapters(reading),
        ttft_seconds=reading.number(_TTFT_SECONDS),
        ttft_count=reading.number(_TTFT_COUNT),
        tpot_seconds=reading.number(_TPOT_SECONDS),
        tpot_count=reading.number(_TPOT_COUNT),
    )


class StateReader:
    """Reads the state of one engine process again and again; a state that did not change is the same object."""

    __slots__ = ("_glance", "_reading", "_state")

    def __init__(self, *, limit_bytes: int = 8 << 20) -> None:
        self._glance = Glance(STATE_METRICS, limit_bytes=limit_bytes)
        self._reading: Reading | None = None
        self._state = EngineState()

    def read(self, page: bytes) -> EngineState:
        """Return what a page says. Raises `ExpositionTooLarge`."""
        reading = self._glance.read(page)
        if reading is not self._reading:
            self._reading, self._state = reading, engine_state(reading)
        return self._state


def _kv_tokens(reading: Reading) -> float | None:
    said = reading.number(Metric.KV_TOKENS)
    family = reading.family(CACHE_INFO)
    if said is not None or family is None:
        return said
    try:
        return sum(float(s.labels["block_size"]) * float(s.labels["num_gpu_blocks"]) for s in family.samples)
    except (KeyError, ValueError):
        # "None" until the engine has measured its memory.
        return None


def _adapters(reading: Reading) -> frozenset[str] | None:
    family = reading.family(ADAPTER_INFO)
    if family is None or not family.samples:
        return None
    newest: Sample = max(family.samples, key=lambda sample: sample.value)
    named = (newest.labels.get(label, "") for label in ("running_lora_adapters", "waiting_lora_adapters"))
    return frozenset(name.strip() for names in named for name in names.split(",") if name.strip())
