"""Metrics of one download, read from the progress board whenever they are scraped.

There is nothing to count twice: the board is the only truth. All series exist from the start.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from matrixinfer.downloader.progress import Phase, Progress, View

__all__ = ["ProgressCollector"]

_PREFIX = "matrixinfer_downloader_"


class ProgressCollector(Collector):
    """Shows a progress board as metrics."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """Yield all series; called by the registry for every scrape."""
        view = self._progress.view()
        for name, text, value in _counters(view):
            yield CounterMetricFamily(_PREFIX + name, text, value=value)
        for name, text, value in _gauges(view):
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)
        phases = GaugeMetricFamily(_PREFIX + "phase", "1 for what the process does now.", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase], float(view.phase is phase))
        yield phases


def _counters(view: View) -> tuple[tuple[str, str, int], ...]:
    return (
        ("fetched_bytes", "Bytes that came over the wire, those fetched twice included.", view.fetched_bytes),
        ("peer_bytes", "Those of the fetched bytes that came from other pods.", view.peer_bytes),
        ("retries", "Ranges and listings that were tried again.", view.retries),
        ("verify_failures", "Files whose content was not what the source promises.", view.verify_failures),
    )


def _gauges(view: View) -> tuple[tuple[str, str, int], ...]:
    return (
        ("model_bytes", "Bytes of all files of the model.", view.total_bytes),
        ("present_bytes", "Bytes of the model that are on the volume.", view.done_bytes),
        ("model_files", "Files of the model.", view.file_count),
        ("connections", "Connections that work at the same time.", view.connections),
        ("bytes_per_second", "Rate of late.", view.bytes_per_second),
        ("verified_files", "Files of the model that are complete and verified.", view.done_files),
    )
