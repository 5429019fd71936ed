"""What has been scraped of the pods of one target, kept as long as a window may look back.

Owns: samples per process of a pod. A pod that was replaced, or whose containers restarted, starts anew: its counters
do. Refuses: arithmetic (`core.signals`).
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from matrixinfer.autoscaler.core.signals import PodEvidence, Sample

__all__ = ["Book"]

_KEPT: Final = timedelta(minutes=5)


@dataclass(slots=True)
class _Page:
    restarts: int
    samples: list[Sample] = field(default_factory=list)
    answered: bool = True


class Book:
    """The evidence of one target."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}

    def note(self, uid: str, restarts: int, sample: Sample | None) -> None:
        """Note the outcome of a scrape; `None` when it failed: what was known before is kept for later."""
        page = self._pages.get(uid)
        if page is None or page.restarts != restarts:
            page = self._pages[uid] = _Page(restarts)
        page.answered = sample is not None
        if sample is not None:
            page.samples = [old for old in page.samples if old.at >= sample.at - _KEPT]
            page.samples.append(sample)

    def keep(self, uids: Collection[str]) -> None:
        """Forget the pods that are not among these."""
        self._pages = {uid: page for uid, page in self._pages.items() if uid in uids}

    def of(self, uid: str) -> PodEvidence:
        """The samples of a pod; none when its last scrape failed."""
        page = self._pages.get(uid)
        return PodEvidence(tuple(page.samples) if page is not None and page.answered else ())
