"""The board and the metrics made from it."""

import threading

from prometheus_client import CollectorRegistry, generate_latest

from matrixinfer.downloader.metrics import ProgressCollector
from matrixinfer.downloader.progress import Phase, Progress, View


def test_nothing_is_lost_between_threads() -> None:
    progress = Progress()
    threads = [threading.Thread(target=lambda: [progress.fetched(1) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.view().fetched_bytes == 2000


def test_the_rate_is_that_of_late() -> None:
    progress = Progress()
    progress.resolved("r", 1000, 1)
    for second in range(30):
        progress.fetched(10 if second > 15 else 0)
        progress.sample(float(second))
    assert progress.view().bytes_per_second == 10
    assert progress.view().seconds_left == 86


def test_a_listing_anew_counts_anew_but_keeps_what_went_over_the_wire() -> None:
    progress = Progress()
    progress.resolved("r", 10, 1)
    progress.fetched(7)
    progress.resolved("r2", 20, 1)
    view = progress.view()
    assert (view.done_bytes, view.fetched_bytes, view.percent) == (0, 7, 0)


def test_what_other_processes_counted_is_added_up_once() -> None:
    progress, other = Progress(), Progress()
    progress.fetched(5)
    other.present(7)
    other.fetched(11)
    first = other.view()
    progress.added(View(), first)
    other.retried()
    other.verify_failed()
    progress.added(first, other.view())
    view = progress.view()
    assert (view.done_bytes, view.fetched_bytes, view.retries, view.verify_failures) == (23, 16, 1, 1)


def test_percent_is_100_only_when_all_is_there() -> None:
    assert View(total_bytes=1000, done_bytes=999).percent == 99
    assert View(total_bytes=1000, done_bytes=1000).percent == 100


def test_all_series_exist_from_the_start() -> None:
    registry = CollectorRegistry()
    progress = Progress()
    registry.register(ProgressCollector(progress))
    page = generate_latest(registry).decode()
    assert "matrixinfer_downloader_fetched_bytes_total 0.0" in page
    assert page.count("matrixinfer_downloader_phase{") == len(Phase)
    progress.enter(Phase.DOWNLOADING)
    progress.verify_failed()
    page = generate_latest(registry).decode()
    assert 'matrixinfer_downloader_phase{phase="Downloading"} 1.0' in page
    assert "matrixinfer_downloader_verify_failures_total 1.0" in page
