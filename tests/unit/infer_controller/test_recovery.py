"""What counts as a failure, and what is rebuilt because of it, when."""

from datetime import timedelta

import pytest
from tests.unit.infer_controller.worlds import (
    NEW,
    NOW,
    OLD,
    ago,
    changed,
    fleet,
    infer,
    leaving,
    pod,
    role,
    seen,
    template,
)

from matrixinfer.api.conditions import set_condition
from matrixinfer.api.v1alpha1.modelinfer import RecoveryPolicy, RecoveryRecord
from matrixinfer.infer_controller.fleet import Cause, Scope, Timing
from matrixinfer.infer_controller.recovery import backoff, due_rebuilds, failure_of, records

PAIR = template(role(workers=1))
PD = template(role("prefill"), role("decode"))


def reason(*pods, size=None, **given):
    failure = failure_of(pods, size or len(pods), seen(**given), NOW)
    return failure.reason if failure else ""


def exited(one, *, seconds_ago, restarts=1, **given):
    return changed(one, last_exit=ago(seconds_ago), restarts=restarts, exit_reason="OOMKilled", **given)


def test_a_ready_pod_is_well():
    assert reason(pod()) == ""


def test_a_starting_pod_is_well():
    assert reason(pod(phase="Pending", ready=False)) == ""


def test_a_pod_that_ended_has_failed_for_the_reason_that_the_kubelet_gives():
    assert reason(pod(phase="Failed", reason="Evicted", ready=False)) == "Evicted"
    assert reason(pod(phase="Succeeded", ready=False)) == "PodFailed"


def test_a_restart_that_made_the_pod_unready_is_a_failure():
    assert reason(exited(pod(ready=False, ready_changed=ago(10)), seconds_ago=10)) == "OOMKilled"


def test_an_old_restart_is_forgotten_when_readiness_blinks():
    """The restart count never falls; only a restart since the pod turned unready counts."""
    assert reason(exited(pod(ready=False, ready_changed=ago(10)), seconds_ago=86_400)) == ""


def test_a_restart_that_healed_is_no_failure_of_a_single_pod():
    assert reason(exited(pod(ready_changed=ago(10)), seconds_ago=60)) == ""


def test_a_crash_loop_is_a_failure_even_when_its_last_exit_is_forgotten():
    assert reason(pod(ready=False, waiting="CrashLoopBackOff", restarts=4)) == "CrashLoopBackOff"


def test_a_pod_that_somebody_deletes_is_a_failure_and_one_that_we_delete_is_not():
    assert reason(pod(delete_by=NOW)) == "PodDeleted"
    assert reason(leaving(pod(delete_by=NOW))) == ""


def test_a_node_that_does_not_answer_for_long_is_a_failure():
    assert reason(pod(), lost_nodes={"node-0": ago(31)}) == "NodeLost"
    assert reason(pod(), lost_nodes={"node-0": ago(29)}) == ""
    assert reason(pod(), lost_nodes={"node-1": ago(300)}) == ""


def test_workers_without_their_entry_pod_tell_that_it_vanished():
    assert reason(pod(index=1), size=2) == "PodVanished"


def available(seconds_ago, status="True"):
    return set_condition([], "Available", status, "Any", "", 1, ago(seconds_ago))


def settled(seconds_ago, conditions):
    return set_condition(conditions, "Progressing", "False", "Settled", "", 1, ago(seconds_ago))


def test_a_unit_that_was_available_and_lacks_a_worker_has_lost_it():
    formed = infer(conditions=tuple(available(20)))
    assert reason(pod(ready_changed=ago(30), created=ago(60)), size=2, of=formed) == "PodVanished"
    assert reason(pod(ready_changed=ago(5), created=ago(10)), size=2, of=formed) == "", "it was made afterwards"


def test_a_unit_that_a_rollout_made_and_that_lacks_a_worker_has_lost_it():
    """The fleet was available all the while, so that condition is older than every pod that the rollout made."""
    rolled = infer(conditions=tuple(settled(20, available(900))))
    assert reason(pod(ready_changed=ago(30), created=ago(60)), size=2, of=rolled) == "PodVanished"
    assert reason(pod(ready_changed=ago(5), created=ago(10)), size=2, of=rolled) == "", "it was made afterwards"
    rolling = infer(
        conditions=tuple(
            set_condition(settled(20, available(900)), "Progressing", "True", "GroupProgressing", "", 1, NOW)
        )
    )
    assert reason(pod(ready_changed=ago(30), created=ago(60)), size=2, of=rolling) == "", "it may still be on its way"


def test_a_unit_that_was_ready_for_long_had_all_its_workers():
    assert reason(pod(ready_changed=ago(600)), size=2) == "PodVanished"


def test_a_unit_that_is_still_being_made_has_lost_nothing():
    assert reason(pod(ready_changed=ago(500)), size=2) == ""
    starting = infer(conditions=tuple(available(20, "False")))
    assert reason(pod(ready_changed=ago(30), created=ago(60)), size=2, of=starting) == ""
    assert reason(pod(ready=False), size=2) == ""


def test_a_worker_that_restarted_under_a_ready_entry_breaks_the_unit_even_when_it_is_ready_again():
    worker = exited(pod(index=1, ready_changed=ago(5)), seconds_ago=10)
    assert reason(pod(ready_changed=ago(60)), worker) == "OOMKilled"
    assert reason(pod(ready_changed=ago(5)), worker) == "", "the entry pod formed the unit again"


# ---------------------------------------------------------------------- policies


def rebuilt(of, pods, **given):
    world = seen(infer(of, **given), pods)
    groups = fleet(world.infer, pods)
    due, waiting = due_rebuilds(world, groups, groups.kept, NOW)
    return sorted(one.name for rebuild in due for one in rebuild.pods), due, waiting


BROKEN_PAIR = [
    pod(0, 0, of=PAIR),
    pod(0, 1, of=PAIR, phase="Failed", ready=False),
    pod(1, 0, of=PAIR),
    pod(1, 1, of=PAIR),
]
BROKEN_PD = [pod(0, role="prefill", of=PD), pod(0, role="decode", of=PD, phase="Failed", ready=False)]


def test_role_recreate_rebuilds_the_role_replica_as_a_whole_and_no_other():
    assert rebuilt(PAIR, BROKEN_PAIR)[0] == ["m-0-leader-0-0", "m-0-leader-0-1"]
    assert rebuilt(PD, BROKEN_PD)[0] == ["m-0-decode-0-0"]


def test_group_recreate_rebuilds_the_group_and_no_other():
    names, (rebuild,), _ = rebuilt(PD, BROKEN_PD, policy=RecoveryPolicy.INFER_GROUP_RECREATE)
    assert names == ["m-0-decode-0-0", "m-0-prefill-0-0"]
    assert (rebuild.removal.scope, rebuild.removal.cause) == (Scope.GROUP, Cause.RECOVERY)


def test_none_replaces_only_the_pod_that_ended():
    assert rebuilt(PAIR, BROKEN_PAIR, policy=RecoveryPolicy.NONE)[0] == ["m-0-leader-0-1"]


def test_none_leaves_restarts_to_the_kubelet():
    pods = [exited(pod(0, ready=False, ready_changed=ago(10)), seconds_ago=10)]
    assert rebuilt(NEW, pods, policy=RecoveryPolicy.NONE)[0] == []


def test_none_does_not_rebuild_the_peers_of_a_pod_that_vanished():
    assert rebuilt(PAIR, [pod(0, 1, of=PAIR)], policy=RecoveryPolicy.NONE)[0] == []


def test_the_peers_of_a_pod_that_somebody_deleted_are_rebuilt():
    pods = [pod(0, 0, of=PAIR, delete_by=NOW), pod(0, 1, of=PAIR)]
    assert rebuilt(PAIR, pods)[0] == ["m-0-leader-0-1"]


def test_what_is_going_already_is_not_rebuilt_again():
    pods = [leaving(one, Scope.UNIT, Cause.RECOVERY) for one in BROKEN_PAIR[:2]]
    assert rebuilt(PAIR, pods)[0] == []


# ---------------------------------------------------------------------- when


def test_a_restart_gets_its_grace_period():
    pods = [exited(pod(0, ready=False, ready_changed=ago(10)), seconds_ago=10)]
    grace = timedelta(seconds=30)
    names, _, (wait,) = rebuilt(NEW, pods, restart_grace=grace)
    assert names == []
    assert wait.until == ago(10) + grace
    assert not wait.is_backoff
    assert rebuilt(NEW, pods, restart_grace=timedelta(seconds=10))[0] == ["m-0-leader-0-0"]


def test_a_second_exit_does_not_wind_the_grace_period_back():
    pods = [exited(pod(0, ready=False, ready_changed=ago(40)), seconds_ago=1, restarts=2)]
    assert rebuilt(NEW, pods, restart_grace=timedelta(seconds=30))[0] == ["m-0-leader-0-0"]


def test_what_cannot_heal_gets_no_grace():
    assert rebuilt(PAIR, BROKEN_PAIR, restart_grace=timedelta(hours=1))[0] != []


@pytest.mark.parametrize(("attempts", "seconds"), [(0, 0), (1, 10), (2, 20), (5, 160), (6, 300), (99, 300)])
def test_the_pause_doubles_up_to_its_cap(attempts, seconds):
    assert backoff(attempts, Timing()) == timedelta(seconds=seconds)


def record(attempts, seconds_ago, revision=NEW.revision):
    return RecoveryRecord(
        name="m-0/leader-0", revision=revision, attempts=attempts, last_time=ago(seconds_ago), reason="Error"
    )


FAILED = [pod(0, phase="Failed", ready=False, ready_changed=ago(5))]


def test_a_rebuild_waits_for_its_back_off():
    _, _, (wait,) = rebuilt(NEW, FAILED, recoveries=(record(2, 15),))
    assert wait.is_backoff
    assert wait.until == ago(15) + timedelta(seconds=20)
    _, (rebuild,), _ = rebuilt(NEW, FAILED, recoveries=(record(2, 20),))
    assert rebuild.removal.attempt == 3


def test_at_the_limit_a_target_is_left_alone():
    names, _, (wait,) = rebuilt(NEW, FAILED, recoveries=(record(3, 400),), backoff_limit=3)
    assert names == []
    assert wait.until is None


def test_a_newer_revision_starts_counting_afresh():
    _, (rebuild,), _ = rebuilt(NEW, FAILED, recoveries=(record(3, 1, OLD.revision),), backoff_limit=3)
    assert rebuild.removal.attempt == 1


def test_a_target_that_held_for_long_starts_counting_afresh():
    _, (rebuild,), _ = rebuilt(NEW, FAILED, recoveries=(record(3, 700),), backoff_limit=3)
    assert rebuild.removal.attempt == 1


def test_a_target_that_never_came_up_again_stays_given_up():
    long_broken = [pod(0, phase="Failed", ready=False, ready_changed=ago(6900))]
    names, _, (wait,) = rebuilt(NEW, long_broken, recoveries=(record(3, 7000),), backoff_limit=3)
    assert (names, wait.until) == ([], None)


# ---------------------------------------------------------------------- what the status remembers


def remembered(pods, **given):
    world = seen(infer(**given), pods)
    return [(found.name, found.attempts) for found in records(world, fleet(world.infer, pods), NOW)]


def test_an_attempt_is_recorded_from_the_mark_on_the_pod():
    marked = leaving(pod(0, ready=False), Scope.UNIT, Cause.RECOVERY, attempt=2, reason="Error")
    assert remembered([marked]) == [("m-0/leader-0", 2)]


def test_recording_twice_counts_once():
    marked = leaving(pod(0, ready=False), Scope.UNIT, Cause.RECOVERY, attempt=2, reason="Error")
    assert remembered([marked], recoveries=(record(2, 0),)) == [("m-0/leader-0", 2)]


def test_a_record_is_kept_while_its_target_does_not_serve_and_for_a_while_after():
    assert remembered([pod(0, ready=False)], recoveries=(record(2, 7000),)) == [("m-0/leader-0", 2)]
    assert remembered([pod(0)], recoveries=(record(2, 500),)) == [("m-0/leader-0", 2)]
    assert remembered([pod(0)], recoveries=(record(2, 700),)) == []
