"""A decision told to people."""

from functools import partial

import msgspec

from matrixinfer.gateway.core.schedule.framework import View, decide
from matrixinfer.gateway.core.schedule.profiles import DEFAULT
from matrixinfer.gateway.core.schedule.record import Recorded, explain, replay
from matrixinfer.gateway.core.split import draw
from matrixinfer.gateway.core.types import Endpoint


def recorded(**more: object) -> Recorded:
    endpoints = tuple(Endpoint(i, f"pod-{i}", f"u{i}", "10.0.0.1", 8000 + i) for i in range(4))
    view = View(endpoints, [1, 9, 2, 2], [100, 0, 900, 900], [0] * 4, prompt_tokens=800, **more)  # type: ignore[arg-type]
    return Recorded.of("req-1", 42, DEFAULT, view)


def test_every_candidate_is_told_of() -> None:
    told = explain(recorded(tried=frozenset({"u0"}), limit=9, cached_tokens={2: 700}))
    verdicts = {verdict.pod: verdict for verdict in told.candidates}
    assert {pod: verdict.removed_by for pod, verdict in verdicts.items()} == {
        "pod-0": "untried",
        "pod-1": "below-limit",
        "pod-2": "",
        "pod-3": "",
    }
    assert (told.request_id, told.revision, told.profile, told.pod) == ("req-1", 42, "default", "pod-2")
    assert verdicts["pod-2"].chosen
    assert verdicts["pod-2"].cached_tokens == 700
    assert set(verdicts["pod-2"].scores) == {"token-load", "prefix-affinity"}


def test_the_draws_that_broke_a_tie_are_told() -> None:
    told = explain(recorded(tried=frozenset({"u0", "u1"})))
    assert told.draws == {salt: draw("req-1", salt) for salt in ("tie-first", "tie-second")}


def test_a_refusal_names_its_filter() -> None:
    told = explain(recorded(limit=1))
    assert (told.pod, told.refused_by) == ("", "below-limit")
    assert all(verdict.removed_by == "below-limit" for verdict in told.candidates)


def test_an_explanation_is_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(explain(recorded())))["revision"] == 42


def test_a_replay_needs_nothing_but_the_record() -> None:
    kept = recorded()
    assert replay(kept) == decide(DEFAULT, kept.view, partial(draw, "req-1"))
