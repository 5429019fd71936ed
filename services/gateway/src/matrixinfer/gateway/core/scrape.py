"""When an engine is asked for its load, and what its answer means for the board.

Owns two judgements: the pace and the reading. The trap of the pace: hundreds of engines must cost next to nothing
while nothing happens, and be looked at often where work is. The trap of the reading: what an engine does not say is
unknown, and a ratio of nothing to nothing is nothing.
"""

from dataclasses import dataclass
from math import isfinite, isnan, nan

from matrixinfer.engines.state import EngineState
from matrixinfer.gateway.core.load import UNKNOWN, EngineReport
from matrixinfer.gateway.core.types import Snapshot

__all__ = ["Pace", "adapters_by_server", "pause_seconds", "report_of"]

_JITTER = 0.2
_DOUBLINGS = 8
_NOTHING = EngineState()


@dataclass(frozen=True, slots=True)
class Pace:
    """How often engines are asked."""

    busy_seconds: float = 1.0
    """Between two looks at an engine that works, for us or for others."""
    idle_seconds: float = 3.5
    """Between two looks at an idle one. Engines close idle connections after 5 s; below that they are kept."""
    failing_seconds: float = 15.0
    """Longest pause after failures in a row."""
    per_second: float = 400.0
    """Looks at all engines together; a larger fleet is asked less often."""
    beat_seconds: float = 0.1
    """Engines that are due within this time are asked together."""


def pause_seconds(pace: Pace, *, busy: bool, failures: int, engines: int, draw: float) -> float:
    """Seconds until an engine is asked again; `draw` in [0, 1) spreads engines that began together."""
    seconds = pace.busy_seconds if busy or failures else pace.idle_seconds
    if failures:
        seconds = min(seconds * 2 ** min(failures - 1, _DOUBLINGS), max(pace.failing_seconds, seconds))
    return max(seconds, engines / pace.per_second) * (1 - _JITTER / 2 + _JITTER * draw)


def report_of(state: EngineState, before: EngineState | None, last: EngineReport = UNKNOWN) -> EngineReport:
    """Return what goes to the board: this look, and what has changed since the look `before`.

    A mean of nothing is that of the `last` report.
    """
    if state is before and (isnan(last.prefix_hit_ratio) or state.prefix_hit_ratio is not None):
        # Most looks at an idle engine: nothing has happened.
        return last
    earlier = before or _NOTHING
    return EngineReport(
        running=_known(state.running),
        waiting=_known(state.waiting),
        kv_usage=_known(state.kv_usage),
        prefix_hit_ratio=_ratio(state, before),
        kv_tokens=_known(state.kv_tokens),
        ttft_seconds=_mean(
            _since(state.ttft_seconds, state.ttft_count, earlier.ttft_seconds, earlier.ttft_count), last.ttft_seconds
        ),
        tpot_seconds=_mean(
            _since(state.tpot_seconds, state.tpot_count, earlier.tpot_seconds, earlier.tpot_count), last.tpot_seconds
        ),
    )


def _known(value: float | None) -> float:
    return nan if value is None or not isfinite(value) else value


def _ratio(state: EngineState, before: EngineState | None) -> float:
    if state.prefix_hit_ratio is not None:
        return _known(state.prefix_hit_ratio)
    queries, hits = _known(state.prefix_queries), _known(state.prefix_hits)
    # Counters that went back began anew: the engine was restarted.
    if before is not None and _known(before.prefix_queries) <= queries and _known(before.prefix_hits) <= hits:
        queries -= _known(before.prefix_queries)
        hits -= _known(before.prefix_hits)
    return min(hits / queries, 1.0) if queries > 0 and hits >= 0 else nan


def _since(
    seconds: float | None, count: float | None, seconds_before: float | None, count_before: float | None
) -> tuple[float, float]:
    """Return what two counters grew by; all of it when they went back, because then they began anew."""
    grown, more = _known(seconds) - _known(seconds_before), _known(count) - _known(count_before)
    return (grown, more) if grown >= 0 and more >= 0 else (_known(seconds), _known(count))


def _mean(grown: tuple[float, float], last: float) -> float:
    seconds, count = grown
    return seconds / count if count > 0 and seconds >= 0 else last


def adapters_by_server(snapshot: Snapshot) -> list[frozenset[str]]:
    """Return for each server the adapters that routes ask of it."""
    wanted: list[set[str]] = [set() for _ in snapshot.servers]
    for route in snapshot.routes:
        for rule in route.rules:
            for target in (*rule.targets, *rule.fallbacks):
                if target.server is not None:
                    wanted[target.server].update(route.adapters)
    return [frozenset(names) for names in wanted]
