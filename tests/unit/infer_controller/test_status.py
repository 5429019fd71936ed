"""Counts, conditions and sentences of the status, and which changes may wait."""

from datetime import timedelta

import pytest
from tests.unit.infer_controller.worlds import (
    KEY,
    NEW,
    NOW,
    OLD,
    ago,
    condition,
    infer,
    leaving,
    pod,
    recorded,
    role,
    seen,
    settled,
    template,
)

from matrixinfer.infer_controller.pace import StatusPace
from matrixinfer.infer_controller.plan import plan
from matrixinfer.infer_controller.reconciler import explain
from matrixinfer.infer_controller.status import is_urgent
from matrixinfer.kube.apply import Failure
from matrixinfer.kube.errors import Conflict, Forbidden, NotOwned, Unreachable


def status(of, pods, **given):
    return plan(seen(of, pods, **given), NOW).status[0].desired


def test_every_count_is_of_groups():
    of = infer(replicas=4, current_revision=OLD.revision)
    found = status(of, [pod(0, of=OLD), pod(1), pod(2, ready=False), leaving(pod(3, of=OLD))])
    assert (found["replicas"], found["readyReplicas"], found["availableReplicas"]) == (4, 3, 2)
    assert (found["updatedReplicas"], found["currentReplicas"]) == (2, 2)
    assert (found["currentRevision"], found["updateRevision"]) == (OLD.revision, NEW.revision)


def test_when_all_is_done_the_current_groups_are_the_updated_ones():
    found = status(infer(replicas=2), [pod(0), pod(1)])
    assert (found["currentReplicas"], found["updatedReplicas"]) == (2, 2)


def test_roles_are_counted_over_all_groups():
    of = template(role("prefill"), role("decode", replicas=2))
    pods = [
        pod(g, role=r, replica=j, of=of, ready=j == 0)
        for g in (0, 1)
        for r, j in (("prefill", 0), ("decode", 0), ("decode", 1))
    ]
    roles = status(infer(of, replicas=2), pods)["roles"]
    assert [(r["name"], r["replicas"], r["readyReplicas"]) for r in roles] == [("decode", 4, 2), ("prefill", 2, 2)]


def test_the_selector_matches_one_pod_of_each_group():
    text = status(infer(template(role("prefill"), role("decode"))), [])["labelSelector"]
    assert text.split(",") == [
        "modelinfer.matrixinfer.ai/name=m",
        "modelinfer.matrixinfer.ai/entry=true",
        "modelinfer.matrixinfer.ai/role=prefill",
        "modelinfer.matrixinfer.ai/role-id=prefill-0",
    ]


def told(type_, of, pods, **given):
    found = condition(plan(seen(of, pods, **given), NOW), type_)
    return found.get("status"), found.get("reason"), found.get("message", "")


def test_available_is_all_groups():
    assert told("Available", infer(replicas=2), [pod(0), pod(1)])[:2] == ("True", "AllGroupsReady")
    assert told("Available", infer(replicas=2), [pod(0)])[:2] == ("False", "GroupsNotReady")
    assert told("Available", infer(replicas=0), [])[:2] == ("True", "AllGroupsReady")


def test_available_stays_true_while_an_update_keeps_its_budget():
    rolling = infer(replicas=3, current_revision=OLD.revision)
    assert told("Available", rolling, [pod(0, of=OLD), pod(1, of=OLD), pod(2, ready=False)])[:2] == (
        "True",
        "MinimumGroupsReady",
    )
    assert told("Available", rolling, [pod(0, of=OLD), pod(1, of=OLD, ready=False), pod(2, ready=False)])[0] == "False"
    assert told("Available", infer(replicas=1, current_revision=OLD.revision), [pod(0, ready=False)])[0] == "False"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"unscheduled": "0/3 nodes have a GPU"}, "pod m-0-leader-0-0 cannot be scheduled: 0/3 nodes have a GPU"),
        ({"waiting": "ImagePullBackOff"}, "pod m-0-leader-0-0 cannot pull its image"),
        ({"waiting": "CreateContainerConfigError"}, "refers to a ConfigMap or Secret that is not there"),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk is full"}, "ended (Evicted): disk is full"),
        ({}, "group 0: its pods are starting"),
    ],
)
def test_the_message_says_what_is_in_the_way(given, sentence):
    assert sentence in told("Available", infer(), [pod(0, ready=False, **given)])[2]


def test_the_message_names_three_groups_and_counts_the_others():
    message = told("Available", infer(replicas=9), [pod(n, ready=False) for n in range(9)])[2]
    assert message.count("its pods are starting") == 3
    assert message.endswith("and 6 more")


def test_progress_is_told_until_all_is_as_wanted():
    assert told("Progressing", infer(replicas=2), [pod(0)])[:2] == ("True", "GroupProgressing")
    assert told("Progressing", infer(replicas=1), [pod(0), leaving(pod(1))])[:2] == ("True", "GroupProgressing")
    assert told("Progressing", infer(replicas=1), [pod(0)])[:2] == ("False", "Settled")


def test_an_update_says_whom_it_waits_for_and_why_it_rests():
    rolling = infer(replicas=2, current_revision=OLD.revision)
    assert told("UpdateInProgress", rolling, [pod(0, of=OLD), pod(1)])[:2] == ("True", "GroupsUpdating")
    held = infer(replicas=2, current_revision=OLD.revision, partition=1)
    assert told("UpdateInProgress", held, [pod(0, of=OLD), pod(1)])[:2] == ("False", "HeldByPartition")
    assert told("UpdateInProgress", infer(replicas=1), [pod(0)])[:2] == ("False", "UpdateComplete")


def test_gangs_that_are_asked_for_are_told_as_missing_and_nobody_else_hears_of_it():
    assert told("GangScheduled", infer(wants_gang=True), [])[:2] == ("False", "NotSupported")
    assert told("GangScheduled", infer(), [])[0] is None


def test_every_condition_speaks_of_the_generation_that_was_seen():
    of = infer(generation := NEW, wants_gang=True)
    assert generation is NEW
    conditions = status(of, [pod(0)])["conditions"]
    assert len(conditions) == 4
    assert {c["observedGeneration"] for c in conditions} == {1}


def test_the_same_facts_give_the_same_status_later():
    world = settled(seen(infer(replicas=2), [pod(0), pod(1, ready=False)]))
    later = plan(world, NOW + timedelta(hours=3)).status[0]
    assert later.desired == later.current


def test_the_order_in_which_the_server_lists_conditions_does_not_matter():
    world = settled(seen(infer(), [pod(0)]))
    backwards = {**world.infer.status, "conditions": list(reversed(world.infer.status["conditions"]))}
    shuffled = recorded(world, plan(world, NOW))
    made = plan(seen(infer(status=backwards, conditions=world.infer.conditions), [pod(0)]), NOW).status[0]
    assert made.current == shuffled.infer.status


# ---------------------------------------------------------------------- which writes may wait


def test_counts_may_wait_and_verdicts_may_not():
    before = status(infer(replicas=3), [pod(0)])
    assert not is_urgent(before, status(infer(replicas=3), [pod(0), pod(1)]))
    assert is_urgent(before, status(infer(replicas=3), [pod(0), pod(1), pod(2)]))
    assert not is_urgent({}, before)


def counting(ready, replicas=50):
    """A fleet that had one ready group when its status was written."""
    before = settled(seen(infer(replicas=replicas), [pod(0)]))
    return seen(before.infer, [pod(n) for n in range(ready)])


def test_a_count_is_held_back_for_its_time_and_no_longer():
    pace = StatusPace(timedelta(seconds=1))
    waits = plan(counting(2), NOW)
    held = pace.paced(KEY, waits, NOW)
    assert held.status[0].desired == held.status[0].current
    assert held.again_after == timedelta(seconds=1)
    assert pace.paced(KEY, waits, NOW + timedelta(seconds=0.4)).again_after == timedelta(seconds=0.6)
    written = pace.paced(KEY, waits, NOW + timedelta(seconds=1)).status[0]
    assert written.desired != written.current


def test_a_status_that_never_stops_changing_is_written_all_the_same():
    pace, writes = StatusPace(timedelta(seconds=1)), 0
    for tick in range(40):
        now = NOW + timedelta(seconds=tick / 10)
        made = pace.paced(KEY, plan(counting(tick + 2), now), now)
        writes += made.status[0].desired != made.status[0].current
    assert writes == 3


def test_the_first_status_of_a_fleet_that_merely_starts_may_wait_twice_as_long():
    pace = StatusPace(timedelta(seconds=1))
    assert pace.paced(KEY, plan(seen(infer(replicas=2)), NOW), NOW).again_after == timedelta(seconds=2)


def test_good_news_is_written_at_once():
    pace = StatusPace(timedelta(seconds=1))
    made = plan(seen(infer(), [pod(0)]), NOW)
    assert pace.paced(KEY, made, NOW) is made


def test_an_earlier_wait_wins():
    draining = plan(seen(infer(replicas=0), [leaving(pod(0), since=ago(4.5))]), NOW)
    assert StatusPace(timedelta(seconds=9)).paced(KEY, draining, NOW).again_after == timedelta(seconds=0.5)


# ---------------------------------------------------------------------- refusals


def refused(error):
    world = seen(infer(replicas=1))
    made = plan(world, NOW)
    (written,) = explain(world, made, [Failure(made.steps[0], error)], NOW)
    return {c["type"]: c for c in written.desired["conditions"]}, written.desired == made.status[0].desired


def test_a_taken_name_becomes_a_condition():
    conditions, _ = refused(NotOwned("Pod default/m-0-leader-0-0", "nobody"))
    assert (conditions["NotOwned"]["status"], conditions["NotOwned"]["reason"]) == ("True", "NameTaken")
    assert "m-0-leader-0-0" in conditions["NotOwned"]["message"]


def test_a_quota_becomes_the_reason_why_nothing_goes_on():
    conditions, _ = refused(Forbidden(403, "Forbidden", "exceeded quota: gpu"))
    assert (conditions["Progressing"]["status"], conditions["Progressing"]["reason"]) == ("False", "WriteRefused")
    assert "exceeded quota: gpu" in conditions["Progressing"]["message"]


@pytest.mark.parametrize("error", [Conflict(409, "Conflict", "changed"), Unreachable("connection refused")])
def test_what_passes_by_itself_is_not_told(error):
    assert refused(error)[1]
