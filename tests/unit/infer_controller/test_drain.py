"""Mark, wait, delete: what is removed on purpose goes without cutting requests, and without being forgotten."""

from datetime import timedelta

import pytest
from tests.unit.infer_controller.worlds import NEW, NOW, ago, fleet, infer, leaving, pod, role, seen, template

from matrixinfer.api.v1alpha1.modelinfer import RecoveryRecord
from matrixinfer.infer_controller.drain import deletions, marks, unfinished
from matrixinfer.infer_controller.fleet import Cause, Removal, Scope
from matrixinfer.kube.plan import Delete

PAIR = template(role(workers=1))


def gone(pods, **given):
    world = seen(given.pop("of", None), pods, **given)
    return deletions(world, fleet(world.infer, pods, **given), NOW)


def names(found):
    return [step.key.name for step in found.steps]


def test_a_mark_says_when_and_why_and_reads_back():
    removal = Removal(Scope.UNIT, Cause.RECOVERY, NOW, 3, "OOMKilled")
    assert Removal.read(removal.annotations) == removal
    assert removal.annotations["modelinfer.matrixinfer.ai/removal"] == "unit/Recovery/3/OOMKilled"


@pytest.mark.parametrize("text", ["", "group", "group/Nonsense", "unit/Recovery/x/y", "everything/Rollout"])
def test_an_annotation_that_makes_no_sense_is_no_mark(text):
    annotations = {
        "modelinfer.matrixinfer.ai/removal": text,
        "modelinfer.matrixinfer.ai/draining-since": "2026-01-01T00:00:00Z",
    }
    assert Removal.read(annotations) is None


def test_a_pod_is_marked_once_and_a_wider_removal_replaces_a_narrower():
    group = Removal(Scope.GROUP, Cause.SCALE_DOWN, NOW)
    unit = Removal(Scope.UNIT, Cause.RECOVERY, NOW, 1, "Error")
    assert len(marks([pod(0)], group)) == 1
    assert marks([leaving(pod(0))], group) == ()
    assert marks([leaving(pod(0))], unit) == ()
    assert len(marks([leaving(pod(0), Scope.UNIT)], group)) == 1


def test_a_pod_that_is_being_deleted_needs_no_mark():
    assert marks([pod(0, delete_by=NOW)], Removal(Scope.GROUP, Cause.SCALE_DOWN, NOW)) == ()


def test_a_serving_pod_of_unknown_load_goes_when_it_has_settled():
    assert names(gone([leaving(pod(0), since=ago(4))])) == []
    assert gone([leaving(pod(0), since=ago(4))]).moments == (NOW + timedelta(seconds=1),)
    assert names(gone([leaving(pod(0), since=ago(5))])) == ["m-0-leader-0-0"]


def test_an_idle_pod_goes_soon_and_a_busy_one_at_the_deadline():
    uid = pod(0).uid
    assert names(gone([leaving(pod(0), since=ago(1))], in_flight={uid: 0})) == ["m-0-leader-0-0"]
    assert names(gone([leaving(pod(0), since=ago(59))], in_flight={uid: 2})) == []
    late = gone([leaving(pod(0), since=ago(60))], in_flight={uid: 2})
    assert names(late) == ["m-0-leader-0-0"]
    assert [one.name for one in late.cut] == ["m-0-leader-0-0"], "what was cut is told"


def test_a_pod_that_does_not_serve_goes_at_once():
    assert names(gone([leaving(pod(0, ready=False))])) == ["m-0-leader-0-0"]


def test_a_unit_goes_as_one():
    pods = [leaving(pod(0, 0, of=PAIR), since=ago(4)), leaving(pod(0, 1, of=PAIR, ready=False), since=ago(4))]
    assert names(gone(pods, of=infer(PAIR))) == ["m-0-leader-0-0", "m-0-leader-0-1"]


def test_every_deletion_names_the_pod_by_uid():
    (step,) = gone([leaving(pod(0, ready=False))]).steps
    assert step == Delete(step.resource, step.key, pod(0).uid)


def rebuild(**given):
    return leaving(pod(0, ready=False), Scope.UNIT, Cause.RECOVERY, attempt=2, reason="Error", **given)


def test_a_rebuild_deletes_nothing_before_its_attempt_is_recorded():
    assert names(gone([rebuild()])) == []
    recorded = RecoveryRecord(name="m-0/leader-0", revision=NEW.revision, attempts=2, last_time=NOW)
    assert names(gone([rebuild()], of=infer(recoveries=(recorded,)))) == ["m-0-leader-0-0"]


def test_an_attempt_that_cannot_be_recorded_does_not_stop_the_rebuild_for_ever():
    assert names(gone([rebuild(since=ago(60))])) == ["m-0-leader-0-0"]


def test_a_removal_that_was_marked_on_some_pods_is_completed():
    """A controller died between two marks."""
    pods = [leaving(pod(0, 0, of=PAIR), Scope.UNIT), pod(0, 1, of=PAIR)]
    ((found, removal),) = unfinished(fleet(infer(PAIR), pods))
    assert [step.key.name for step in marks(found, removal)] == ["m-0-leader-0-1"]


def test_a_pod_on_a_lost_node_is_taken_away_when_its_kubelet_cannot():
    dying = leaving(pod(0, delete_by=ago(60)))
    (step,) = gone([dying], lost_nodes={"node-0": ago(300)}).steps
    assert (step.key.name, step.grace_seconds) == ("m-0-leader-0-0", 0)
    assert gone([dying]).steps == (), "a slow kubelet is left to its work"
    fresh = leaving(pod(0, delete_by=ago(59)))
    assert gone([fresh], lost_nodes={"node-0": ago(300)}).moments == (NOW + timedelta(seconds=1),)
