"""Rounds over time: limits, windows, panic, bounds, zero. Time is simulated, one round every 15 seconds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicy
from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.autoscaler.core.behavior import Limit, Rules
from matrixinfer.autoscaler.core.decide import Decision, History, Situation, decide
from matrixinfer.autoscaler.core.panic import PanicRule
from matrixinfer.autoscaler.core.signals import Activity, Signal
from matrixinfer.autoscaler.rules import idle_window_of, rules_of

START = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = timedelta(seconds=15)


def default_rules() -> Rules:
    policy = with_defaults(
        {
            "apiVersion": "registry.matrixinfer.ai/v1alpha1",
            "kind": "AutoscalingPolicy",
            "metadata": {"name": "p"},
            "spec": {"metrics": [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 10}]},
        }
    )
    return rules_of(AutoscalingPolicy.model_validate(policy).spec)


def limit(instances: int = 0, percent: int = 100, period: float = 60, window: float = 0, strict: bool = False) -> Limit:
    return Limit(instances, percent, timedelta(seconds=period), timedelta(seconds=window), strict)


@dataclass
class Target:
    """A target whose pods are ready at once, with a total load of `load` (None: nothing answers)."""

    rules: Rules = field(default_factory=default_rules)
    least: int = 1
    most: int = 20
    current: int = 1
    load: float | None = 0.0
    now: datetime = START
    history: History = field(default_factory=History)
    wake_up_at: datetime | None = None
    last: Decision | None = None

    def round(self) -> int:
        pods = self.current
        signal = Signal("waiting", 10, self.load if pods else None, pods if self.load is not None else 0, 0)
        situation = Situation(
            self.least,
            self.most,
            self.current,
            (signal,),
            Activity(self.load),
            self.rules,
            wake_up_at=self.wake_up_at,
        )
        history = self.history.resumed(self.now, self.current, timedelta(seconds=60))
        self.last = decide(situation, history, self.now)
        self.history, self.current = self.last.history, self.last.replicas
        self.now += PERIOD
        return self.current

    def rounds(self, seconds: float) -> list[int]:
        return [self.round() for _ in range(int(seconds // 15))]


def test_the_first_round_after_a_start_never_scales_down() -> None:
    target = Target(current=9)
    assert target.round() == 9
    assert target.last is not None
    assert "recommendations of the last 300 s went up to 9" in target.last.sentence


def test_low_load_reaches_the_minimum_after_the_window_and_not_before() -> None:
    target = Target(current=9)
    assert set(target.rounds(300)) == {9}
    assert target.rounds(60)[-1] == 1


def test_high_load_is_followed_at_once() -> None:
    target = Target(load=45)
    assert target.round() == 5


def test_steps_up_are_limited_in_each_period() -> None:
    target = Target(rules=replace(default_rules(), up=limit(2, 0, period=60)), load=100)
    assert [max(target.rounds(60)) for _ in range(4)] == [3, 5, 7, 9]
    assert target.last is not None
    assert "at most 2 more in 60 s" in target.last.sentence


def test_a_percentage_rounds_up_so_that_one_replica_is_not_stuck() -> None:
    target = Target(rules=replace(default_rules(), up=limit(0, 50)), load=100)
    assert target.round() == 2
    down = Target(rules=replace(default_rules(), down=limit(1, 25, strict=True)), current=3)
    down.round()
    assert down.round() == 2, "one of three may go although a quarter of three is less than one"


def test_the_window_for_growth_takes_the_lowest_recommendation() -> None:
    target = Target(rules=replace(default_rules(), up=limit(instances=20, window=60)))
    target.round()
    target.load = 100
    assert set(target.rounds(60)) == {1}
    assert target.rounds(30)[-1] == 10


def test_panic_grows_by_its_own_limit_and_takes_nothing_away_while_it_lasts() -> None:
    rules = Rules(limit(1, 0), limit(), PanicRule(300, PERIOD, 200, timedelta(seconds=60)), 0.1)
    target = Target(rules=rules, current=2, load=200)
    assert target.round() == 8
    assert target.last is not None
    assert target.last.panic
    target.load = 0
    assert set(target.rounds(60)) == {8}
    target.rounds(15)
    assert not target.last.panic
    assert target.rounds(60)[-1] == 1


def test_silence_keeps_what_there_is_and_is_no_recommendation() -> None:
    target = Target(current=4, load=None)
    assert set(target.rounds(900)) == {4}
    assert target.last is not None
    assert target.last.recommended is None
    target.load = 0.0
    assert set(target.rounds(285)) == {4}, "an outage of metrics is followed by a whole window"


def test_a_gap_starts_the_history_anew() -> None:
    target = Target(current=5, load=0.0)
    target.rounds(290)
    target.now += timedelta(minutes=10)
    assert target.round() == 5


@pytest.mark.parametrize(("current", "bound"), [(0, 2), (1, 2), (9, 6)])
def test_bounds_are_kept_at_once_and_said(current: int, bound: int) -> None:
    target = Target(least=2, most=6, current=current, load=40)
    assert target.round() == bound
    assert target.last is not None
    assert "the m" in target.last.sentence


def test_somebody_elses_replicas_are_left_for_a_window() -> None:
    target = Target(current=3, load=30)
    target.rounds(30)
    target.current = 12
    assert set(target.rounds(300)) == {12}
    assert target.rounds(60)[-1] == 3


def test_a_dry_run_goes_on_recommending() -> None:
    target = Target(current=4, load=0.0)
    for _ in range(40):
        target.round()
        target.history = target.history.unenacted(4)
        target.current = 4
    assert target.last is not None
    assert target.last.replicas == 1


def test_an_idle_target_stops_after_its_window_and_wakes_on_demand() -> None:
    target = Target(least=0, current=2, load=0.0)
    seen = target.rounds(660)
    assert set(seen) == {2, 1, 0}
    assert seen.index(0) == 600 // 15
    assert target.rounds(60)[-1] == 0
    target.wake_up_at = target.now
    assert target.round() == 1
    assert target.last is not None
    assert "a request came at" in target.last.sentence
    target.load = 5.0
    assert target.rounds(900)[-1] == 1


def test_use_resets_the_idle_window() -> None:
    target = Target(least=0, current=1, load=0.0)
    target.rounds(585)
    target.load = 1.0
    target.round()
    target.load = 0.0
    assert set(target.rounds(585)) == {1}
    assert target.rounds(30)[-1] == 0


def test_an_unknown_load_is_not_idleness() -> None:
    target = Target(least=0, current=1, load=None)
    assert set(target.rounds(1800)) == {1}


def test_an_old_wake_up_wakes_nobody() -> None:
    target = Target(least=0, current=0, wake_up_at=START - timedelta(hours=1))
    assert target.rounds(60)[-1] == 0


def test_defaults_give_the_idle_window_and_a_full_set_of_rules() -> None:
    rules = default_rules()
    assert rules.down.window == timedelta(minutes=5)
    assert rules.up.window == timedelta(0)
    assert rules.panic is not None
    assert not rules.panic.is_on
    policy = {"metrics": [{"metricName": "m", "targetValue": 1}], "scaleToZero": {"idleWindow": "3m"}}
    spec = AutoscalingPolicy.model_validate({"metadata": {}, "spec": policy}).spec
    assert idle_window_of(spec) == timedelta(minutes=3)


limits = st.builds(
    limit,
    instances=st.integers(0, 4),
    percent=st.integers(1, 200),
    period=st.sampled_from([0, 15, 60, 120]),
    window=st.sampled_from([0, 30, 120]),
    strict=st.booleans(),
).filter(lambda one: one.step(1) > 0)
panics = st.none() | st.builds(
    PanicRule,
    percent=st.integers(0, 1000),
    period=st.sampled_from([timedelta(0), PERIOD]),
    threshold_percent=st.integers(110, 1000),
    hold=st.sampled_from([timedelta(0), timedelta(seconds=60)]),
)
rules = st.builds(Rules, up=limits, down=limits, panic=panics, tolerance=st.sampled_from([0.0, 0.1, 0.5]))
loads = st.none() | st.floats(0, 500)


@settings(max_examples=100)
@given(rules, st.integers(0, 3), st.integers(0, 10), st.integers(0, 20), st.lists(loads, min_size=1, max_size=12))
def test_never_outside_the_bounds_whatever_happens(
    rule: Rules, least: int, span: int, current: int, trace: list[float | None]
) -> None:
    target = Target(rules=rule, least=least, most=max(least + span, 1), current=current)
    for load in trace:
        target.load = load
        before = target.current
        after = target.round()
        assert target.least <= after <= target.most
        assert target.last is not None
        assert target.last.sentence
        if load is None and target.least <= before <= target.most:
            assert after >= before, "what is not known takes nothing away"


@settings(max_examples=40)
@given(rules, st.integers(1, 4), st.integers(1, 12))
def test_constant_low_load_reaches_the_minimum(rule: Rules, least: int, current: int) -> None:
    """Within the window, plus a period and a round for each step that the limit allows."""
    target = Target(rules=rule, least=least, most=20, current=max(current, least), load=0.0)
    steps, size = 0, target.current
    while size > least:
        size -= rule.down.step(size)
        steps += 1
    span = rule.down.window + (rule.down.period + 2 * PERIOD) * (steps + 1)
    target.rounds(span.total_seconds() + 60)
    assert target.current == least


@settings(max_examples=15)
@given(rules, st.integers(1, 12), st.floats(1, 150))
def test_constant_load_settles(rule: Rules, current: int, load: float) -> None:
    """Whatever the rules, a constant load ends in a constant number of replicas that is enough for it."""
    target = Target(rules=rule, current=current, load=load)
    target.rounds(3600)
    settled = target.current
    assert set(target.rounds(600)) == {settled}
    assert settled >= min(load / (10 * (1 + rule.tolerance)), target.most) - 1e-9


def traced(loads: Callable[[int], float], rounds: int) -> list[int]:
    target = Target()
    seen = []
    for number in range(rounds):
        target.load = loads(number)
        seen.append(target.round())
    return seen


def test_noise_around_a_level_does_not_flap() -> None:
    """Load that swings between 38 and 42 with a target of 10 needs 4 or 5; the window holds the higher."""
    seen = traced(lambda number: 38 + 8 * (number % 2), 60)
    assert set(seen[1:]) == {5}
