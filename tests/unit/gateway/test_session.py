"""A conversation stays with its endpoint, as long as that is there and not overrun."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.gateway.rig import Rig, post

from matrixinfer.gateway.core.schedule.filters import session as keep_session
from matrixinfer.gateway.core.schedule.view import View
from matrixinfer.gateway.core.session import SessionHomes, session_of
from matrixinfer.gateway.core.types import Endpoint, SessionAffinity, TrafficPolicy

BY_HEADER, BY_COOKIE = SessionAffinity(False, "X-Session"), SessionAffinity(True, "sid")
SESSIONS = [f"session-{i}" for i in range(400)]


def endpoints(*numbers: int) -> list[Endpoint]:
    return [Endpoint(i, f"pod-{i}", f"uid-{i}", f"10.0.0.{i}", 80) for i in numbers]


def home(session: str, of: list[Endpoint]) -> str:
    return of[SessionHomes(of).of(session)[0]].pod


@pytest.mark.parametrize(
    ("affinity", "headers", "expected"),
    [
        (None, {"x-session": "a"}, ""),
        (BY_HEADER, {"x-session": "a"}, "a"),
        (BY_HEADER, {}, ""),
        (BY_COOKIE, {"cookie": "other=1; sid=a; sid2=b"}, "a"),
        (BY_COOKIE, {"cookie": "sid"}, ""),
        (BY_COOKIE, {"cookie": "sid=a=b"}, "a=b"),
        (BY_COOKIE, {"sid": "a"}, ""),
    ],
)
def test_where_the_identity_is_found(affinity: SessionAffinity | None, headers: dict[str, str], expected: str) -> None:
    assert session_of(affinity, headers) == expected


def test_a_pod_that_goes_moves_only_its_own_sessions() -> None:
    before, after = endpoints(1, 2, 3, 4, 5), endpoints(1, 2, 4, 5)
    moved = {session for session in SESSIONS if home(session, before) != home(session, after)}
    assert moved == {session for session in SESSIONS if home(session, before) == "pod-3"}


def test_a_new_pod_takes_its_share_and_no_more() -> None:
    before, after = endpoints(1, 2, 3), endpoints(1, 2, 3, 4)
    moved = Counter(home(s, after) for s in SESSIONS if home(s, before) != home(s, after))
    assert set(moved) == {"pod-4"}
    assert 60 < moved["pod-4"] < 140


@given(st.permutations(range(8)), st.text(min_size=1))
def test_the_order_of_the_endpoints_means_nothing(order: list[int], session: str) -> None:
    assert home(session, endpoints(*order)) == home(session, endpoints(*range(8)))


def kept(requests: list[int], session_at: tuple[int, ...], candidates: list[int] | None = None) -> list[int]:
    nothing = [0] * len(requests)
    view = View(endpoints(*range(len(requests))), requests, nothing, nothing, session_at=session_at)
    return list(keep_session(view, range(len(requests)) if candidates is None else candidates))


def test_the_load_overrules_the_wish() -> None:
    assert kept([0, 0, 4, 0], (2, 1, 3)) == [2]
    assert kept([0, 0, 5, 0], (2, 1, 3)) == [1]
    assert kept([20, 20, 29, 20], (2, 1, 3)) == [2]
    assert kept([0, 9, 9, 9], (2, 1, 3)) == [2]
    assert kept([0, 0, 30, 30], (2, 3)) == [0, 1, 2, 3]


def test_an_endpoint_that_cannot_passes_its_sessions_to_the_next() -> None:
    assert kept([0, 0, 0, 0], (2, 1, 3), candidates=[0, 1, 3]) == [1]
    assert kept([0, 0, 0, 0], (), candidates=[0, 1, 3]) == [0, 1, 3]


@pytest.mark.parametrize("count", [4, 40])
async def test_the_turns_of_a_conversation_reach_one_pod(rig: Rig, count: int) -> None:
    """Also where there are so many pods that a decision looks at some of them only."""
    for _ in range(count):
        await rig.engine()
    rig.policy = TrafficPolicy(session=BY_HEADER)
    await rig.start()
    for turn in range(12):
        assert (await rig.ask(post(x_session=f"s{turn % 3}"))).status == 200
    pods = [record.pod for record in rig.records]
    assert pods == pods[:3] * 4
    decision = rig.records[0].decision
    assert decision is not None
    assert (decision.candidates, "session" in decision.removed) == (1, True)


async def test_a_conversation_whose_pod_goes_stays_together(rig: Rig) -> None:
    for _ in range(4):
        await rig.engine()
    rig.policy = TrafficPolicy(session=BY_COOKIE)
    await rig.start()
    await rig.ask(post(cookie="sid=a"))
    first = rig.records[0].pod
    rig.publish(without=(rig.engines[int(first[4:])],))
    for _ in range(4):
        await rig.ask(post(cookie="sid=a"))
    assert len({record.pod for record in rig.records[1:]}) == 1
    assert rig.records[1].pod != first


def test_what_is_remembered_of_a_session_is_small_whatever_the_client_sends() -> None:
    homes = SessionHomes([Endpoint(0, "p", "u", "10.0.0.1", 80)])
    assert homes.of("s" * 60_000) == homes.of("s" * 60_000) == (0,)
    assert all(isinstance(key, int) for key in homes._known)
