"""Stores: indexes follow changes, a relist tells only differences, selectors match like the server's."""

import pytest

from matrixinfer.kube.codec import MANIFESTS
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.kube.store import Change, Store, labels_match


def pod(name: str, version: int, app: str = "x", uid: str = "") -> dict:
    return {
        "metadata": {
            "name": name,
            "namespace": "n",
            "uid": uid or f"u-{name}",
            "resourceVersion": str(version),
            "labels": {"app": app},
        }
    }


def make() -> Store:
    return Store(PODS, MANIFESTS, indexes={"app": lambda p: [p["metadata"]["labels"]["app"]]})


def names(found: object) -> list[str]:
    return sorted(p["metadata"]["name"] for p in found)  # type: ignore[attr-defined]


def test_an_index_follows_an_object_that_moves() -> None:
    store = make()
    store.put(pod("a", 1))
    store.put(pod("b", 2))
    store.put(pod("a", 3, app="y"))
    assert names(store.by_index("app", "x")) == ["b"]
    assert names(store.by_index("app", "y")) == ["a"]
    store.remove(Key("n", "a"))
    assert store.by_index("app", "y") == ()
    with pytest.raises(KeyError):
        store.by_index("absent", "x")


def test_a_relist_is_told_as_the_difference() -> None:
    store = make()
    store.replace([pod("same", 1), pod("changed", 2), pod("gone", 3), pod("reborn", 4)], "10")
    told: list[Change] = []
    store.subscribe(told.append)
    told.clear()
    store.replace([pod("same", 1), pod("changed", 12), pod("new", 13), pod("reborn", 4, uid="other")], "20")
    kinds = {change.key.name: (change.old is not None, change.new is not None) for change in told}
    assert kinds == {"gone": (True, False), "changed": (True, True), "new": (False, True), "reborn": (True, True)}
    assert store.high_water == 20


def test_a_relist_keeps_what_could_not_be_decoded() -> None:
    store = make()
    store.replace([pod("a", 1), pod("b", 2)], "5")
    store.replace([pod("a", 1)], "6", keep=[Key("n", "b")])
    assert names(store.values()) == ["a", "b"]


def test_a_new_listener_hears_of_what_is_there() -> None:
    store = make()
    store.put(pod("a", 1))
    told: list[Change] = []
    store.subscribe(told.append)
    assert [(c.key.name, c.old) for c in told] == [("a", None)]


def test_a_listener_that_left_hears_no_more() -> None:
    store = make()
    told: list[Change] = []
    unsubscribe = store.subscribe(told.append)
    unsubscribe()
    store.put(pod("a", 1))
    assert told == []


def test_a_listener_that_ends_its_subscription_hears_no_more() -> None:
    store = make()
    told: list[Change] = []
    unsubscribe = store.subscribe(told.append)
    unsubscribe()
    store.put(pod("a", 1))
    assert told == []


def test_a_listener_may_end_its_subscription_while_it_is_told() -> None:
    store = make()
    told: list[str] = []

    def once(change: Change) -> None:
        told.append("once")
        unsubscribe()

    unsubscribe = store.subscribe(once)
    store.subscribe(lambda change: told.append("always"))
    store.put(pod("a", 1))
    store.put(pod("b", 2))
    assert told == ["once", "always", "always"]


def test_a_server_restored_from_a_backup_lowers_the_high_water() -> None:
    store = make()
    store.replace([pod("a", 1)], "900")
    store.replace([pod("a", 1)], "100")
    assert store.high_water == 100


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("a=1", True),
        ("a==1", True),
        ("a=2", False),
        ("a!=2", True),
        ("missing!=2", True),
        ("a", True),
        ("missing", False),
        ("!missing", True),
        ("!a", False),
        ("a in (1,2)", True),
        ("a in (2, 3)", False),
        ("a notin (2)", True),
        ("missing notin (2)", True),
        ("a=1,b=2", True),
        ("a in (1,5),b notin (3,4),c", False),
    ],
)
def test_selectors_mean_what_the_server_means(selector: str, matches: bool) -> None:
    assert labels_match(selector, {"a": "1", "b": "2"}) is matches


def test_a_store_covers_its_namespace_and_selector_only() -> None:
    store: Store = Store(PODS, MANIFESTS, namespace="n", label_selector="app=x")
    assert store.covers("n", {"app": "x"})
    assert not store.covers("m", {"app": "x"})
    assert not store.covers("n", {})
