"""A decision is a function of its record: replayed, or sent somewhere and replayed there, it gives the same pod."""

from functools import partial
from math import inf, nan

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.load import EngineLoads
from matrixinfer.gateway.core.schedule.framework import Decision, Profile, Refused, View, decide
from matrixinfer.gateway.core.schedule.profiles import DEFAULT, PLUGINS, TWO_RANDOM, profile_of
from matrixinfer.gateway.core.schedule.record import Recorded, decode, encode, explain, replay
from matrixinfer.gateway.core.split import draw
from matrixinfer.gateway.core.types import Endpoint, PluginWeight

counts = st.integers(0, 50_000)
said = st.one_of(st.floats(0, 1000, allow_nan=False), st.just(nan))


@st.composite
def views(draw: st.DrawFn) -> View:
    size = draw(st.one_of(st.integers(0, 12), st.integers(30, 60)))

    def column(values: st.SearchStrategy[float]) -> list[float]:
        # A short column repeated: large worlds with little entropy, so that shrinking works.
        some = draw(st.lists(values, min_size=1, max_size=6))
        return [some[i % len(some)] for i in range(size)]

    def whole() -> list[int]:
        return [int(value) for value in column(counts.map(float))]

    positions = st.integers(0, max(size - 1, 0))
    engines = EngineLoads(
        column(st.one_of(st.floats(0, 60), st.just(inf))),
        column(st.sampled_from((0.0, 0.0, 1.0, 9.0))),
        *(column(said) for _ in range(len(EngineLoads.__dataclass_fields__) - 2)),
    )
    uids = st.frozensets(positions.map(lambda i: f"u{i}"), max_size=4)
    return View(
        tuple(Endpoint(i, f"p{i}", f"u{i}", f"10.0.0.{i}", 8000) for i in range(size)),
        whole(),
        whole(),
        whole(),
        draw(st.one_of(st.none(), st.just(engines))),
        draw(st.dictionaries(positions, counts, max_size=5)) if size else {},
        draw(st.one_of(st.none(), st.frozensets(positions, max_size=5))) if size else None,
        draw(counts),
        draw(uids),
        draw(uids),
        draw(counts),
        draw(st.one_of(st.none(), positions)) if size else None,
        draw(st.one_of(st.none(), st.integers(1, 50_000))),
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    names = draw(st.lists(st.sampled_from(sorted(PLUGINS)), unique=True, max_size=6))
    listed = [PluginWeight(name, draw(st.integers(0, 100))) for name in names]
    return draw(st.sampled_from((DEFAULT, TWO_RANDOM, profile_of(listed))))


def named(decision: Decision | Refused) -> object:
    if isinstance(decision, Refused):
        return decision
    return decision.endpoint, tuple(decision.candidates), tuple(decision.scores), decision.removals, decision.picker


@given(views(), profiles(), st.text(max_size=20))
def test_a_recorded_decision_gives_the_same_pod_always(view: View, profile: Profile, request_id: str) -> None:
    made = decide(profile, view, partial(draw, request_id))
    recorded = Recorded.of(request_id, 7, profile, view)
    assert named(replay(recorded)) == named(made)
    assert named(replay(decode(encode(recorded)))) == named(made)


@given(views(), profiles(), st.text(max_size=20))
def test_a_decision_is_sound(view: View, profile: Profile, request_id: str) -> None:
    """One of the endpoints, within the limit, with finite scores; only a lack of room refuses."""
    made = decide(profile, view, partial(draw, request_id))
    if isinstance(made, Refused):
        assert made.filter in ("below-limit", "least-request") if view.endpoints else not made.filter
        return
    assert made.endpoint == view.endpoints[made.position]
    assert made.position in made.candidates
    assert view.limit is None or view.requests[made.position] < view.limit
    assert all(0.0 <= score < inf for score in made.scores)
    removed = {position for removal in made.removals for position in removal.positions}
    assert removed.isdisjoint(made.candidates)


@given(views(), profiles(), st.text(max_size=20))
def test_an_explanation_adds_up(view: View, profile: Profile, request_id: str) -> None:
    recorded = Recorded.of(request_id, 7, profile, view)
    told, made = explain(recorded), replay(recorded)
    assert told.pod == (made.endpoint.pod if isinstance(made, Decision) else "")
    assert sum(verdict.chosen for verdict in told.candidates) == isinstance(made, Decision)
    for verdict in told.candidates:
        assert bool(verdict.removed_by) != (verdict.total is not None)
        if verdict.total is not None:
            weighted = sum(told.weights[name] * score for name, score in verdict.scores.items())
            assert abs(weighted - verdict.total) < 1e-9 * max(1.0, abs(weighted))
