"""How often engines are asked, and what their answers mean."""

from dataclasses import replace
from math import isfinite, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.engines.state import EngineState
from matrixinfer.gateway.core.scrape import Pace, adapters_by_server, pause_seconds, report_of
from matrixinfer.gateway.core.types import Route, Rule, Server, Snapshot, Target

PACE = Pace()


def pause(*, busy: bool = False, failures: int = 0, engines: int = 1, draw: float = 0.5) -> float:
    return pause_seconds(PACE, busy=busy, failures=failures, engines=engines, draw=draw)


def test_an_engine_that_works_is_looked_at_more_often_than_an_idle_one() -> None:
    assert pause(busy=True) == pytest.approx(1.0)
    assert pause() == pytest.approx(3.5)


def test_even_the_longest_idle_pause_keeps_the_connection() -> None:
    assert pause(draw=0.999) < 4.0


def test_failures_in_a_row_space_the_looks_out_and_never_stop_them() -> None:
    assert [round(pause(failures=n), 3) for n in (1, 2, 3, 4, 5, 99)] == [1, 2, 4, 8, 15, 15]


def test_a_large_fleet_is_asked_less_often_instead_of_costing_more() -> None:
    assert pause(busy=True, engines=400) == pytest.approx(1.0)
    assert pause(busy=True, engines=4000) == pytest.approx(10.0)


@given(st.booleans(), st.integers(0, 1000), st.integers(0, 100_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_short_nor_endless(busy: bool, failures: int, engines: int, draw: float) -> None:
    seconds = pause(busy=busy, failures=failures, engines=engines, draw=draw)
    assert 0.9 <= seconds <= 1.1 * max(15.0, engines / 400)


def test_beat_45_nothing_of_nothing_is_no_ratio() -> None:
    idle = EngineState(running=0, waiting=0, prefix_queries=0, prefix_hits=0)
    assert isnan(report_of(idle, None).prefix_hit_ratio)
    assert isnan(report_of(idle, idle).prefix_hit_ratio)


def test_the_hit_ratio_is_that_of_the_time_since_the_last_look() -> None:
    before = EngineState(prefix_queries=1000, prefix_hits=1000)
    assert report_of(EngineState(prefix_queries=1100, prefix_hits=1025), before).prefix_hit_ratio == 0.25
    assert report_of(EngineState(prefix_hit_ratio=0.7), before).prefix_hit_ratio == 0.7


def test_counters_that_went_back_began_anew() -> None:
    before = EngineState(prefix_queries=1000, prefix_hits=1000)
    assert report_of(EngineState(prefix_queries=10, prefix_hits=5), before).prefix_hit_ratio == 0.5


def test_latencies_are_those_of_the_time_since_the_last_look() -> None:
    first = EngineState(ttft_seconds=10, ttft_count=10, tpot_seconds=4, tpot_count=100)
    told = report_of(first, None)
    assert (told.ttft_seconds, told.tpot_seconds) == (1.0, 0.04)
    then = EngineState(ttft_seconds=16, ttft_count=12, tpot_seconds=5, tpot_count=200)
    told = report_of(then, first, told)
    assert (told.ttft_seconds, told.tpot_seconds) == (3.0, 0.01)
    # Nobody asked since: what was known stays. A restarted engine begins anew.
    assert report_of(then, then, told) == told
    assert report_of(first, then, told).ttft_seconds == 1.0
    assert isnan(report_of(EngineState(), None).ttft_seconds)


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)
states = st.builds(EngineState, *[numbers] * 7)


@given(states, st.none() | states)
def test_beat_45_what_is_not_known_is_not_a_number_and_what_is_known_is_one(
    state: EngineState, before: EngineState | None
) -> None:
    report = report_of(state, before)
    pairs = [(state.running, report.running), (state.waiting, report.waiting), (state.kv_usage, report.kv_usage)]
    assert all(told == said if said is not None and isfinite(said) else isnan(told) for said, told in pairs)
    assert isnan(report.prefix_hit_ratio) or isfinite(report.prefix_hit_ratio)


@given(states, st.none() | states)
def test_a_look_that_finds_the_same_means_what_one_that_finds_an_equal_state_means(
    state: EngineState, before: EngineState | None
) -> None:
    last = report_of(state, before)
    assert repr(report_of(state, state, last)) == repr(report_of(replace(state), state, last))


def test_a_server_is_asked_for_the_adapters_of_all_routes_that_lead_to_it() -> None:
    def route(name: str, adapters: tuple[str, ...], server: int | None, fallback: int | None) -> Route:
        rule = Rule("", None, (Target("t", 1, server),), (Target("f", 0, fallback),))
        return Route("ns", name, None, adapters, (rule,))

    servers = tuple(Server("ns", name, None, "vLLM") for name in "abc")
    snapshot = Snapshot(1, servers, (route("x", ("one", "two"), 0, 1), route("y", ("three",), 1, None)))
    assert adapters_by_server(snapshot) == [{"one", "two"}, {"one", "two", "three"}, set()]
