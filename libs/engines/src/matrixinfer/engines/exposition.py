"""A bounded reader for the Prometheus text format, for a few families out of many.

Owns: turning the bytes of one scrape into the numbers of the wanted metrics. Absent stays absent (`None`), never 0.
Refuses: time. Rates and windows need two scrapes and belong to whoever keeps them.
Trap: the payload comes from a process that may be broken or hostile. One compiled pattern scans the whole body, so
unwanted families cost next to nothing; a line that does not parse is counted, not raised; size and series are
bounded, and a payload over the bound is refused as a whole, because half a histogram is a wrong histogram.

Format: Prometheus text exposition 0.0.4; OpenMetrics bodies read the same for what we need (exemplars and
time stamps after the value are ignored).
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from matrixinfer.engines.errors import EngineError
from matrixinfer.engines.metric_names import METRICS, Aliases, Combine, Metric, MetricKind, names_of, resolve

__all__ = [
    "ExpositionTooLarge",
    "Family",
    "Histogram",
    "MetricReader",
    "Reading",
    "Sample",
    "sample_labels",
    "sample_value",
]

_LABEL: Final = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_SUFFIXES: Final = rb"(?:_bucket|_sum|_count)"
_ESCAPES: Final = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE: Final = re.compile(rb"\\.")
_LARGEST: Final = 1e18
"""No engine counts that far: what says more is broken, and reads as infinite. Sums over pods cannot overflow."""
_SHARING_RANKS: Final = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "ep_rank"})


class ExpositionTooLarge(EngineError):
    """A scrape is larger than the reader's bounds: nothing of it is used."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: `suffix` is "", "_bucket", "_sum" or "_count"."""

    suffix: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative histogram: `cumulative[i]` observations were at most `bounds[i]`; the last bound is infinite.

    Bounds are strictly increasing and counts never decrease: `merged` and `MetricReader` only build such values.
    """

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        """All observations."""
        return self.cumulative[-1] if self.cumulative else 0.0

    @staticmethod
    def merged(parts: Sequence["Histogram"]) -> "Histogram | None":
        """Add histograms of several pods or label sets; `None` when empty or when their buckets differ.

        Different buckets mean different engine versions: no sum of the two is true, so the caller must treat the
        metric as missing.
        """
        if not parts or any(part.bounds != parts[0].bounds for part in parts):
            return None
        return Histogram(
            bounds=parts[0].bounds,
            cumulative=tuple(math.fsum(column) for column in zip(*(part.cumulative for part in parts), strict=True)),
            sum=math.fsum(part.sum for part in parts),
        )


@dataclass(frozen=True, slots=True)
class Family:
    """All samples of one family in one scrape."""

    name: str
    samples: Sequence[Sample]

    def number(self, combine: Combine = Combine.SUM) -> float | None:
        """Combine the plain samples of all label sets; `None` when there is none or one of them is not finite.

        Ranks that compute one batch together (tensor, pipeline, expert parallel) say the same number each: the largest
        of them counts once. Data-parallel ranks have batches of their own and are combined.
        """
        plain = [sample for sample in self.samples if not sample.suffix]
        values = [sample.value for sample in plain]
        if not values or not all(map(math.isfinite, values)):
            return None
        if len(values) == 1:
            return values[0]
        if combine is Combine.MAX:
            return max(values)
        shared: dict[tuple[tuple[str, str], ...], float] = {}
        for sample in plain:
            batch = tuple(sorted(pair for pair in sample.labels.items() if pair[0] not in _SHARING_RANKS))
            shared[batch] = max(sample.value, shared.get(batch, sample.value))
        total = math.fsum(shared.values())
        return total / len(shared) if combine is Combine.MEAN else total

    def histogram(self) -> Histogram | None:
        """Merge the buckets of all label sets; `None` when there are none or they contradict each other."""
        series: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
        sums: dict[tuple[tuple[str, str], ...], float] = {}
        for sample in self.samples:
            identity = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.suffix == "_bucket":
                bound = _number(sample.labels.get("le", "").encode())
                if bound is None or math.isnan(bound):
                    return None
                series.setdefault(identity, {})[bound] = sample.value
            elif sample.suffix == "_sum":
                sums[identity] = sample.value
        parts = [_histogram(buckets, sums.get(identity, 0.0)) for identity, buckets in series.items()]
        known = [part for part in parts if part is not None]
        return Histogram.merged(known) if len(known) == len(parts) else None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one scrape of one pod said about the wanted metrics; everything absent is `None`."""

    families: Mapping[str, Family]
    malformed: int = 0
    """Lines of wanted families that could not be read."""

    def family(self, metric: Metric | Aliases | str) -> Family | None:
        """The family a metric was found under: the first of its aliases that is present."""
        return next((self.families[name] for name in names_of(metric) if name in self.families), None)

    def number(self, metric: Metric | Aliases | str) -> float | None:
        """A gauge or counter as one number for the pod."""
        family = self.family(metric)
        if family is None:
            return None
        return family.number(METRICS[metric].combine if isinstance(metric, Metric) else Combine.SUM)

    def histogram(self, metric: Metric | str) -> Histogram | None:
        """A histogram, merged over the pod's label sets."""
        family = self.family(metric)
        return None if family is None else family.histogram()

    @property
    def in_flight(self) -> float | None:
        """Running plus waiting requests; `None` when the engine does not say how many run."""
        running = self.number(Metric.RUNNING)
        return None if running is None else running + (self.number(Metric.WAITING) or 0.0)


@dataclass(frozen=True, slots=True, init=False)
class MetricReader:
    """Reads a fixed set of metrics from scrapes; build it once, it holds the compiled pattern."""

    wanted: tuple[Metric | str, ...]
    limit_bytes: int
    limit_series: int
    _line: re.Pattern[bytes] = field(repr=False)

    def __init__(
        self, wanted: Iterable[Metric | str], *, limit_bytes: int = 8 << 20, limit_series: int = 20_000
    ) -> None:
        """`wanted` holds canonical metrics or names; a name that any engine uses is read under all its aliases."""
        metrics = tuple(dict.fromkeys(_canonical(item) for item in wanted))
        object.__setattr__(self, "wanted", metrics)
        object.__setattr__(self, "limit_bytes", limit_bytes)
        object.__setattr__(self, "limit_series", limit_series)
        object.__setattr__(self, "_line", _pattern(metrics))

    def read(self, payload: bytes) -> Reading:
        """Read one scrape. Raises `ExpositionTooLarge` over the bounds; malformed lines are skipped and counted."""
        if len(payload) > self.limit_bytes:
            raise ExpositionTooLarge(f"the metrics are {len(payload)} bytes, over the bound of {self.limit_bytes}")
        found: dict[str, list[Sample]] = {}
        malformed = series = 0
        for match in self._line.finditer(payload):
            series += 1
            if series > self.limit_series:
                raise ExpositionTooLarge(f"the metrics have more than {self.limit_series} wanted series")
            name, suffix, labels, rest = match.groups()
            value = sample_value(rest)
            if value is None:
                malformed += 1
                continue
            found.setdefault(name.decode(), []).append(
                Sample((suffix or b"").decode(), sample_labels(labels) if labels else {}, value)
            )
        return Reading({name: Family(name, tuple(samples)) for name, samples in found.items()}, malformed)


def _canonical(item: Metric | str) -> Metric | str:
    """A plain string that some engine uses becomes its canonical metric."""
    return item if isinstance(item, Metric) else resolve(item) or item


def _pattern(metrics: Collection[Metric | str]) -> re.Pattern[bytes]:
    """One pattern over all aliases. Suffixes only where a histogram is possible, so `x_count` stays a gauge's name."""
    plain: set[str] = set()
    buckets: set[str] = set()
    for metric in metrics:
        if not isinstance(metric, Metric):
            plain.add(metric)
            buckets.add(metric)
        elif METRICS[metric].kind is MetricKind.HISTOGRAM:
            buckets.update(METRICS[metric].names)
        else:
            plain.update(METRICS[metric].names)
    if not metrics:
        return re.compile(rb"(?!)()()()()")
    every = b"|".join(re.escape(name.encode()) for name in sorted(plain | buckets, key=len, reverse=True))
    return re.compile(
        rb"^(" + every + rb")(" + _SUFFIXES + rb')?(?:\{((?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*+")*+)\})?[ \t]+([^\n]*)$',
        re.MULTILINE,
    )


def sample_value(rest: bytes) -> float | None:
    """The value that begins what follows a sample's name and labels; `None` when it is none."""
    return _number(rest.split(None, 1)[0] if rest.strip() else b"")


def sample_labels(text: bytes) -> dict[str, str]:
    """What stands between the braces, as label pairs with their escapes undone."""
    return {name.decode(): _unescape(value).decode("utf-8", "replace") for name, value in _LABEL.findall(text)}


def _unescape(value: bytes) -> bytes:
    """Undo the three escapes of label values; anything else after a backslash stays as it is."""
    return _ESCAPE.sub(lambda m: _ESCAPES.get(m[0], m[0]), value) if b"\\" in value else value


def _number(text: bytes) -> float | None:
    """A sample value or bucket bound (`+Inf`, `NaN` included); `None` for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return math.copysign(math.inf, value) if abs(value) > _LARGEST else value


def _histogram(buckets: Mapping[float, float], total: float) -> Histogram | None:
    """One series' buckets; `None` unless they are finite, non-decreasing and end in an infinite bound."""
    bounds = tuple(sorted(buckets))
    counts = tuple(buckets[bound] for bound in bounds)
    steady = all(0 <= low <= high < math.inf for low, high in zip((0.0, *counts), counts, strict=False))
    whole = steady and math.isfinite(total) and bounds and bounds[-1] == math.inf
    return Histogram(bounds, counts, total) if whole else None
