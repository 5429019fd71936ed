"""A quick look at the page of an engine that is read again and again: a few gauges, found where they were last time.

Owns the search. A page of an engine is tens of kilobytes of which the gauges are a few lines; they stay about where
they are, so a look costs microseconds, whatever the size of the page, and next to nothing while they stay exactly as
they are. Refuses: histograms, which need the whole page (`exposition`), and time.
Trap: what a page does not have costs a search through all of it, so that is tried again only now and then.

Relies on the format's rule that all lines of a family stand together.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

from matrixinfer.engines.exposition import ExpositionTooLarge, Family, Reading, Sample, sample_labels, sample_value
from matrixinfer.engines.metric_names import METRICS, Aliases, Metric, MetricKind, names_of

__all__ = ["Glance"]

_REST: Final = re.compile(rb'(?:\{((?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*+")*+)\})?[ \t]+([^\n]*)')
_SLACK_BYTES: Final = 512
"""How far a family may move between two looks, because numbers before it got longer or shorter."""
_ABSENT_LOOKS: Final = 16
_SERIES_LIMIT: Final = 1024
_LABELS_BYTES: Final = 2048
"""Label sets up to this size are parsed once and kept."""
_BEHIND_A_NAME: Final = (b" ", b"{", b"\t")

_Name: TypeAlias = tuple[str, bytes]
"""A family's name, and what a line of it begins with, line break included."""


class Glance:
    """Reads the same page again and again. One per engine process; `read` any number of pages."""

    __slots__ = (
        "_absent",
        "_blocks",
        "_found",
        "_labels",
        "_length",
        "_limit_bytes",
        "_looks",
        "_reading",
        "_search_at",
        "_wanted",
    )

    def __init__(self, wanted: Iterable[Metric | Aliases | str], *, limit_bytes: int = 8 << 20) -> None:
        """`wanted` holds gauges and counters, or names of the user's own. Raises ValueError for a histogram.

        Of a histogram's sum and count those of its first label set are found: each has its buckets before it.
        """
        self._wanted = {metric: _names(metric) for metric in wanted}
        self._limit_bytes = limit_bytes
        self._found: dict[Metric | Aliases | str, tuple[_Name, int]] = {}
        self._absent: dict[Metric | Aliases | str, _Absence] = {}
        self._labels: dict[bytes, dict[str, str]] = {}
        self._looks = 0
        self._reading = Reading({})
        self._blocks: list[tuple[int, bytes]] = []
        # Of a page that ends with a family of ours.
        self._length: int | None = None
        self._search_at = 0

    def read(self, page: bytes) -> Reading:
        """Read one page; the very same `Reading` as before when nothing wanted has changed.

        Raises `ExpositionTooLarge` over the bounds; malformed lines are skipped and counted.
        """
        if len(page) > self._limit_bytes:
            raise ExpositionTooLarge(f"the metrics are {len(page)} bytes, over the bound of {self._limit_bytes}")
        self._looks += 1
        if self._looks < self._search_at and self._says_the_same(page):
            return self._reading
        # A page that is refused leaves what was read before, and the next one is searched.
        self._search_at = 0
        # So that every line has a line break before it, the first one too.
        page = b"\n" + page
        families: dict[str, Family] = {}
        malformed = 0
        blocks: list[tuple[int, bytes]] = []
        length = None
        for metric in self._wanted:
            found = self._find(page, metric)
            if found is not None:
                (name, needle), at = found
                samples, broken, end = self._samples(page, needle, at)
                malformed += broken
                if samples:
                    families[name] = Family(name, samples)
                # With what comes behind, because another sample there would be one more of the family.
                behind = end + len(needle) + 1
                blocks.append((at, page[at + 1 : behind]))
                if behind > len(page):
                    length = len(page) - 1
        self._search_at = min((absence.until for absence in self._absent.values()), default=self._looks + _ABSENT_LOOKS)
        if [text for _, text in self._blocks] != [text for _, text in blocks]:
            self._reading = Reading(families, malformed)
        self._blocks, self._length = blocks, length
        return self._reading

    def _says_the_same(self, page: bytes) -> bool:
        if self._length is not None and len(page) != self._length:
            return False
        return all(page.startswith(block, at) for at, block in self._blocks)

    def _find(self, page: bytes, metric: Metric | Aliases | str) -> "tuple[_Name, int] | None":
        known = self._found.get(metric)
        if known is not None:
            name, before = known
            at = _from_about(page, name[1], before)
            if at >= 0:
                found = self._found[metric] = name, at
                return found
        absence = self._absent.get(metric)
        if absence is not None and absence.until > self._looks:
            return None
        for name in self._wanted[metric]:
            at = _line(page, name[1], 0)
            if at >= 0:
                found = self._found[metric] = name, at
                self._absent.pop(metric, None)
                return found
        self._found.pop(metric, None)
        looks = min(2 * absence.looks, _ABSENT_LOOKS) if absence is not None else 1
        self._absent[metric] = _Absence(looks, self._looks + looks)
        return None

    def _samples(self, page: bytes, needle: bytes, at: int) -> tuple[list[Sample], int, int]:
        """Read the samples that stand together from `at`, count what is none, and tell where they end."""
        samples: list[Sample] = []
        malformed, width = 0, len(needle)
        while True:
            match = _REST.match(page, at + width)
            value = sample_value(match[2]) if match is not None else None
            if match is None or value is None:
                malformed += 1
            else:
                samples.append(Sample("", self._labels_of(match[1]), value))
            at = page.find(b"\n", at + 1)
            if at < 0 or not _is_line(page, needle, at):
                return samples, malformed, at if at >= 0 else len(page)
            if len(samples) + malformed >= _SERIES_LIMIT:
                raise ExpositionTooLarge(f"a family has more than {_SERIES_LIMIT} series")

    def _labels_of(self, text: bytes | None) -> dict[str, str]:
        if not text:
            return {}
        labels = self._labels.get(text)
        if labels is not None:
            return labels
        labels = sample_labels(text)
        if len(text) <= _LABELS_BYTES:
            if len(self._labels) >= _SERIES_LIMIT:
                self._labels.clear()
            self._labels[text] = labels
        return labels


@dataclass(frozen=True, slots=True)
class _Absence:
    """A metric was searched in vain, and is not searched again for so many looks, until this one."""

    looks: int
    until: int


@cache
def _names(metric: Metric | Aliases | str) -> tuple[_Name, ...]:
    if isinstance(metric, Metric) and METRICS[metric].kind is MetricKind.HISTOGRAM:
        raise ValueError(f"{metric} is a histogram; read it with MetricReader")
    return tuple((name, b"\n" + name.encode()) for name in names_of(metric))


def _is_line(page: bytes, needle: bytes, at: int) -> bool:
    """Whether a sample of a family follows the line break at `at`; a longer name may begin with the family's."""
    return page.startswith(needle, at) and page[at + len(needle) : at + len(needle) + 1] in _BEHIND_A_NAME


def _line(page: bytes, needle: bytes, start: int) -> int:
    """Position of the line break before the first sample of a family; -1 when there is none."""
    at = page.find(needle, start)
    while at >= 0 and not _is_line(page, needle, at):
        at = page.find(needle, at + 1)
    return at


def _from_about(page: bytes, needle: bytes, before: int) -> int:
    """Like `_line`, for a family whose first sample was at `before` last time."""
    at = _line(page, needle, max(0, before - _SLACK_BYTES))
    if at < 0:
        return _line(page, needle, 0)
    while (earlier := page.rfind(b"\n", 0, at)) >= 0 and _is_line(page, needle, earlier):
        at = earlier
    return at
