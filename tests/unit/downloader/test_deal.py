"""Shares that take about as long, for as many processes as are worth it, and connections where the work is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.deal import allowances, deal, process_count, worth
from matrixinfer.downloader.core.manifest import SourceFile

GB = 1 << 30


def files(*sizes: int) -> list[SourceFile]:
    return [SourceFile(f"{index:05}", size, "v") for index, size in enumerate(sizes)]


@pytest.mark.parametrize(("cores", "count"), [(0.5, 0), (2, 0), (3.9, 0), (4, 2), (7, 3), (16, 8), (112, 8)])
def test_a_small_machine_has_one_process_and_a_large_one_some(cores: float, count: int) -> None:
    assert process_count(cores, 32, 0) == count


def test_what_is_asked_for_goes_before_what_fits() -> None:
    assert [process_count(2, 32, wanted) for wanted in (1, 2, 12)] == [0, 2, 12]
    assert process_count(16, 32, 1) == 0


def test_no_process_is_without_a_connection() -> None:
    assert [process_count(16, connections, 0) for connections in (1, 3, 64)] == [0, 3, 8]


def test_a_small_download_is_not_shared() -> None:
    assert deal(files(*[1000] * 30, 100_000_000), 8) == ()
    assert deal(files(40 * GB), 8) == ()


@pytest.mark.parametrize(
    "sizes", [[1_000_000] * 2000, [GB // 2] * 16, [4 * GB] * 4 + [1000] * 500], ids=["small", "big", "both"]
)
def test_shares_are_equal_to_the_biggest_file(sizes: list[int]) -> None:
    shares = deal(files(*sizes), 8)
    loads = [worth(len(share), sum(file.size for file in share)) for share in shares]
    assert len(shares) == 8
    assert max(loads) - min(loads) <= worth(1, max(sizes))


@given(st.lists(st.integers(0, 20 * GB), max_size=60), st.integers(0, 9))
def test_every_file_is_dealt_once(sizes: list[int], most: int) -> None:
    shares = deal(files(*sizes), most)
    dealt = sorted(file.path for share in shares for file in share)
    assert dealt == ([file.path for file in files(*sizes)] if shares else [])
    assert all(shares)
    assert len(shares) <= most
    assert len(shares) != 1


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=16), st.integers(1, 300))
def test_who_has_work_has_a_connection_and_all_have_no_more_than_there_are(left: list[int], connections: int) -> None:
    allowed = allowances(left, connections)
    working = [allowance for allowance, amount in zip(allowed, left, strict=True) if amount]
    assert all(allowance >= 1 for allowance in working)
    assert sum(allowed) <= max(connections, len(working))
    assert all(not allowance for allowance, amount in zip(allowed, left, strict=True) if not amount)


def test_the_last_one_has_them_all() -> None:
    assert allowances([0, 5, 0], 32) == [0, 32, 0]
    assert allowances([90 * GB, GB, GB], 32) == [29, 1, 1]
