"""A change wakes those who cared for the object as it was and as it is."""

import orjson

from matrixinfer.kube.codec import MANIFESTS, PODS_SLIM
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.kube.sources import mapped, owned_by
from matrixinfer.kube.store import Change, Store


def pod(owner: str, kind: str = "Widget", controller: bool = True) -> dict:
    reference = {"apiVersion": "v1", "kind": kind, "name": owner, "uid": f"u-{owner}", "controller": controller}
    return {"metadata": {"name": "a", "namespace": "n", "ownerReferences": [reference]}}


def test_a_child_wakes_its_controller_owner_of_that_kind_only() -> None:
    source = owned_by(Store(PODS, MANIFESTS), "Widget")
    assert source.woken_by(Change(Key("n", "a"), None, pod("w"))) == {Key("n", "w")}
    assert source.woken_by(Change(Key("n", "a"), None, pod("w", kind="Job"))) == set()
    assert source.woken_by(Change(Key("n", "a"), None, pod("w", controller=False))) == set()
    assert source.woken_by(Change(Key("n", "a"), {"metadata": {"name": "a"}}, None)) == set()


def test_slim_pods_wake_their_owner_too() -> None:
    source = owned_by(Store(PODS, PODS_SLIM), "Widget")
    view = PODS_SLIM.decode(orjson.dumps(pod("w")))
    assert source.woken_by(Change(view.key, view, None)) == {Key("n", "w")}


def test_an_object_that_moves_wakes_both_sides() -> None:
    source = mapped(Store(PODS, MANIFESTS), lambda p: [Key("n", p["metadata"]["ownerReferences"][0]["name"])])
    assert source.woken_by(Change(Key("n", "a"), pod("old"), pod("new"))) == {Key("n", "old"), Key("n", "new")}
