"""A key waits for its own writes to show in the cache, but not for ever."""

from typing import Any

from matrixinfer.kube.codec import MANIFESTS
from matrixinfer.kube.expectations import Expectations, Written
from matrixinfer.kube.resource import PODS, Key, Resource
from matrixinfer.kube.store import Store

OWNER, POD = Key("n", "owner"), Key("n", "a")


def pod(version: int, uid: str = "u", **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a", "namespace": "n", "uid": uid, "resourceVersion": str(version), **meta}}


class Fixture:
    def __init__(self, **store: Any) -> None:
        self.now = 0.0
        self.store: Store[Any] = Store(PODS, MANIFESTS, **store)
        self.expectations = Expectations(
            lambda resource: [self.store] if resource == PODS else [],
            timeout_seconds=5.0,
            monotonic=lambda: self.now,
        )

    def wait(self) -> float:
        return self.expectations.wait_seconds(OWNER)


def test_a_created_object_is_awaited_until_the_cache_has_it() -> None:
    fixture = Fixture()
    fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", "7")])
    assert fixture.wait() == 5.0
    fixture.store.put(pod(6))
    assert fixture.wait() > 0, "an older version is not ours"
    fixture.store.put(pod(7))
    assert fixture.wait() == 0
    assert not fixture.expectations.gave_up(OWNER)


def test_a_later_event_or_bookmark_of_the_same_watch_proves_that_ours_was_seen() -> None:
    fixture = Fixture()
    fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", "7")])
    fixture.store.advance("8")
    assert fixture.wait() == 0


def test_a_write_that_the_cache_saw_before_the_answer_came_is_not_awaited() -> None:
    fixture = Fixture()
    fixture.store.put(pod(7))
    fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", "7")])
    assert fixture.wait() == 0


def test_a_deletion_is_seen_when_the_object_is_gone_replaced_or_terminating() -> None:
    for after in ("gone", "replaced", "terminating"):
        fixture = Fixture()
        fixture.store.put(pod(7))
        fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", deleted=True)])
        assert fixture.wait() > 0
        if after == "gone":
            fixture.store.remove(POD)
        elif after == "replaced":
            fixture.store.put(pod(9, uid="other"))
        else:
            fixture.store.put(pod(9, deletionTimestamp="2026-01-01T00:00:00Z"))
        assert fixture.wait() == 0, after


def test_the_wait_is_bounded_and_reported() -> None:
    fixture = Fixture()
    fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", "7")])
    fixture.now = 5.0
    assert fixture.wait() == 0
    assert fixture.expectations.gave_up(OWNER)
    assert not fixture.expectations.gave_up(OWNER)


def test_writes_that_no_watch_would_show_are_not_awaited() -> None:
    fixture = Fixture(label_selector="app=x")
    other = Resource("", "v1", "services", "Service")
    fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", "7", {"app": "y"}), Written(other, POD, "u", "8")])
    assert fixture.wait() == 0
    fixture.expectations.expect(OWNER, [Written(PODS, POD, "u", "7", {"app": "x"})])
    assert fixture.wait() > 0
