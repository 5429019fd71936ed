"""From scrapes to signals: missing is never zero, and one scrape is no rate."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.autoscaler.collect.evidence import Book
from matrixinfer.autoscaler.core.histogram import quantile, since
from matrixinfer.autoscaler.core.signals import Activity, PodEvidence, Sample, Wanted, activity_of, signal_of
from matrixinfer.engines.exposition import Histogram
from matrixinfer.engines.metric_names import Metric

START = datetime(2026, 1, 1, tzinfo=UTC)
BUSY = Activity(3.0)
IDLE = Activity(0.0)


def sample(seconds: float, **numbers: float) -> Sample:
    return Sample(START + timedelta(seconds=seconds), {Metric[name]: value for name, value in numbers.items()})


def pod(*samples: Sample) -> PodEvidence:
    return PodEvidence(samples)


def histogram(*cumulative: float) -> Histogram:
    return Histogram((0.1, 1.0, math.inf), tuple(map(float, cumulative)), 0.0)


def latency(seconds: float, *cumulative: float) -> Sample:
    return Sample(START + timedelta(seconds=seconds), {}, {Metric.TTFT: histogram(*cumulative)})


def test_a_gauge_is_summed_and_silent_pods_are_counted() -> None:
    signal = signal_of(
        Wanted("matrixinfer:num_requests_waiting", 5), [pod(sample(0, WAITING=4)), pod(), pod(sample(0))], 2, BUSY
    )
    assert (signal.value, signal.pods, signal.missing, signal.mean) == (4, 1, 4, 4)


def test_without_any_pod_a_metric_is_unknown() -> None:
    assert signal_of(Wanted("waiting", 5), [], 0, IDLE).value is None


def test_a_counter_is_its_rate_over_the_window() -> None:
    wanted = Wanted("vllm:generation_tokens_total", 100)
    scrapes = [sample(s, GENERATION_TOKENS=n) for s, n in ((0, 0), (30, 10), (60, 400), (120, 1000))]
    assert signal_of(wanted, [pod(*scrapes)], 0, BUSY).value == (1000 - 400) / 60


def test_one_scrape_of_a_counter_is_no_signal() -> None:
    signal = signal_of(Wanted("generation_tokens_total", 1), [pod(sample(0, GENERATION_TOKENS=10**9))], 0, BUSY)
    assert (signal.value, signal.missing) == (None, 1)


def test_a_counter_that_shrank_is_missing() -> None:
    scrapes = [sample(0, GENERATION_TOKENS=50), sample(15, GENERATION_TOKENS=3)]
    assert signal_of(Wanted("generation_tokens_total", 1), [pod(*scrapes)], 0, BUSY).value is None


def test_percentiles_are_taken_of_merged_buckets() -> None:
    """One slow pod with few requests does not make the fleet slow; an average of percentiles would say so."""
    fast = pod(latency(0, 0, 0, 0), latency(15, 99, 99, 99))
    slow = pod(latency(0, 0, 0, 0), latency(15, 0, 1, 1))
    signal = signal_of(Wanted("matrixinfer:time_to_first_token_seconds", 1), [fast, slow], 0, BUSY)
    assert signal.value is not None
    assert signal.value < 0.1
    assert not signal.shared


def test_no_observation_while_busy_is_unknown_and_while_idle_is_zero() -> None:
    quiet = [pod(latency(0, 1, 1, 1), latency(15, 1, 1, 1))]
    wanted = Wanted("vllm:time_to_first_token_seconds", 1)
    assert signal_of(wanted, quiet, 0, BUSY).value is None
    assert signal_of(wanted, quiet, 0, Activity(None)).value is None
    assert signal_of(wanted, quiet, 0, IDLE).value == 0


def test_a_users_own_metric_is_what_it_looks_like() -> None:
    own = Sample(START, {"my_queue": 3.0}, {})
    assert signal_of(Wanted("my_queue", 1), [pod(own)], 0, BUSY).value == 3
    before, after = Sample(START, {"x_total": 1.0}), Sample(START + timedelta(seconds=10), {"x_total": 21.0})
    assert signal_of(Wanted("x_total", 1), [pod(before, after)], 0, BUSY).value == 2


@pytest.mark.parametrize(
    ("pods", "unseen", "idle"),
    [
        ([pod(sample(0, RUNNING=0, WAITING=0))], 0, True),
        ([pod(sample(0, RUNNING=0))], 0, True),
        ([pod(sample(0, RUNNING=0))], 1, False),
        ([pod(sample(0, RUNNING=0)), pod()], 0, False),
        ([pod(sample(0, RUNNING=1))], 0, False),
        ([pod(sample(0))], 0, False),
        ([], 0, False),
        ([pod(sample(0, RUNNING=0, GENERATION_TOKENS=1), sample(15, RUNNING=0, GENERATION_TOKENS=2))], 0, False),
    ],
)
def test_only_certainty_is_idleness(pods: list[PodEvidence], unseen: int, idle: bool) -> None:
    assert activity_of(pods, unseen).is_idle is idle


def test_quantiles_interpolate_in_their_bucket() -> None:
    assert quantile(histogram(0, 100, 100), 0.95) == pytest.approx(0.1 + 0.9 * 0.95)
    assert quantile(histogram(0, 0, 10), 0.95) == pytest.approx(2.0, abs=0.2)
    assert quantile(histogram(0, 0, 0), 0.95) is None


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.floats(0.01, 1))
def test_quantiles_lie_within_the_bounds(parts: list[int], share: float) -> None:
    counts = [sum(parts[: n + 1]) for n in range(3)]
    value = quantile(histogram(*counts), share)
    assert (value is None) == (counts[-1] == 0)
    assert value is None or 0 <= value <= 2


def test_histograms_of_two_processes_have_no_difference() -> None:
    assert since(histogram(1, 1, 1), histogram(2, 2, 2)) is None
    assert since(histogram(1, 1, 1), Histogram((1.0, math.inf), (0, 0), 0)) is None
    assert since(histogram(3, 4, 9), histogram(1, 2, 3)) == histogram(2, 2, 6)


def test_a_restart_starts_the_evidence_anew_and_a_failed_scrape_keeps_it() -> None:
    book = Book()
    book.note("a", 0, sample(0))
    book.note("a", 0, None)
    assert book.of("a").samples == ()
    book.note("a", 0, sample(15))
    assert len(book.of("a").samples) == 2
    book.note("a", 1, sample(30))
    assert len(book.of("a").samples) == 1
    book.note("a", 1, sample(30 + 301))
    assert len(book.of("a").samples) == 1
    book.keep([])
    assert book.of("a").samples == ()
