"""What one pass does with what it sees."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.infer_controller.worlds import (
    NEW,
    NOW,
    OLD,
    ago,
    condition,
    created,
    deleted,
    infer,
    leaving,
    marked,
    pod,
    role,
    seen,
    service,
    settled,
    stored,
    template,
)

from matrixinfer.api.v1alpha1.modelinfer import RecoveryPolicy
from matrixinfer.infer_controller.fleet import Cause, Scope
from matrixinfer.infer_controller.plan import plan
from matrixinfer.kube.plan import Apply, Create, Delete
from matrixinfer.kube.resource import CONTROLLER_REVISIONS, SERVICES

PAIR = template(role(workers=1))


def kinds(wave):
    return {(type(step).__name__, step.resource.kind) for step in wave}


def test_a_new_modelinfer_gets_its_record_and_services_then_entries_then_workers():
    made = plan(seen(infer(PAIR, replicas=2), revisions=()), NOW)
    first, entries, workers = made.waves
    assert kinds(first) == {("Create", "ControllerRevision"), ("Create", "Service")}
    assert [s.manifest["metadata"]["name"] for s in entries] == ["m-0-leader-0-0", "m-1-leader-0-0"]
    assert [s.manifest["metadata"]["name"] for s in workers] == ["m-0-leader-0-1", "m-1-leader-0-1"]
    assert made.notes[0].reason == "CreatingGroups"


def test_a_role_without_workers_needs_no_service():
    made = plan(seen(infer(replicas=1)), NOW)
    assert not any(step.resource == SERVICES for step in made.steps)


def test_a_fleet_that_is_as_it_should_be_costs_nothing():
    pods = [pod(0, 0, of=PAIR), pod(0, 1, of=PAIR)]
    world = settled(seen(infer(PAIR), pods, services=(service(0),)))
    made = plan(world, NOW + timedelta(hours=1))
    assert made.is_empty
    assert made.again_after is None


def test_a_modelinfer_that_is_being_deleted_is_left_to_garbage_collection():
    assert plan(seen(infer(is_deleting=True), [pod(0, phase="Failed")]), NOW).is_empty


def test_a_spec_that_cannot_be_carried_out_touches_nothing_and_is_told():
    made = plan(seen(infer(problem="spec.x: no; write yes"), [pod(7)]), NOW)
    assert made.steps == ()
    assert made.error == "spec.x: no; write yes"
    assert condition(made, "Progressing")["reason"] == "InvalidSpec"


def test_a_group_that_is_gone_is_made_again():
    assert created(plan(seen(infer(replicas=2), [pod(0)]), NOW)) == ["m-1-leader-0-0"]


def test_a_protected_group_that_is_gone_is_made_from_the_old_template():
    made = plan(seen(infer(replicas=2, partition=1, current_revision=OLD.revision), [pod(1)]), NOW)
    (step,) = [step for step in made.steps if isinstance(step, Create)]
    assert step.manifest["spec"]["containers"][0]["image"] == "engine:0"


def test_an_unprotected_group_that_is_gone_is_made_from_the_newest_template():
    made = plan(seen(infer(replicas=2, current_revision=OLD.revision), [pod(0, of=OLD)]), NOW)
    (step,) = [step for step in made.steps if isinstance(step, Create)]
    assert step.manifest["spec"]["containers"][0]["image"] == "engine:1"


def test_a_pod_that_a_group_lacks_is_made_from_the_groups_own_template():
    before = template(role("a", image="engine:0"), role("b", image="engine:0"))
    after = template(role("a"), role("b"))
    given = {"current_revision": before.revision, "replicas": 1, "max_unavailable": 0, "max_surge": 1}
    world = seen(infer(after, **given), [pod(0, role="a", of=before)], revisions=(stored(before), stored(after)))
    images = {
        s.manifest["metadata"]["name"]: s.manifest["spec"]["containers"][0]["image"]
        for s in plan(world, NOW).steps
        if isinstance(s, Create)
    }
    assert images == {"m-0-b-0-0": "engine:0", "m-1-a-0-0": "engine:1", "m-1-b-0-0": "engine:1"}


def test_a_group_whose_template_was_lost_keeps_serving_and_is_not_filled():
    lost = template(role("a", image="lost"), role("b", image="lost"))
    world = seen(infer(template(role("a"), role("b")), partition=1), [pod(0, role="a", of=lost)])
    made = plan(world, NOW)
    assert (created(made), marked(made), deleted(made)) == ([], {}, [])
    assert "revision was lost" in condition(made, "Available")["message"]


def test_scaling_down_marks_first():
    made = plan(seen(infer(replicas=1), [pod(0), pod(1)]), NOW)
    assert marked(made) == {"m-1-leader-0-0": "group/ScaleDown"}
    assert deleted(made) == []


def test_an_update_marks_first_and_refills_only_when_all_of_the_group_is_gone():
    pods = [pod(0, 0, of=OLD), pod(1, 0, of=OLD)]
    given = {"replicas": 2, "current_revision": OLD.revision}
    assert marked(plan(seen(infer(**given), pods), NOW)) == {"m-1-leader-0-0": "group/Rollout"}
    going = [pods[0], leaving(pods[1], cause=Cause.ROLLOUT, since=ago(9))]
    assert deleted(plan(seen(infer(**given), going), NOW)) == ["m-1-leader-0-0"]
    assert created(plan(seen(infer(**given), going), NOW)) == []
    assert created(plan(seen(infer(**given), pods[:1]), NOW)) == ["m-1-leader-0-0"]


def test_a_group_that_goes_is_not_rebuilt_too():
    """One decision for each group in a pass."""
    broken = [pod(0), pod(1, phase="Failed", ready=False)]
    assert marked(plan(seen(infer(replicas=1), broken), NOW)) == {"m-1-leader-0-0": "group/ScaleDown"}


def test_role_replicas_that_are_too_many_go_and_the_rest_of_the_group_stays():
    of = template(role(replicas=1))
    made = plan(seen(infer(of), [pod(0, replica=0, of=of), pod(0, replica=1, of=of)]), NOW)
    assert marked(made) == {"m-0-leader-1-0": "unit/ScaleDown"}


def test_a_pod_that_vanished_from_a_unit_is_not_made_alone():
    world = seen(infer(PAIR), [pod(0, 1, of=PAIR)], services=(service(0),))
    made = plan(world, NOW)
    assert created(made) == []
    assert marked(made) == {"m-0-leader-0-1": "unit/Recovery/1/PodVanished"}


def test_without_recovery_a_pod_that_vanished_is_made_alone():
    world = seen(infer(PAIR, policy=RecoveryPolicy.NONE), [pod(0, 1, of=PAIR)], services=(service(0),))
    assert created(plan(world, NOW)) == ["m-0-leader-0-0"]


def test_a_unit_that_was_half_made_is_completed():
    world = seen(infer(PAIR), [pod(0, 0, of=PAIR, ready=False)], services=(service(0),))
    assert created(plan(world, NOW)) == ["m-0-leader-0-1"]


@pytest.mark.parametrize("policy", list(RecoveryPolicy))
def test_a_single_pod_that_somebody_deleted_is_made_again_once_it_is_gone(policy):
    going = seen(infer(policy=policy), [pod(0, delete_by=NOW)])
    assert plan(going, NOW).steps == ()
    assert created(plan(replace(going, pods=()), NOW)) == ["m-0-leader-0-0"]


def test_a_rebuild_is_told_as_a_warning():
    (note,) = plan(seen(infer(), [pod(0, phase="Failed", reason="Evicted", ready=False)]), NOW).notes
    assert (note.reason, note.type) == ("Rebuilding", "Warning")
    assert "Evicted" in note.message


def test_a_service_that_is_missing_or_changed_is_restored_and_one_too_many_goes():
    pods = [pod(0, 0, of=PAIR), pod(0, 1, of=PAIR)]
    missing = plan(seen(infer(PAIR), pods), NOW).steps
    assert [type(step) for step in missing] == [Create]
    changed = plan(seen(infer(PAIR), pods, services=(service(0, selector={"x": "y"}),)), NOW).steps
    assert [type(step) for step in changed] == [Apply]
    too_many = plan(seen(infer(PAIR), pods, services=(service(0), service(5))), NOW).steps
    assert [(type(step), step.key.name) for step in too_many] == [(Delete, "m-5-leader-0-0")]


def test_the_service_of_a_unit_that_drains_stays_to_the_end():
    pods = [leaving(pod(0, index, of=PAIR)) for index in (0, 1)]
    made = plan(seen(infer(PAIR, replicas=0), pods, services=(service(0),)), NOW)
    assert not any(step.resource == SERVICES for step in made.steps)


def test_a_wait_is_asked_for_again_in_every_pass():
    made = plan(seen(infer(replicas=0), [leaving(pod(0), since=ago(2))]), NOW)
    assert made.again_after == timedelta(seconds=3)


def test_requests_that_were_cut_are_told():
    world = seen(infer(replicas=0), [leaving(pod(0), since=ago(60))], in_flight={pod(0).uid: 3})
    assert [note.reason for note in plan(world, NOW).notes] == ["DrainCut"]


def test_old_records_are_pruned_with_the_pass():
    olds = [stored(template(image=f"engine:{n}"), n) for n in range(20, 24)]
    made = plan(seen(infer(), [pod(0)], revisions=(*olds, stored(NEW, 50)), history_limit=3), NOW)
    assert [(type(s), s.resource) for s in made.steps] == [(Delete, CONTROLLER_REVISIONS)]


def test_a_removal_mark_is_completed_by_whoever_comes_next():
    half = [leaving(pod(0, 0, of=PAIR), Scope.GROUP, Cause.ROLLOUT), pod(0, 1, of=PAIR)]
    assert marked(plan(seen(infer(PAIR), half, services=(service(0),)), NOW)) == {"m-0-leader-0-1": "group/Rollout"}
