"""The choice of an endpoint: filters, our scorers, pickers, and profiles made of a list of names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf, nan
from typing import Any

import pytest

from matrixinfer.gateway.core.load import EngineLoads
from matrixinfer.gateway.core.schedule.framework import SAMPLE_SIZE, Contest, Decision, Profile, Refused, View, decide
from matrixinfer.gateway.core.schedule.profiles import DEFAULT, PLUGINS, TWO_RANDOM, UnknownPlugin, profile_of
from matrixinfer.gateway.core.schedule.scorers import kv_usage, token_load
from matrixinfer.gateway.core.split import draw
from matrixinfer.gateway.core.types import Endpoint, PluginWeight


def endpoints(count: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(i, f"p{i}", f"u{i}", f"10.0.{i // 250}.{i % 250}", 8000) for i in range(count))


def view(requests: Sequence[int], *, prefill: Sequence[int] | None = None, **more: Any) -> View:
    nothing = [0] * len(requests)
    return View(endpoints(len(requests)), list(requests), prefill or nothing, more.pop("decode", nothing), **more)


def engines(count: int, **columns: Sequence[float]) -> EngineLoads:
    """Reports of one moment ago; columns that are not given say nothing."""
    given: Mapping[str, Sequence[float]] = {"ages": [0.0] * count, "failures": [0.0] * count, **columns}
    names = EngineLoads.__dataclass_fields__
    return EngineLoads(**{name: given.get(name, [nan] * count) for name in names})


def choose(seen: View, profile: Profile = DEFAULT, request_id: str = "r") -> str:
    decision = decide(profile, seen, partial(draw, request_id))
    return decision.endpoint.uid if isinstance(decision, Decision) else f"refused by {decision.filter!r}"


def choices(seen: View, profile: Profile = DEFAULT, times: int = 300) -> Counter[str]:
    return Counter(choose(seen, profile, f"r{i}") for i in range(times))


# -- filters ----------------------------------------------------------------------------------------------------------


def test_a_full_endpoint_is_never_picked() -> None:
    assert choose(view([9, 8], limit=9)) == "u1"
    assert choose(view([9, 9], limit=9)) == "refused by 'below-limit'"


def test_an_endpoint_that_failed_is_asked_again_only_when_there_is_no_other() -> None:
    assert choose(view([0, 5], tried=frozenset({"u0"}))) == "u1"
    assert choose(view([0, 5], prefill=[0, 99_999], tried=frozenset({"u0", "u1"}))) == "u0"


def test_an_ejected_endpoint_takes_nothing_unless_all_are_ejected() -> None:
    assert set(choices(view([0, 9, 9], ejected=frozenset({"u0"})))) == {"u1", "u2"}
    assert choose(view([0], ejected=frozenset({"u0"}))) == "u0"


def test_no_endpoint_is_a_refusal_without_a_filter() -> None:
    assert choose(view([])) == "refused by ''"


def test_a_decision_tells_who_was_removed() -> None:
    decision = decide(DEFAULT, view([0, 4, 1], tried=frozenset({"u0"}), limit=4), partial(draw, "r"))
    assert isinstance(decision, Decision)
    assert [(r.filter, r.positions) for r in decision.removals] == [("untried", (0,)), ("below-limit", (1,))]
    assert (list(decision.candidates), decision.position, decision.picker) == ([2], 2, "power-of-two")
    refused = decide(DEFAULT, view([4], limit=4), partial(draw, "r"))
    assert isinstance(refused, Refused)
    assert refused.removals[0].filter == "below-limit"


# -- load -------------------------------------------------------------------------------------------------------------


def test_tokens_count_not_requests() -> None:
    """BEAT-47: three short questions are less than one book."""
    assert choose(view([3, 1], prefill=[300, 30_000])) == "u0"
    assert choose(view([2, 1], decode=[200, 40_000])) == "u0"


def test_equals_share_the_work() -> None:
    assert set(choices(view([2] * 8))) == {f"u{i}" for i in range(8)}


def test_noise_is_no_landslide() -> None:
    """BEAT-46: of 10 and 11 neither is starved; 10 against 1000 is a difference."""
    share = choices(view([1, 1], prefill=[10, 11]))
    assert min(share["u0"], share["u1"]) > 0
    one, other = token_load(Contest(view([1, 1], prefill=[10, 11]), (0, 1)))
    assert one - other < 0.001


def test_a_score_means_the_same_whoever_it_is_compared_with() -> None:
    """BEAT-46: nothing is normalised by the other candidates."""
    alone = token_load(Contest(view([5], prefill=[700]), (0,)))[0]
    assert token_load(Contest(view([5, 900], prefill=[700, 90_000]), (0, 1)))[0] == alone


@pytest.mark.parametrize("profile", [DEFAULT, *(profile_of([PluginWeight(name)]) for name in PLUGINS)])
def test_all_idle_is_no_division_by_zero(profile: Profile) -> None:
    """BEAT-45: nothing known and nothing loaded gives finite scores and every endpoint its share."""
    silent = EngineLoads.unknown(4)
    for seen in (view([0] * 4), view([0] * 4, engines=silent), view([0] * 4, engines=engines(4, running=[0.0] * 4))):
        decision = decide(profile, seen, partial(draw, "r"))
        assert isinstance(decision, Decision)
        assert all(0.0 <= score < inf for score in decision.scores)
        assert len(choices(seen, profile)) == 4


def test_many_endpoints_are_sampled_and_all_get_their_share() -> None:
    """BEAT-42: no herd, and the loaded half is avoided."""
    seen = view([0] * 100 + [50] * 100, prefill=[0] * 100 + [50_000] * 100)
    picked = choices(seen, times=2000)
    assert sum(count for uid, count in picked.items() if int(uid[1:]) >= 100) <= 2
    assert len(picked) > 90
    assert max(picked.values()) < 60
    decision = decide(DEFAULT, seen, partial(draw, "r"))
    assert isinstance(decision, Decision)
    assert len(decision.candidates) <= SAMPLE_SIZE


def test_a_sample_without_room_is_no_refusal() -> None:
    loads = [9] * 400
    loads[123] = 0
    assert set(choices(view(loads, limit=9), times=20)) == {"u123"}


def test_who_has_the_prompt_is_always_in_the_sample() -> None:
    assert set(choices(view([0] * 400, prompt_tokens=9000, cached_tokens={321: 8900}), times=50)) == {"u321"}


# -- what engines say -------------------------------------------------------------------------------------------------


def test_other_clients_of_an_engine_are_seen() -> None:
    busy = engines(2, running=[40.0, 0.0], waiting=[20.0, 0.0])
    assert set(choices(view([0, 0], engines=busy))) == {"u1"}


def test_what_an_engine_says_of_our_own_requests_counts_once() -> None:
    """The report repeats what we know: a busy engine with exact books is no worse than our books say."""
    seen = view([5, 5], prefill=[100, 100], engines=engines(2, running=[5.0, 0.0], waiting=[0.0, 0.0]))
    assert set(choices(seen)) == {"u0", "u1"}


def test_old_news_fade() -> None:
    """BEAT-39: what an engine said long ago neither keeps work away for ever nor draws it."""
    for age, expected in ((0.1, {"u1"}), (30.0, {"u0", "u1"}), (inf, {"u0", "u1"})):
        told = engines(2, ages=[age, age], running=[40.0, 0.0], waiting=[20.0, 0.0])
        assert set(choices(view([0, 0], engines=told))) == expected


def test_a_dead_pod_does_not_look_idle() -> None:
    """BEAT-39: its scrapes fail and it says nothing; the living, though they work, get the requests."""
    told = engines(
        3,
        ages=[30.0, 0.3, 0.3],
        failures=[4.0, 0.0, 0.0],
        running=[nan, 8.0, 8.0],
        waiting=[nan, 0.0, 0.0],
        kv_usage=[nan, 0.5, 0.5],
    )
    assert "u0" not in choices(view([0, 8, 8], prefill=[0, 900, 900], engines=told))


def test_full_kv_memory_repels_and_silence_is_the_mean() -> None:
    told = engines(3, kv_usage=[0.99, 0.5, nan])
    full, roomy, silent = kv_usage(Contest(view([0] * 3, engines=told), (0, 1, 2)))
    assert full < 0.1
    assert roomy == 1.0
    assert full < silent < roomy


def test_a_recovered_pod_regains_its_share() -> None:
    """BEAT-48: nothing of the default profile remembers how slow a pod once was; its load is all that counts."""
    slow = view([30, 1], prefill=[40_000, 100])
    recovered = view([0, 1], prefill=[0, 100])
    assert set(choices(slow)) == {"u1"}
    assert choices(recovered)["u0"] > 0


# -- affinity ---------------------------------------------------------------------------------------------------------


def test_who_has_the_prompt_gets_it() -> None:
    assert set(choices(view([1, 1, 1], prompt_tokens=2000, cached_tokens={1: 1900}))) == {"u1"}


def test_a_hot_prefix_does_not_pin_one_pod() -> None:
    """BEAT-54: 256 requests with one prompt, of which one pod had it: the imbalance stays bounded."""
    count, prompt, answer = 4, 1000, 200
    prefill, decode = [0] * count, [0] * count
    owners = {0: 900}
    for i in range(256):
        seen = view([0] * count, prefill=prefill, decode=decode, prompt_tokens=prompt, cached_tokens=dict(owners))
        decision = decide(DEFAULT, seen, partial(draw, f"r{i}"))
        assert isinstance(decision, Decision)
        at = decision.position
        prefill[at] += prompt - owners.get(at, 0)
        decode[at] += answer
        owners[at] = 900
    loads = Contest(view([0] * count, prefill=prefill, decode=decode), range(count)).work
    assert max(loads) <= 1.25 * sum(loads) / count + 1024
    assert min(loads) >= 0.75 * sum(loads) / count


def test_a_short_common_beginning_does_not_decide() -> None:
    """Saving 60 of 4000 tokens is not worth waiting for 3000."""
    assert choose(view([1, 0], prefill=[3000, 0], prompt_tokens=4000, cached_tokens={0: 60})) == "u1"


def test_an_adapter_attracts_and_its_absence_refuses_nobody() -> None:
    """BEAT-55: soft; an adapter that nobody has goes to the least loaded, and a busy owner is passed over."""
    assert choose(view([1, 0], prefill=[100, 0], adapter_at=frozenset({0}))) == "u0"
    assert choose(view([9, 0], prefill=[40_000, 0], adapter_at=frozenset({0}))) == "u1"
    assert choose(view([1, 0], prefill=[3000, 0], adapter_at=frozenset())) == "u1"


# -- profiles ---------------------------------------------------------------------------------------------------------


def test_a_list_of_names_makes_a_profile() -> None:
    made = profile_of([PluginWeight("least-request", 2), PluginWeight("lora-affinity"), PluginWeight("best")])
    always, listed, wish = ["untried", "healthy", "below-limit"], ["least-request", "lora-affinity"], ["session"]
    assert [name for name, _ in made.filters] == always + listed + wish
    assert [(name, weight) for name, weight, _ in made.scorers] == [("least-request", 2.0)]
    assert made.picker[0] == "best"
    assert profile_of([]) is DEFAULT


def test_a_scorer_of_weight_nought_is_left_out() -> None:
    assert profile_of([PluginWeight("token-load", 0), PluginWeight("kv-usage")]).scorers[0][0] == "kv-usage"


def test_random_picks_alone() -> None:
    assert profile_of([PluginWeight("random")]).picker[0] == "random"
    assert profile_of([PluginWeight("random"), PluginWeight("token-load")]).picker[0] == "power-of-two"


def test_an_unknown_name_makes_no_profile() -> None:
    """BEAT-09."""
    with pytest.raises(UnknownPlugin, match=r"'lest-request'.*least-request"):
        profile_of([PluginWeight("lest-request"), PluginWeight("kv-cache")])


def test_without_time_two_are_drawn() -> None:
    picked = choices(view([0, 3, 3, 3]), TWO_RANDOM, times=400)
    assert set(picked) == {"u0", "u1", "u2", "u3"}
    assert picked["u0"] == max(picked.values())
