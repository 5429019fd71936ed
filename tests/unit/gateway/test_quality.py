"""How good the choice is, on small simulated fleets: the bench `tests/bench/gateway/quality.py` in a second."""

import pytest
from tests.bench.gateway.quality import WORST_LIMIT, Workload, measure

SHARED = Workload("shared", 3, 24, 16, 6, 2048, (64, 128), (16, 48), kv_tokens=40_000)
APART = Workload("apart", 4, 24, 96, 1, 0, (256, 2048), (16, 48), gains=False)


def test_shared_prefixes_are_used() -> None:
    """BEAT-42: better than random, than exact counts of requests, and than the original's second-old numbers."""
    found = measure(SHARED, (1, 2))
    ours = found.pop("ours")
    assert found.pop("ours, two").throughput > 1.1 * found["least-request"].throughput
    assert all(ours.throughput > 1.1 * other.throughput for other in found.values())
    assert all(ours.hit_share > other.hit_share for other in found.values())


@pytest.mark.parametrize("load", [SHARED, APART], ids=lambda load: load.name)
def test_never_much_worse_than_least_request(load: Workload) -> None:
    found = measure(load, (1, 2, 3))
    ours, base = found["ours"], found["least-request"]
    assert ours.throughput * WORST_LIMIT >= base.throughput
    assert ours.ttft <= base.ttft * WORST_LIMIT
