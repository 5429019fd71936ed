"""Which groups an update replaces next, and its two budgets."""

import pytest
from tests.unit.infer_controller.worlds import NEW, OLD, fleet, infer, leaving, pod, role, stored, template

from matrixinfer.api.v1alpha1.modelinfer import RolloutStrategyType
from matrixinfer.infer_controller.fleet import Cause, Scope
from matrixinfer.infer_controller.rollout import Budget, budget, current_revision, next_step, replaced_pods, surge


def step(replicas, pods, **given):
    world = fleet(infer(replicas=replicas, current_revision=OLD.revision, **given), pods)
    return [group.ordinal for group in next_step(world, world.kept)]


def old(*ordinals, **given):
    return [pod(ordinal, of=OLD, **given) for ordinal in ordinals]


def new(*ordinals, **given):
    return [pod(ordinal, **given) for ordinal in ordinals]


@pytest.mark.parametrize(
    ("unavailable", "most", "replicas", "expected"),
    [
        (1, 0, 4, Budget(1, 0)),
        ("25%", 0, 3, Budget(1, 0)),
        ("25%", 0, 0, Budget(1, 0)),
        ("50%", "25%", 5, Budget(2, 2)),
        (0, 1, 3, Budget(0, 1)),
        ("25%", 1, 3, Budget(0, 1)),
    ],
)
def test_percentages_round_to_the_safe_side_and_an_update_can_always_go_on(unavailable, most, replicas, expected):
    assert budget(fleet(infer(replicas=replicas, max_unavailable=unavailable, max_surge=most))) == expected


def test_one_group_at_a_time_from_the_highest_ordinal_counted_as_a_number():
    assert step(12, old(*range(12))) == [11]


def test_as_many_as_may_be_unavailable():
    assert step(4, old(0, 1, 2, 3), max_unavailable=2) == [3, 2]


def test_a_group_that_starts_uses_up_the_budget():
    assert step(3, [*old(0, 1), *new(2, ready=False)]) == []


def test_a_group_that_is_missing_uses_up_the_budget():
    assert step(3, old(0, 1)) == []


def test_a_group_that_is_going_uses_up_the_budget():
    assert step(3, [*old(0, 1), leaving(pod(2, of=OLD), cause=Cause.ROLLOUT)]) == []


def test_a_broken_group_is_replaced_first():
    assert step(3, [*old(0, ready=False), *old(1, 2)]) == [0]


def test_a_broken_old_template_does_not_stop_its_fix():
    assert step(3, old(0, 1, 2, ready=False), max_unavailable=1) == [2]


def test_a_broken_new_template_stops_the_update():
    assert step(4, [*old(0, 1, 2), *new(3, ready=False)], max_unavailable=1) == []


def test_what_one_pass_replaces_never_leaves_fewer_than_allowed():
    assert step(4, [*old(0, 1, 2), *old(3, ready=False)], max_unavailable=2) == [3, 2]


def test_ordinals_below_the_partition_keep_their_revision_even_when_others_are_missing():
    assert step(3, old(1, 2), partition=2, max_unavailable=3) == [2]


def test_a_broken_protected_group_does_not_stop_the_repair_of_others():
    assert step(3, [*old(0, ready=False), *old(1), *old(2, ready=False)], partition=1) == [2]


def test_without_surge_nothing_may_go_before_the_new_one_serves():
    assert step(2, old(0, 1), max_unavailable=0, max_surge=1) == []
    assert step(2, [*old(0, 1), *new(2, ready=False)], max_unavailable=0, max_surge=1) == []
    assert step(2, [*old(0, 1), *new(2)], max_unavailable=0, max_surge=1) == [1]


def surge_of(pods, **given):
    return surge(fleet(infer(replicas=2, current_revision=OLD.revision, **given), pods))


def test_surge_comes_only_while_outdated_groups_wait():
    assert surge_of(old(0, 1), max_surge=3) == 2
    assert surge_of([*old(0), *new(1)], max_surge=3) == 1
    assert surge(fleet(infer(replicas=2, max_surge=3), new(0, ready=False))) == 0


def test_surge_stays_until_the_last_group_is_available():
    assert surge_of([*new(0, ready=False), *new(1, 2)], max_surge=1) == 1
    assert surge_of(new(0, 1, 2), max_surge=1) == 0


def test_by_role_only_the_units_whose_role_changed_are_replaced():
    before = template(role("prefill"), role("decode", image="engine:0"))
    after = template(role("prefill"), role("decode", image="engine:1"))
    pods = [pod(0, role="prefill", of=before), pod(0, role="decode", of=before)]
    given = {"strategy": RolloutStrategyType.ROLE_ROLLING_UPDATE, "current_revision": before.revision}
    world = fleet(infer(after, **given), pods, revisions=(stored(before), stored(after)))
    (group,) = next_step(world, world.kept)
    assert [found.unit.role for found in replaced_pods(group, world)] == ["decode"]


def test_by_role_a_change_of_no_role_replaces_nothing():
    before = template(role("prefill"))
    after = template(role("prefill", replicas=2))
    assert before.revision == after.revision
    world = fleet(infer(after, strategy=RolloutStrategyType.ROLE_ROLLING_UPDATE), [pod(0, role="prefill", of=before)])
    assert not world.groups[0].is_outdated


def test_an_update_that_was_begun_in_a_group_is_finished_whatever_the_budget_says():
    before = template(role("a", image="engine:0"), role("b", image="engine:0"))
    after = template(role("a"), role("b"))
    begun = leaving(pod(0, role="a", of=before), Scope.UNIT, Cause.ROLLOUT)
    pods = [begun, pod(0, role="b", of=before), pod(1, role="a", of=before, ready=False)]
    given = {"strategy": RolloutStrategyType.ROLE_ROLLING_UPDATE, "current_revision": before.revision, "replicas": 2}
    world = fleet(infer(after, **given), pods, revisions=(stored(before), stored(after)))
    assert 0 in [group.ordinal for group in next_step(world, world.kept)]


def revision_of(pods, **given):
    return current_revision(fleet(infer(**{"current_revision": OLD.revision, "replicas": 2, **given}), pods))


def test_the_current_revision_moves_on_only_when_every_group_is_new_and_available():
    assert revision_of([*old(0), *new(1)]) == OLD.revision
    assert revision_of(new(0, 1, ready=False)) == OLD.revision
    assert revision_of(new(0, 1)) == NEW.revision


def test_the_current_revision_of_a_new_fleet_is_the_newest():
    assert revision_of([], current_revision="") == NEW.revision


def test_protected_groups_that_all_vanish_are_still_of_the_old_revision():
    assert revision_of([], partition=2) == OLD.revision


def test_scaling_to_zero_in_the_middle_of_a_canary_does_not_finish_it():
    assert revision_of([], partition=2, replicas=0) == OLD.revision
