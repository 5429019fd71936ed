"""A file is cut into parts without gap or overlap, and a journal never claims what it does not know."""

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.downloader.core.ranges import (
    FinishedPart,
    Part,
    finished_parts,
    header_line,
    part_line,
    split,
)

HEADER = header_line("m.gguf", 100, "etag", 10)
PARTS = split(100, 10)


@given(size=st.integers(0, 1000), part_bytes=st.integers(1, 200))
def test_parts_cover_the_file_once_in_order(size: int, part_bytes: int) -> None:
    covered = [byte for part in split(size, part_bytes) for byte in range(part.offset, part.end)]
    assert covered == list(range(size))


@given(st.sets(st.sampled_from(PARTS)))
def test_finished_parts_are_read_back(done: set[Part]) -> None:
    journal = HEADER + b"".join(part_line(part, part.offset) for part in done)
    assert finished_parts(journal, HEADER, PARTS) == tuple(FinishedPart(part, part.offset) for part in sorted(done))


@given(cut=st.integers(0, 400))
def test_a_torn_journal_claims_only_whole_lines(cut: int) -> None:
    lines = [part_line(part, 7) for part in PARTS]
    journal = (HEADER + b"".join(lines))[:cut]
    whole = max(0, journal.count(b"\n") - 1)
    assert [f.part for f in finished_parts(journal, HEADER, PARTS)] == list(PARTS[:whole])


def test_the_journal_of_another_version_counts_for_nothing() -> None:
    journal = header_line("m.gguf", 100, "another etag", 10) + part_line(PARTS[0], 1)
    assert finished_parts(journal, HEADER, PARTS) == ()


@given(st.binary(max_size=100))
def test_damage_in_the_journal_is_survived(damage: bytes) -> None:
    journal = HEADER + damage + b"\n" + part_line(PARTS[3], 9)
    assert FinishedPart(PARTS[3], 9) in finished_parts(journal, HEADER, PARTS)


def test_parts_that_do_not_fit_the_file_are_not_taken() -> None:
    journal = HEADER + part_line(Part(5, 10), 1) + part_line(Part(100, 10), 1)
    assert finished_parts(journal, HEADER, PARTS) == ()


def test_a_part_noted_twice_has_its_last_checksum() -> None:
    journal = HEADER + part_line(PARTS[0], 1) + part_line(PARTS[0], 2)
    assert finished_parts(journal, HEADER, PARTS) == (FinishedPart(PARTS[0], 2),)
