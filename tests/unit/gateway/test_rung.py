"""The ladder: down at once, up slowly, and never for nothing."""

from matrixinfer.gateway.core.schedule.rung import Ladder, Rung, next_ladder


def climb(ladder: Ladder, lag: float, cpu: float, looks: int) -> Rung:
    for _ in range(looks):
        ladder = next_ladder(ladder, lag, cpu)
    return ladder.rung


def test_a_calm_worker_does_everything() -> None:
    assert climb(Ladder(), 0.001, 0.5, 50) is Rung.FULL


def test_lag_leads_down_at_once() -> None:
    assert [next_ladder(Ladder(), lag, 0.5).rung for lag in (0.03, 0.08, 0.3)] == [
        Rung.SHORT_PREFIX,
        Rung.NO_PREFIX,
        Rung.TWO_RANDOM,
    ]


def test_a_busy_cpu_alone_saves_only_what_costs_most() -> None:
    assert climb(Ladder(), 0.001, 1.0, 50) is Rung.SHORT_PREFIX


def test_it_goes_up_one_step_after_a_calm_while() -> None:
    low = Ladder(Rung.TWO_RANDOM)
    assert climb(low, 0.0, 0.1, 7) is Rung.TWO_RANDOM
    assert climb(low, 0.0, 0.1, 8) is Rung.NO_PREFIX
    assert climb(low, 0.0, 0.1, 24) is Rung.FULL


def test_it_does_not_swing_around_a_bound() -> None:
    """Just below what led down is no calm."""
    assert climb(Ladder(Rung.NO_PREFIX), 0.045, 0.5, 100) is Rung.NO_PREFIX


def test_unrest_starts_the_wait_again() -> None:
    ladder = Ladder(Rung.SHORT_PREFIX, calm=7)
    assert next_ladder(ladder, 0.018, 0.5) == Ladder(Rung.SHORT_PREFIX, 0)
