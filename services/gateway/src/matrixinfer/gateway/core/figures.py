"""Traffic of the last minute, per route and server: what the status of a route says of its targets. Pure.

Made from the counters that every worker reports, so what is cumulative becomes a span by subtracting an older sample.
Counts of several gateways add up; quantiles do not, so buckets travel and quantiles are made last. The trap: figures
change with every request, and a status that follows them would be written for ever; `differs` says which changes
matter.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from operator import add, sub
from typing import TypeAlias

import msgspec

from matrixinfer.api.v1alpha1.modelroute import ModelRoute, TargetTraffic
from matrixinfer.gateway.core.snapshot import server_names
from matrixinfer.gateway.stats import FIRST_TOKEN_BUCKETS, TOKEN_BUCKETS, HistogramReport, SeriesKey, SeriesReport

__all__ = ["Counts", "TargetCounts", "Window", "by_target", "differs", "figures", "quantile", "summed", "target_names"]

_NO_FAULT_OF_OURS = frozenset({"ok", "engine_error", "client_gone", "client_stalled"})
_NOTABLE = 0.1


class TargetCounts(msgspec.Struct, frozen=True, array_like=True):
    """What one server got and gave for one route. Buckets are those of `stats`, not cumulative; empty without any."""

    requests: int = 0
    errors: int = 0
    first_token: tuple[int, ...] = ()
    per_token: tuple[int, ...] = ()


Counts: TypeAlias = Mapping[tuple[str, str], TargetCounts]
"""By route (namespace/name) and server."""


def by_target(series: Mapping[SeriesKey, SeriesReport]) -> Counts:
    """Return the counts per route and server, over all of the route's models."""
    return summed(
        {(route, server): _counts(report)} for (_, route, server), report in series.items() if route and server
    )


def summed(parts: Iterable[Counts]) -> Counts:
    """Return the counts of all parts together."""
    total: dict[tuple[str, str], TargetCounts] = {}
    for part in parts:
        for key, counts in part.items():
            before = total.get(key)
            total[key] = counts if before is None else _added(before, counts)
    return total


class Window:
    """Samples of counts that only grow, and what they grew by over the newest `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, Counts]] = deque()

    def add(self, now: float, counts: Counts) -> None:
        """Take a sample, and forget those that are too old to be subtracted."""
        self._samples.append((now, counts))
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._seconds:
            self._samples.popleft()

    @property
    def is_full(self) -> bool:
        """Whether it spans its seconds by now."""
        return bool(self._samples) and self._samples[-1][0] - self._samples[0][0] >= self._seconds

    def grown(self) -> Counts:
        """Return what was added within the window; targets that got nothing are left out."""
        if not self._samples:
            return {}
        old, new = self._samples[0][1], self._samples[-1][1]
        spans = {key: _less(counts, old.get(key, _NOTHING)) for key, counts in new.items()}
        return {key: counts for key, counts in spans.items() if counts.requests > 0}


def figures(route: ModelRoute, counts: Counts) -> tuple[TargetTraffic, ...]:
    """Return what the status of a route says of each of its targets."""
    name = f"{route.metadata.namespace}/{route.metadata.name}"
    return tuple(_figures(server, counts.get((name, server), _NOTHING)) for server in target_names(route))


def target_names(route: ModelRoute) -> list[str]:
    """Return the servers that a route names, each once, in order."""
    return list(dict.fromkeys(name for rule in route.spec.rules for name in server_names(rule)))


def differs(new: Sequence[TargetTraffic], old: Sequence[TargetTraffic]) -> bool:
    """Whether somebody who reads the status would want to know: another target, or a tenth more or less of anything."""
    if [target.model_server_name for target in new] != [target.model_server_name for target in old]:
        return True
    return any(_notable(a, b) for one, other in zip(new, old, strict=True) for a, b in _pairs(one, other))


def quantile(buckets: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of the observations do not exceed, by straight lines within a bucket."""
    wanted = share * sum(buckets)
    if wanted <= 0:
        return None
    seen, low = 0.0, 0.0
    for count, high in zip(buckets, bounds, strict=False):
        if count and seen + count >= wanted:
            return low + (high - low) * (wanted - seen) / count
        seen, low = seen + count, high
    # Beyond the last bound nothing is known but that.
    return bounds[-1]


_NOTHING = TargetCounts()


def _counts(report: SeriesReport) -> TargetCounts:
    errors = sum(count for (code, outcome), count in report.requests.items() if _is_error(int(code), outcome))
    return TargetCounts(sum(report.requests.values()), errors, _buckets(report.first_token), _buckets(report.per_token))


def _is_error(code: int, outcome: str) -> bool:
    # A stream that broke off has the status that it began with.
    return code >= 500 or outcome not in _NO_FAULT_OF_OURS


def _buckets(report: HistogramReport | None) -> tuple[int, ...]:
    return () if report is None else report.counts


def _added(one: TargetCounts, other: TargetCounts) -> TargetCounts:
    return TargetCounts(
        one.requests + other.requests,
        one.errors + other.errors,
        _zipped(one.first_token, other.first_token),
        _zipped(one.per_token, other.per_token),
    )


def _zipped(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(add, one, other)) if one and other else one or other


def _less(new: TargetCounts, old: TargetCounts) -> TargetCounts:
    return TargetCounts(
        new.requests - old.requests,
        new.errors - old.errors,
        tuple(map(sub, new.first_token, old.first_token)) if old.first_token else new.first_token,
        tuple(map(sub, new.per_token, old.per_token)) if old.per_token else new.per_token,
    )


def _figures(server: str, counts: TargetCounts) -> TargetTraffic:
    return TargetTraffic(
        model_server_name=server,
        requests=counts.requests,
        errors=counts.errors,
        ttft_p50_milliseconds=_milliseconds(quantile(counts.first_token, FIRST_TOKEN_BUCKETS, 0.5)),
        ttft_p95_milliseconds=_milliseconds(quantile(counts.first_token, FIRST_TOKEN_BUCKETS, 0.95)),
        tpot_p50_milliseconds=_milliseconds(quantile(counts.per_token, TOKEN_BUCKETS, 0.5)),
        tpot_p95_milliseconds=_milliseconds(quantile(counts.per_token, TOKEN_BUCKETS, 0.95)),
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000))


def _pairs(one: TargetTraffic, other: TargetTraffic) -> Iterable[tuple[int | None, int | None]]:
    yield one.requests, other.requests
    yield one.errors, other.errors
    yield one.ttft_p50_milliseconds, other.ttft_p50_milliseconds
    yield one.ttft_p95_milliseconds, other.ttft_p95_milliseconds
    yield one.tpot_p50_milliseconds, other.tpot_p50_milliseconds
    yield one.tpot_p95_milliseconds, other.tpot_p95_milliseconds


def _notable(new: int | None, old: int | None) -> bool:
    if new is None or old is None or not new or not old:
        return new != old
    return abs(new - old) > _NOTABLE * old
