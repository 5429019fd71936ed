"""Reading /metrics: right numbers, aliases, bounds, and never zero for missing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client import Histogram as PromHistogram

from matrixinfer.engines.exposition import ExpositionTooLarge, Histogram, MetricReader
from matrixinfer.engines.metric_names import METRICS, Metric, MetricKind, resolve

EVERYTHING = MetricReader(Metric)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("matrixinfer:num_requests_waiting", Metric.WAITING),
        ("matrixinfer:time_per_output_token_seconds", Metric.ITL),
        ("matrixinfer:generation_tokens_total", Metric.GENERATION_TOKENS),
        ("vllm:gpu_cache_usage_perc", Metric.KV_USAGE),
        ("sglang:token_usage", Metric.KV_USAGE),
        ("llamacpp:requests_deferred", Metric.WAITING),
        ("waiting", Metric.WAITING),
        ("my_own_metric", None),
    ],
)
def test_a_policy_may_use_any_engines_name(name: str, metric: Metric | None) -> None:
    assert resolve(name) is metric


def test_no_name_means_two_metrics() -> None:
    names = [name for spec in METRICS.values() for name in spec.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "running", "waiting"),
    [
        (b"vllm:num_requests_running 2\nvllm:num_requests_waiting 3\n", 2, 3),
        (b'sglang:num_running_reqs{tp_rank="0"} 4\nsglang:num_queue_reqs{tp_rank="0"} 0\n', 4, 0),
        (b"llamacpp:requests_processing 1\r\nllamacpp:requests_deferred 5\r\n", 1, 5),
        (b'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 2.5\n', 4.5, None),
        (b"vllm:num_requests_running 1 1700000000\n", 1, None),
        (b'vllm:num_requests_waiting_by_reason{reason="capacity"} 9\n', None, None),
        (b"# vllm:num_requests_running 9\n", None, None),
        (b"", None, None),
    ],
)
def test_load_of_each_engine(text: bytes, running: float | None, waiting: float | None) -> None:
    reading = EVERYTHING.read(text)
    assert reading.number(Metric.RUNNING) == running
    assert reading.number(Metric.WAITING) == waiting


def test_in_flight_is_unknown_without_running_and_tolerates_a_missing_queue() -> None:
    assert EVERYTHING.read(b"vllm:num_requests_running 1\n").in_flight == 1
    assert EVERYTHING.read(b"vllm:num_requests_waiting 1\n").in_flight is None


def test_two_aliases_at_once_are_one_number() -> None:
    text = b"vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.5\n"
    assert EVERYTHING.read(text).number(Metric.KV_USAGE) == 0.5


def test_the_fullest_rank_stands_for_the_pod() -> None:
    text = b'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.9\n'
    assert EVERYTHING.read(text).number(Metric.KV_USAGE) == 0.9


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-Inf", b"1.7e308", b"-2e18"])
def test_what_is_not_finite_or_absurd_is_missing(value: bytes) -> None:
    """Two of the largest numbers cannot even be added."""
    text = b'vllm:num_requests_running{engine="0"} ' + value + b'\nvllm:num_requests_running{engine="1"} ' + value
    assert EVERYTHING.read(text + b"\n").number(Metric.RUNNING) is None


def test_a_histogram_whose_sum_is_not_finite_is_missing() -> None:
    text = b'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 1\nvllm:time_to_first_token_seconds_sum %s\n'
    assert EVERYTHING.read(text % b"2").histogram(Metric.TTFT) is not None
    assert EVERYTHING.read(text % b"+Inf").histogram(Metric.TTFT) is None


def test_a_line_that_does_not_parse_is_counted_not_raised() -> None:
    reading = EVERYTHING.read(b"vllm:num_requests_running x\nvllm:num_requests_running \nvllm:num_requests_running 1\n")
    assert reading.number(Metric.RUNNING) == 1
    assert reading.malformed == 2


def test_histograms_merge_their_label_sets() -> None:
    text = (
        b'vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="a"} 1\n'
        b'vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="a"} 3\n'
        b'vllm:time_to_first_token_seconds_sum{model_name="a"} 2\n'
        b'vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="b"} 2\n'
        b'vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="b"} 2\n'
        b'vllm:time_to_first_token_seconds_sum{model_name="b"} 0.1\n'
    )
    assert EVERYTHING.read(text).histogram(Metric.TTFT) == Histogram((0.1, math.inf), (3.0, 5.0), 2.1)


@pytest.mark.parametrize(
    "buckets",
    [
        {"0.1": 3, "+Inf": 2},
        {"0.1": 1},
        {"x": 1, "+Inf": 1},
        {"NaN": 1, "+Inf": 1},
        {"0.1": -1, "+Inf": 1},
        {"0.1": "NaN", "+Inf": 1},
    ],
)
def test_a_broken_histogram_is_missing(buckets: dict[str, object]) -> None:
    lines = [f'vllm:time_to_first_token_seconds_bucket{{le="{le}"}} {n}\n' for le, n in buckets.items()]
    assert EVERYTHING.read("".join(lines).encode()).histogram(Metric.TTFT) is None


def test_pods_with_different_buckets_do_not_merge() -> None:
    assert Histogram.merged([Histogram((1.0, math.inf), (1, 1), 1), Histogram((2.0, math.inf), (1, 1), 1)]) is None
    assert Histogram.merged([]) is None


def test_labels_may_hold_anything() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("vllm:num_requests_running", "x", ["model_name"], registry=registry)
    for name in ('a"}b', "back\\slash", "new\nline", "{}", "vllm:num_requests_running 7"):
        gauge.labels(name).set(1)
    reading = EVERYTHING.read(generate_latest(registry))
    assert reading.number(Metric.RUNNING) == 5
    family = reading.family(Metric.RUNNING)
    assert family is not None
    assert {sample.labels["model_name"] for sample in family.samples} >= {'a"}b', "back\\slash", "new\nline"}


def test_a_name_of_the_users_own_is_read_verbatim() -> None:
    reading = MetricReader(["my_queue", "my_latency"]).read(
        b'my_queue 3\nmy_latency_bucket{le="+Inf"} 2\nmy_latency_sum 1\nmy_queue_other 4\n'
    )
    assert reading.number("my_queue") == 3
    histogram = reading.histogram("my_latency")
    assert histogram is not None
    assert histogram.count == 2


def test_bounds_refuse_the_whole_payload() -> None:
    with pytest.raises(ExpositionTooLarge, match="bytes"):
        MetricReader([Metric.RUNNING], limit_bytes=10).read(b"x" * 11)
    with pytest.raises(ExpositionTooLarge, match="series"):
        MetricReader([Metric.RUNNING], limit_series=2).read(b"vllm:num_requests_running 1\n" * 3)


def test_a_reader_that_wants_nothing_finds_nothing() -> None:
    assert MetricReader([]).read(b"x 1\n").families == {}


@given(
    st.binary(max_size=300) | st.text(alphabet='vllm:num_requests_running{}="\\\n 1+Inf', max_size=300).map(str.encode)
)
def test_no_bytes_make_it_fail(body: bytes) -> None:
    reading = EVERYTHING.read(body)
    for metric, spec in METRICS.items():
        if spec.kind is MetricKind.HISTOGRAM:
            reading.histogram(metric)
        else:
            reading.number(metric)


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_real_clients_histogram_reads_back(observations: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = PromHistogram("vllm:time_to_first_token_seconds", "x", registry=registry, buckets=(1, 10))
    for value in observations:
        histogram.observe(value)
    read = EVERYTHING.read(generate_latest(registry)).histogram(Metric.TTFT)
    assert read is not None
    assert read.bounds == (1, 10, math.inf)
    assert read.cumulative == tuple(sum(v <= bound for v in observations) for bound in read.bounds)
    assert read.sum == pytest.approx(math.fsum(observations))
