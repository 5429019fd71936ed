"""How many replicas the metrics ask for, in numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.autoscaler.core.recommend import recommended, vote
from matrixinfer.autoscaler.core.signals import Signal


def asked(
    total: float | None, *, pods: int, missing: int = 0, current: int, shared: bool = True, group: int = 1
) -> int | None:
    signal = Signal("m", 10, total, pods, missing, shared)
    return vote(signal, current=current, pods_per_replica=group, tolerance=0.1).replicas


@pytest.mark.parametrize(
    ("total", "pods", "missing", "current", "wanted"),
    [
        (50, 5, 0, 5, 5),
        (54, 5, 0, 5, 5),
        (56, 5, 0, 5, 6),
        (105, 10, 0, 10, 10),
        (9, 5, 0, 5, 1),
        (11, 5, 0, 5, 2),
        (0, 5, 0, 5, 0),
        (46, 5, 0, 5, 5),
        (44, 5, 0, 5, 5),
        (39, 5, 0, 5, 4),
        # Silent pods count as full when replicas could go …
        (0, 3, 2, 5, 2),
        (20, 3, 2, 5, 4),
        # … and as idle when some could come.
        (80, 3, 2, 5, 8),
        # Starting replicas do not turn high load into ever more replicas.
        (80, 3, 5, 8, 8),
    ],
)
def test_a_shared_load(total: float, pods: int, missing: int, current: int, wanted: int) -> None:
    assert asked(total, pods=pods, missing=missing, current=current) == wanted


@pytest.mark.parametrize(
    ("level", "pods", "missing", "current", "wanted"),
    [
        (10.5, 4, 0, 4, 4),
        (20, 4, 0, 4, 8),
        (20, 2, 2, 4, 4),
        (5, 4, 0, 4, 2),
        (5, 2, 2, 4, 3),
        (0, 4, 0, 4, 0),
    ],
)
def test_a_latency_is_a_ratio(level: float, pods: int, missing: int, current: int, wanted: int) -> None:
    assert asked(level, pods=pods, missing=missing, current=current, shared=False) == wanted


def test_a_group_of_several_measured_pods_is_one_replica() -> None:
    assert asked(120, pods=6, current=3, group=2) == 6


def test_rounding_does_not_turn_exact_loads_into_one_more() -> None:
    signal = Signal("m", 0.1, 0.1 * 3, 5, 0)
    assert vote(signal, current=5, pods_per_replica=1, tolerance=0).replicas == 3


def test_the_metric_that_asks_for_most_decides() -> None:
    both = recommended(
        [Signal("a", 10, 30, 2, 0), Signal("b", 10, 70, 2, 0)], current=2, pods_per_replica=1, tolerance=0.1
    )
    assert both.replicas == 7


def test_an_unknown_metric_blocks_only_the_way_down() -> None:
    cold, hot, unknown = Signal("a", 10, 0, 2, 0), Signal("b", 10, 70, 2, 0), Signal("c", 10, None, 0, 2)
    down = recommended([cold, unknown], current=2, pods_per_replica=1, tolerance=0.1)
    assert (down.replicas, down.only_up) == (2, True)
    assert recommended([hot, unknown], current=2, pods_per_replica=1, tolerance=0.1).replicas == 7
    assert recommended([unknown], current=2, pods_per_replica=1, tolerance=0.1).replicas is None


@given(
    total=st.floats(0, 1e6),
    pods=st.integers(1, 50),
    missing=st.integers(0, 50),
    current=st.integers(1, 50),
    shared=st.booleans(),
)
def test_silent_pods_never_make_the_answer_bolder(
    total: float, pods: int, missing: int, current: int, shared: bool
) -> None:
    """With pods missing, fewer replicas go than without, and the direction never turns."""
    sure = asked(total, pods=pods, current=current, shared=shared)
    careful = asked(total, pods=pods, missing=missing, current=current, shared=shared)
    assert sure is not None
    assert careful is not None
    assert min(sure, current) <= careful <= max(sure, current)
