"""How many groups and role replicas there are to be, and which go first."""

import pytest
from tests.unit.infer_controller.worlds import NOW, OLD, changed, fleet, infer, leaving, pod, role, template

from matrixinfer.infer_controller.fleet import UnitId
from matrixinfer.infer_controller.scaling import group_count, missing_units, surplus_units


def removed(replicas, pods, **given):
    return [group.ordinal for group in group_count(fleet(infer(replicas=replicas, **given), pods)).remove]


def made(replicas, pods, **given):
    return group_count(fleet(infer(replicas=replicas, **given), pods)).create


def test_the_lowest_free_ordinals_are_made():
    assert made(4, [pod(0), pod(2)]) == (1, 3)


def test_a_group_that_is_going_holds_its_place():
    """Four to zero to four never makes eight."""
    assert made(4, [leaving(pod(ordinal)) for ordinal in range(4)]) == ()
    assert made(4, [leaving(pod(0))]) == (1, 2, 3)


def test_a_group_whose_pods_somebody_deletes_holds_its_place():
    assert made(1, [pod(0, delete_by=NOW)]) == ()


def test_the_highest_ordinal_goes_first():
    assert removed(1, [pod(0), pod(1), pod(2)]) == [2, 1]


def test_broken_groups_go_before_healthy_ones():
    assert removed(2, [pod(0), pod(1, ready=False), pod(2)]) == [1]


def test_cheap_groups_go_before_dear_ones():
    assert removed(2, [pod(0, deletion_cost=-5), pod(1), pod(2, deletion_cost=9)]) == [0]


def test_broken_comes_before_cheap():
    assert removed(2, [pod(0, deletion_cost=-5), pod(1, ready=False, deletion_cost=9), pod(2)]) == [1]


def test_protected_groups_go_last():
    assert removed(1, [pod(0, ready=False, of=OLD), pod(1)], partition=1) == [1]


def test_groups_that_are_going_are_not_counted_twice():
    """With one of three gone already, two stay; the second look must not condemn another."""
    assert removed(2, [leaving(pod(0)), pod(1, ready=False), pod(2)]) == []


def test_the_surge_of_an_update_goes_at_its_end_whatever_deletion_costs_say():
    pods = [pod(0, deletion_cost=-5), pod(1), pod(2)]
    assert removed(2, pods, current_revision=OLD.revision, max_surge=1) == [2]


def test_surge_takes_ordinals_above_replicas():
    pods = [pod(0, of=OLD), pod(1, of=OLD)]
    assert made(2, pods, current_revision=OLD.revision, max_surge=1) == (2,)


def test_a_replaced_ordinal_is_refilled_before_more_surge_is_made():
    pods = [pod(0, of=OLD), pod(2)]
    assert made(2, pods, current_revision=OLD.revision, max_surge=1) == (1,)


def test_surge_makes_room_for_an_ordinal_that_is_still_to_be_made():
    """Two surge groups and one gap are as many groups as one surge group without a gap."""
    pods = [pod(1), pod(2), pod(3), pod(4)]
    assert removed(3, pods, current_revision=OLD.revision, max_surge=2) == [4]
    assert made(3, pods[:3], current_revision=OLD.revision, max_surge=2) == (0,)


def test_nothing_is_made_of_a_template_without_pods():
    assert made(3, [], made_from=template(role(replicas=0))) == ()


@pytest.mark.parametrize(("there", "wanted", "missing"), [((), 2, (0, 1)), ((1,), 2, (0,)), ((0, 1), 2, ())])
def test_the_lowest_free_role_replicas_are_made(there, wanted, missing):
    of = template(role(replicas=wanted), role("other"))
    pods = [pod(0, role="other", of=of), *(pod(0, replica=replica, of=of) for replica in there)]
    group = fleet(infer(of), pods).groups[0]
    assert missing_units(group) == tuple(UnitId(0, "leader", replica) for replica in missing)


def test_broken_and_cheap_role_replicas_go_first():
    of = template(role(replicas=1))
    pods = [pod(0, replica=0, of=of), pod(0, replica=1, of=of, ready=False), pod(0, replica=2, of=of, deletion_cost=-1)]
    group = fleet(infer(of), pods).groups[0]
    assert [unit.id.replica for unit in surplus_units(group)] == [1, 2]


def test_an_outdated_group_that_waits_keeps_its_shape():
    """New counts are for groups of the new template; the others are about to go."""
    of = template(role(replicas=3))
    group = fleet(infer(of, current_revision=OLD.revision), [pod(0, of=OLD)]).groups[0]
    assert missing_units(group) == ()


def test_a_protected_group_follows_the_counts():
    of = template(role(replicas=2))
    group = fleet(infer(of, current_revision=OLD.revision, partition=1), [pod(0, of=OLD)]).groups[0]
    assert missing_units(group) == (UnitId(0, "leader", 1),)


def test_a_role_replica_that_is_going_keeps_its_place():
    of = template(role(replicas=2))
    one = changed(pod(0, replica=1, of=of), delete_by=NOW)
    assert missing_units(fleet(infer(of), [pod(0, of=of), one]).groups[0]) == ()
