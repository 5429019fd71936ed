"""The plugins of the gateway that this one replaces, by its formulas and under its names.

They are here so that manifests keep their meaning and benches compare fairly inside one process, not because they are
good: they normalise by the extremes of the candidates and know engines only by their last scrape. Two defects are left
out: nothing here divides by zero, and what an engine does not say is taken for the worst that is known of the others,
never for idle. Scores are its whole numbers of 0 to 100, divided by 100.
"""

from collections.abc import Sequence
from typing import Final

from matrixinfer.gateway.core.schedule.framework import Contest, View

__all__ = [
    "few_waiting",
    "gpu_cache_usage",
    "least_latency",
    "least_request",
    "lora_affinity",
    "prefix_cache",
]

_MAX_WAITING: Final = 10
_WAITING_WEIGHT: Final = 100
_TTFT_WEIGHT: Final = 0.5
_NO_LATENCY: Final = 0.5


def few_waiting(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep engines that say that fewer than ten requests wait; those that say nothing stay."""
    engines = view.engines
    if engines is None:
        return candidates
    waiting = engines.waiting
    # NaN compares false, so silence does not remove; our own counts judge it elsewhere.
    return [i for i in candidates if not waiting[i] >= _MAX_WAITING]


def least_request(contest: Contest) -> list[float]:
    """Running and, a hundred times as heavy, waiting requests, against the worst candidate."""
    view, candidates = contest.view, contest.candidates
    engines = view.engines
    if engines is None:
        loads = [float(view.requests[i]) for i in candidates]
    else:
        loads = _filled([engines.running[i] + _WAITING_WEIGHT * engines.waiting[i] for i in candidates])
    worst = max(loads)
    if worst <= 0.0:
        return [1.0] * len(loads)
    return [_whole((worst - load) / worst) for load in loads]


def gpu_cache_usage(contest: Contest) -> list[float]:
    """The free share of the KV memory."""
    view, candidates = contest.view, contest.candidates
    engines = view.engines
    if engines is None:
        return [0.0] * len(candidates)
    return [_whole(1.0 - usage) for usage in _filled([engines.kv_usage[i] for i in candidates], ceiling=1.0)]


def least_latency(contest: Contest) -> list[float]:
    """Time to first token and per token as engines say, half each, stretched between the best and the worst."""
    engines, candidates = contest.view.engines, contest.candidates
    if engines is None:
        return [_NO_LATENCY] * len(candidates)
    first, each = _stretched(engines.ttft_seconds, candidates), _stretched(engines.tpot_seconds, candidates)
    return [_whole(_TTFT_WEIGHT * one + (1.0 - _TTFT_WEIGHT) * other) for one, other in zip(first, each, strict=True)]


def prefix_cache(contest: Contest) -> list[float]:
    """The cached share of the prompt, whatever the load."""
    view, candidates = contest.view, contest.candidates
    cached, common, total = view.cached_tokens, view.common_tokens, max(view.prompt_tokens, 1)
    return [_whole(min(cached.get(i, common) / total, 1.0)) for i in candidates]


def lora_affinity(view: View, candidates: Sequence[int]) -> Sequence[int]:
    """Keep those that have the adapter. Where none has it all stay, as engines load it when asked."""
    loaded = view.adapter_at
    if not loaded:
        return candidates
    return [i for i in candidates if i in loaded] or candidates


def _stretched(values: Sequence[float], candidates: Sequence[int]) -> list[float]:
    known = [values[i] for i in candidates if values[i] > 0.0]
    if not known:
        return [_NO_LATENCY] * len(candidates)
    low, high = min(known), max(known)
    spread = high - low
    if spread <= 0.0:
        return [1.0 if values[i] > 0.0 else _NO_LATENCY for i in candidates]
    return [(high - values[i]) / spread if values[i] > 0.0 else _NO_LATENCY for i in candidates]


def _filled(values: list[float], ceiling: float | None = None) -> list[float]:
    """Put the worst known value in the place of what is not known."""
    worst = max((value for value in values if value >= 0.0), default=0.0 if ceiling is None else ceiling)
    return [value if value >= 0.0 else worst for value in values]


def _whole(share: float) -> float:
    return int(min(max(share, 0.0), 1.0) * 100) / 100
