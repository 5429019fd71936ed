"""A quick look at a page: the same numbers as the whole page gives, wherever they stand."""

import time
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from matrixinfer.engines.exposition import ExpositionTooLarge, MetricReader
from matrixinfer.engines.glance import Glance
from matrixinfer.engines.metric_names import METRICS, Metric, MetricKind
from matrixinfer.engines.state import STATE_METRICS

PLAIN = [metric for metric, spec in METRICS.items() if spec.kind is not MetricKind.HISTOGRAM]
NAMES = [name for metric in PLAIN for name in METRICS[metric].names]
EVERYTHING = MetricReader(PLAIN)


def page(families: dict[str, dict[str, float]], noise: int = 0) -> bytes:
    """A page as a real client writes it: `noise` unwanted families come first."""
    registry = CollectorRegistry()
    for i in range(noise):
        Counter(f"vllm:noise_{i}", "x" * 50, registry=registry).inc(i)
    for name, series in families.items():
        gauge = Gauge(name, "x", ["engine"], registry=registry)
        for label, value in series.items():
            gauge.labels(label).set(value)
    return generate_latest(registry)


families = st.dictionaries(
    st.sampled_from([*NAMES, "vllm:num_requests_waiting_by_reason", "vllm:num_requests_running_total"]),
    st.dictionaries(st.text(max_size=8), st.floats(allow_nan=True), min_size=1, max_size=3),
    max_size=8,
)


Page: TypeAlias = dict[str, dict[str, float]]


@given(families, st.integers(0, 30))
def test_a_first_look_gives_what_the_whole_page_gives(content: Page, noise: int) -> None:
    text = page(content, noise)
    whole, quick = EVERYTHING.read(text), Glance(PLAIN).read(text)
    assert [quick.number(metric) for metric in PLAIN] == [whole.number(metric) for metric in PLAIN]


@given(st.lists(st.tuples(families, st.integers(0, 30)), min_size=2, max_size=4))
def test_every_further_look_gives_what_one_of_the_names_gives(pages: list[tuple[Page, int]]) -> None:
    glance = Glance(PLAIN)
    for content, noise in pages:
        text = page(content, noise)
        whole, quick = EVERYTHING.read(text), glance.read(text)
        for metric in PLAIN:
            names = [name for name in METRICS[metric].names if name in whole.families]
            said = [whole.families[name].number(METRICS[metric].combine) for name in names]
            assert quick.number(metric) in (said if quick.family(metric) else [None])


def test_a_page_that_says_the_same_gives_the_same_reading() -> None:
    glance = Glance([Metric.RUNNING])
    end = page({"vllm:num_requests_running": {"0": 1}}, 5)
    text = end + b"# HELP what_comes_behind And is long enough.\n"
    first = glance.read(text)
    assert glance.read(text + b"more 1\n") is first
    assert glance.read(text.replace(b"vllm:noise_1_total 1.0", b"vllm:noise_1_total 2.0")) is first
    assert glance.read(text.replace(b'"0"} 1.0', b'"0"} 2.0')).number(Metric.RUNNING) == 2
    more = text.replace(b'"0"} 1.0\n', b'"0"} 1.0\nvllm:num_requests_running{engine="1"} 4.0\n')
    glance.read(text)
    assert glance.read(more).number(Metric.RUNNING) == 5
    for changed in (end, end + b"vllm:num_requests_running 2\n", end[:-1], end):
        assert glance.read(changed).number(Metric.RUNNING) == 1 + 2 * changed.endswith(b" 2\n")


def test_looks_for_what_is_absent_do_not_make_the_same_another_reading() -> None:
    glance = Glance([Metric.RUNNING, Metric.WAITING])
    text = page({"vllm:num_requests_running": {"0": 1}})
    first = glance.read(text)
    assert all(glance.read(text) is first for _ in range(40))
    moved = glance.read(b"further 1\n" + text)
    assert moved is first
    assert glance.read(b"further 1\n").number(Metric.RUNNING) is None


def test_what_moved_within_the_page_is_found() -> None:
    glance = Glance([Metric.RUNNING])
    for noise in (0, 3, 200, 199, 1, 0):
        text = page({"vllm:num_requests_running": {"0": noise, "1": 1, "2": 1}}, noise)
        assert glance.read(text).number(Metric.RUNNING) == noise + 2
    assert glance.read(text.replace(b"vllm:num", b"sglang:num")).number(Metric.RUNNING) == 2


def test_what_was_absent_is_found_soon_after_it_appears() -> None:
    glance = Glance([Metric.RUNNING])
    for _ in range(50):
        assert glance.read(b"other 1\n").number(Metric.RUNNING) is None
    found = [glance.read(b"vllm:num_requests_running 4\n").number(Metric.RUNNING) for _ in range(17)]
    assert found[-1] == 4
    fresh = Glance([Metric.RUNNING])
    fresh.read(b"")
    assert fresh.read(b"vllm:num_requests_running 4\n").number(Metric.RUNNING) == 4


def test_a_malformed_line_is_counted_and_a_family_that_vanished_is_missing() -> None:
    glance = Glance([Metric.RUNNING])
    reading = glance.read(b'vllm:num_requests_running{a="1"} x\nvllm:num_requests_running{a="2"} 3\n')
    assert (reading.number(Metric.RUNNING), reading.malformed) == (3, 1)
    assert glance.read(b"# nothing\n").number(Metric.RUNNING) is None


def test_bounds_refuse_the_whole_page() -> None:
    with pytest.raises(ExpositionTooLarge, match="bytes"):
        Glance([Metric.RUNNING], limit_bytes=10).read(b"x" * 11)
    with pytest.raises(ExpositionTooLarge, match="series"):
        Glance([Metric.RUNNING]).read(b"vllm:num_requests_running 1\n" * 2000)


def test_a_histogram_cannot_be_glanced_at() -> None:
    with pytest.raises(ValueError, match="histogram"):
        Glance([Metric.TTFT])


@given(
    st.lists(
        st.binary(max_size=200) | st.text(alphabet='\nvllm:num_requests_running{}="\\ 1', max_size=200).map(str.encode),
        max_size=5,
    )
)
def test_no_bytes_make_a_look_fail(pages: list[bytes]) -> None:
    glance = Glance(STATE_METRICS)
    for text in pages:
        reading = glance.read(text)
        assert reading.number(Metric.RUNNING) is None or reading.families


def test_beat_65_a_look_does_not_read_the_whole_page() -> None:
    """Told by the time, against the reader that does: a look at a page that changes takes a fraction of it."""
    pages = [page({"vllm:num_requests_running": {"0": i}, "vllm:num_requests_waiting": {"0": i}}, 400) for i in (1, 2)]
    wanted = [Metric.RUNNING, Metric.WAITING]
    whole, glance = MetricReader(wanted), Glance(wanted)

    def seconds(read: Callable[[bytes], object]) -> float:
        began = time.process_time()
        for _ in range(100):
            read(pages[0])
            read(pages[1])
        return time.process_time() - began

    assert min(seconds(glance.read) for _ in range(3)) * 5 < min(seconds(whole.read) for _ in range(3))


def test_a_page_that_is_refused_makes_no_older_one_look_fresh() -> None:
    wanted = [Metric.RUNNING, Metric.WAITING]
    glance = Glance(wanted)
    running = b"vllm:num_requests_running %d\n"
    for _ in range(3):
        glance.read(running % 1 + b"vllm:num_requests_waiting 1\n")
    with pytest.raises(ExpositionTooLarge, match="series"):
        glance.read(running % 2 + b"vllm:num_requests_waiting 1\n" * 2000)
    reading = glance.read(running % 2 + b"vllm:num_requests_waiting 5\n")
    assert [reading.number(each) for each in wanted] == [2, 5]
