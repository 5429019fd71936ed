"""A volume that is too small is found out before the first byte, in numbers that say what to do."""

import pytest

from matrixinfer.downloader.core.room import Room, human_bytes, shortage


def test_what_fits_fits() -> None:
    assert shortage(Room(100, 10), needed_bytes=90, needed_files=10, reserve_bytes=10) is None


def test_the_reserve_stays_free_and_the_sentence_says_how_much_is_missing() -> None:
    problem = shortage(Room(1 << 20, None), needed_bytes=1 << 20, needed_files=1, reserve_bytes=512 << 10)
    assert problem is not None
    assert "1.0 MiB free" in problem
    assert "512.0 KiB larger" in problem


def test_too_few_inodes_are_a_shortage_too() -> None:
    assert "3 free inodes" in str(shortage(Room(10**9, 3), needed_bytes=1, needed_files=4, reserve_bytes=0))


def test_a_file_system_without_inode_count_is_believed() -> None:
    assert shortage(Room(10**9, None), needed_bytes=1, needed_files=10**6, reserve_bytes=0) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (98_700_000, "94.1 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 61, "2048.0 PiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text
