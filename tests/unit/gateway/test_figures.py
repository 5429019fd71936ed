"""Traffic figures: spans out of cumulative counts, sums of gateways, quantiles, and which changes matter."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api.meta import ObjectMeta
from matrixinfer.api.v1alpha1.modelroute import (
    Fallback,
    ModelRoute,
    ModelRouteSpec,
    Rule,
    TargetModel,
    TargetTraffic,
)
from matrixinfer.gateway.core.figures import Window, by_target, differs, figures, quantile, summed, target_names
from matrixinfer.gateway.stats import FIRST_TOKEN_BUCKETS, Histogram, SeriesReport, Stats

SAMPLES = st.lists(st.floats(0.001, 500), min_size=1, max_size=200)


def route(*servers: str) -> ModelRoute:
    rule = Rule(
        target_models=tuple(TargetModel(model_server_name=name) for name in servers),
        fallbacks=(Fallback(model_server_name=servers[0]), Fallback(model_server_name="spare")),
    )
    metadata = ObjectMeta(name="r", namespace="ns", creation_timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    return ModelRoute(metadata=metadata, spec=ModelRouteSpec(model_name="m", rules=(rule,)))


def ended(*outcomes: tuple[int, str], first_token: float = 0.0) -> SeriesReport:
    series = Stats().series("m", "ns/r", "a")
    for code, outcome in outcomes:
        series.end(code, outcome, 1, client_gone=False)
        if first_token:
            series.first_token.observe(first_token)
    return series.report()


@given(SAMPLES, st.sampled_from([0.5, 0.95, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(samples: list[float], share: float) -> None:
    histogram = Histogram(FIRST_TOKEN_BUCKETS)
    for sample in samples:
        histogram.observe(sample)
    report = histogram.report()
    assert report is not None
    found = quantile(report.counts, FIRST_TOKEN_BUCKETS, share)
    rank = max(1, -(-len(samples) * share // 1))
    true = sorted(samples)[int(rank) - 1]
    low = max((bound for bound in FIRST_TOKEN_BUCKETS if bound < true), default=0.0)
    high = min((bound for bound in FIRST_TOKEN_BUCKETS if bound >= true), default=600.0)
    assert found is not None
    assert low <= found <= high + 1e-9


def test_nothing_has_no_quantile() -> None:
    assert quantile((), FIRST_TOKEN_BUCKETS, 0.5) is None
    assert quantile((0,) * 26, FIRST_TOKEN_BUCKETS, 0.5) is None


@pytest.mark.parametrize(
    ("code", "outcome", "is_error"),
    [
        (200, "ok", False),
        (404, "engine_error", False),
        (500, "engine_error", True),
        (499, "client_gone", False),
        (499, "cut", True),
        (200, "idle_timeout", True),
        (503, "reset", True),
        (429, "overloaded", True),
    ],
)
def test_an_error_is_what_the_client_could_not_help(code: int, outcome: str, is_error: bool) -> None:
    counts = by_target({("m", "ns/r", "a"): ended((code, outcome))})
    assert counts["ns/r", "a"].errors == is_error
    assert counts["ns/r", "a"].requests == 1


def test_models_of_a_route_add_up_and_refusals_belong_to_no_target() -> None:
    one = ended((200, "ok"), (503, "reset"), first_token=0.1)
    counts = by_target({("m", "ns/r", "a"): one, ("lora", "ns/r", "a"): one, ("m", "ns/r", ""): one, ("", "", ""): one})
    assert set(counts) == {("ns/r", "a")}
    assert (counts["ns/r", "a"].requests, counts["ns/r", "a"].errors) == (4, 2)


def test_gateways_add_up_before_quantiles_are_made() -> None:
    """One gateway saw the fast half, one the slow half: the slow tail must survive the sum."""
    fast = by_target({("m", "ns/r", "a"): ended(*[(200, "ok")] * 90, first_token=0.015)})
    slow = by_target({("m", "ns/r", "a"): ended(*[(200, "ok")] * 10, first_token=4.0)})
    target, spare = figures(route("a"), summed((fast, slow)))
    assert target.requests == 100
    assert target.ttft_p50_milliseconds is not None
    assert target.ttft_p95_milliseconds is not None
    assert target.ttft_p50_milliseconds <= 20
    assert target.ttft_p95_milliseconds >= 3000
    assert spare == TargetTraffic(model_server_name="spare")


def test_each_server_is_named_once_in_the_order_of_the_route() -> None:
    assert target_names(route("b", "a", "b")) == ["b", "a", "spare"]


def test_a_window_tells_what_came_within_it() -> None:
    window = Window(60)
    series = Stats().series("m", "ns/r", "a")

    def sample(now: float) -> None:
        window.add(now, by_target({("m", "ns/r", "a"): series.report()}))

    assert window.grown() == {}
    sample(0)
    assert not window.is_full
    for now in range(5, 125, 5):
        series.end(200, "ok", 1, client_gone=False)
        sample(now)
    assert window.is_full
    assert window.grown()["ns/r", "a"].requests == 12
    sample(200)
    assert window.grown() == {}


def traffic(requests: int, errors: int = 0, p95: int | None = None) -> tuple[TargetTraffic, ...]:
    return (TargetTraffic(model_server_name="a", requests=requests, errors=errors, ttft_p95_milliseconds=p95),)


def test_only_what_matters_is_a_difference() -> None:
    assert not differs(traffic(100, 0, 50), traffic(104, 0, 52))
    assert differs(traffic(100, 0, 50), traffic(100, 0, 56))
    assert differs(traffic(100, 1), traffic(100))
    assert differs(traffic(0), traffic(1))
    assert differs(traffic(100), traffic(100, 0, 50))
    assert differs(traffic(1), ())
