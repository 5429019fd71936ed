"""Each member owns a share, and one that goes leaves the shares of the others alone."""

from collections import Counter

from matrixinfer.downloader.core.rendezvous import owner, ranked

MEMBERS = [f"10.0.0.{number}:8731" for number in range(1, 5)]
CHUNKS = [f"file/{number}" for number in range(4000)]


def test_shares_are_about_equal() -> None:
    shares = Counter(owner(chunk, MEMBERS) for chunk in CHUNKS)
    assert set(shares) == set(MEMBERS)
    assert all(800 < share < 1200 for share in shares.values())


def test_all_agree_whatever_order_they_see_the_members_in() -> None:
    assert [owner(chunk, MEMBERS) for chunk in CHUNKS] == [owner(chunk, MEMBERS[::-1]) for chunk in CHUNKS]


def test_when_a_member_goes_only_its_chunks_move() -> None:
    left = MEMBERS[1:]
    moved = [chunk for chunk in CHUNKS if owner(chunk, MEMBERS) != owner(chunk, left)]
    assert moved == [chunk for chunk in CHUNKS if owner(chunk, MEMBERS) == MEMBERS[0]]


def test_a_ranking_begins_with_the_owner() -> None:
    assert ranked("origin", MEMBERS)[0] == owner("origin", MEMBERS)
    assert sorted(ranked("origin", MEMBERS)) == MEMBERS
