"""What belongs to a ModelInfer, which nodes are lost, and which changes matter."""

import orjson
import pytest
from tests.unit.infer_controller.worlds import KEY, NEW, NOW, ago, changed, infer, leaving, pod, service, stored

from matrixinfer.infer_controller import projections
from matrixinfer.infer_controller.fleet import Cause, Scope, Timing
from matrixinfer.infer_controller.observe import LostNodes, Observer, PodSource, Stores, Waker, infer_key
from matrixinfer.kube.resource import NODES, Key
from matrixinfer.kube.store import Change, Store


class Source:
    """Stores that nobody fills but the test."""

    def watch(self, resource, *, project, label_selector="", indexes=None):
        return Store(resource, project, indexes=indexes, label_selector=label_selector)


@pytest.fixture
def stores():
    return Stores.declared(Source())


def observer(stores):
    return Observer(stores, lost_nodes=dict, in_flight=dict, timing=Timing(), history_limit=10)


def node(name, ready=True, since=None):
    return projections.Node(name, f"uid-{name}", "1", ready, since)


def test_a_modelinfer_that_is_gone_is_none(stores):
    assert observer(stores).observe(KEY) is None


def test_children_are_those_whose_controller_has_the_same_uid(stores):
    """A namesake that was deleted a moment ago still has pods; they are not ours."""
    stores.infers.put(infer())
    stores.pods.put(pod(0))
    stores.pods.put(changed(pod(1), owner_uid="uid-of-a-namesake"))
    stores.services.put(service(0))
    stores.revisions.put(stored(NEW))
    seen = observer(stores).observe(KEY)
    assert seen is not None
    assert [one.name for one in seen.pods] == ["m-0-leader-0-0"]
    assert (len(seen.services), len(seen.revisions)) == (1, 1)


def lost_of(stores, *nodes, woken=lambda _key: None):
    lost = LostNodes(stores.nodes, stores.pods, woken)
    for one in nodes:
        stores.nodes.put(one)
    return lost


def test_a_node_that_does_not_answer_is_lost_and_found_again(stores):
    lost = lost_of(stores, node("a"), node("b"), node("node-0", ready=False, since=ago(60)))
    assert lost.believed == {"node-0": ago(60)}
    stores.nodes.put(node("node-0"))
    assert lost.believed == {}


def test_a_node_that_is_deleted_is_no_longer_lost(stores):
    lost = lost_of(stores, node("a"), node("b"), node("node-0", ready=False, since=ago(60)))
    stores.nodes.remove(Key("", "node-0"))
    assert lost.believed == {}


def test_when_half_of_the_nodes_seem_lost_it_is_we_who_are_cut_off(stores):
    assert lost_of(stores, node("a"), node("b", ready=False, since=ago(60))).believed == {}
    alone: Store[projections.Node] = Store(NODES, projections.NODES)
    lost = LostNodes(alone, stores.pods, lambda _key: None)
    alone.put(node("only", ready=False, since=ago(60)))
    assert lost.believed == {}


def test_a_node_wakes_the_modelinfers_of_its_pods_when_its_readiness_changes(stores):
    woken = []
    stores.pods.put(pod(0))
    lost_of(stores, node("node-0"), woken=woken.append)
    assert woken == []
    stores.nodes.put(node("node-0", ready=False, since=ago(1)))
    stores.nodes.put(node("node-0", ready=False, since=ago(1)))
    assert woken == [KEY]


def test_a_node_that_returns_wakes_those_whose_loss_is_believed_from_then_on(stores):
    """With two of four lost nothing is believed; when one returns, the other is lost indeed."""
    woken = []
    stores.pods.put(pod(0))
    gone = [node("node-0", ready=False, since=ago(60)), node("b", ready=False, since=ago(60))]
    lost = lost_of(stores, *gone, node("c"), node("d"), woken=woken.append)
    assert lost.believed == {}
    woken.clear()
    stores.nodes.put(node("b"))
    assert lost.believed == {"node-0": ago(60)}
    assert woken == [KEY]


def woken(stores, old, new):
    return PodSource(stores.pods, infer_key).woken_by(Change(pod().key, old, new))


@pytest.mark.parametrize(
    "change",
    [
        {"ready": False},
        {"phase": "Failed"},
        {"delete_by": NOW},
        {"restarts": 1},
        {"waiting": "ImagePullBackOff"},
        {"unscheduled": "no node"},
        {"deletion_cost": 1},
        {"owner_uid": "other"},
    ],
)
def test_changes_that_a_plan_could_answer_wake_the_modelinfer(stores, change):
    assert woken(stores, pod(), changed(pod(), resource_version="2", **change)) == {KEY}


def test_a_new_a_marked_and_a_vanished_pod_wake_the_modelinfer(stores):
    assert woken(stores, None, pod()) == {KEY}
    assert woken(stores, pod(), None) == {KEY}
    assert woken(stores, pod(), leaving(pod(), Scope.UNIT, Cause.RECOVERY)) == {KEY}


@pytest.mark.parametrize("change", [{"node": "node-1"}, {"address": "10.0.0.9"}, {}])
def test_changes_that_no_plan_depends_on_wake_nobody(stores, change):
    assert woken(stores, pod(), changed(pod(), resource_version="2", **change)) == set()


def test_a_pod_that_is_none_of_ours_wakes_nobody(stores):
    assert woken(stores, None, changed(pod(), infer="")) == set()


def test_a_waker_without_a_controller_drops_keys():
    waker, heard = Waker(), []
    waker(KEY)
    waker.target = heard.append
    waker(KEY)
    assert heard == [KEY]


def test_a_decoded_modelinfer_is_found_under_its_key(stores):
    raw = orjson.dumps({"metadata": {"name": "m", "namespace": "default", "uid": "u"}, "spec": {}})
    stores.infers.put(projections.INFERS.decode(raw))
    found = observer(stores).observe(KEY)
    assert found is not None
    assert found.infer.problem
