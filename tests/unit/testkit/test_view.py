"""A view lags kind by kind and catches up by as much as it is told."""

from matrixinfer.kube.codec import PODS_SLIM
from matrixinfer.kube.resource import CONFIG_MAPS, PODS, Key, Resource
from matrixinfer.testkit import builders
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.view import View


def test_a_new_view_has_seen_everything() -> None:
    api = MemoryApi()
    api.create(PODS, builders.pod("a"))
    view = View(api)
    assert [pod.name for pod in view.watch(PODS, project=PODS_SLIM).values()] == ["a"]
    assert view.is_fresh


def test_kinds_lag_on_their_own() -> None:
    api = MemoryApi()
    view = View(api)
    pods, maps = view.watch(PODS), view.watch(CONFIG_MAPS)
    api.create(PODS, builders.pod("a"))
    api.create(PODS, builders.pod("b"))
    api.create(CONFIG_MAPS, {"metadata": {"name": "m"}})
    assert (view.lag(PODS), view.lag(CONFIG_MAPS), view.is_fresh) == (2, 1, False)
    view.catch_up(PODS, 1)
    assert (pods.keys(), maps.keys()) == ((Key("default", "a"),), ())
    api.delete(PODS, Key("default", "a"))
    view.catch_up_all()
    assert (pods.keys(), maps.keys()) == ((Key("default", "b"),), (Key("default", "m"),))
    assert view.is_fresh
    assert pods.high_water == api.resource_version


def test_selectors_apply_to_what_changes_later() -> None:
    api = MemoryApi()
    view = View(api)
    chosen = view.watch(PODS, label_selector="app=a", namespace="default")
    api.create(PODS, builders.pod("a", labels={"app": "a"}))
    api.create(PODS, builders.pod("b", labels={"app": "b"}))
    view.catch_up(PODS)
    assert chosen.keys() == (Key("default", "a"),)
    api.merge_patch(PODS, Key("default", "a"), {"metadata": {"labels": {"app": "b"}}})
    view.catch_up(PODS)
    assert chosen.keys() == ()


def test_a_kind_that_is_not_served_is_empty_when_optional() -> None:
    groups = Resource("scheduling.example.org", "v1", "podgroups", "PodGroup")
    view = View(MemoryApi())
    store = view.watch(groups, optional=True)
    assert store.synced
    assert store.values() == ()
    view.catch_up_all()
    assert view.is_fresh
