"""Repeats are counted, look-alikes combined, floods cut off, and nothing waits for events."""

from datetime import UTC, datetime, timedelta
from typing import Any

from matrixinfer.kube import metrics
from matrixinfer.kube.events import Correlator, EventRecorder, ObjectReference
from matrixinfer.kube.plan import EventType, Note
from matrixinfer.kube.resource import EVENTS, NODES, PODS, Key

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POD = ObjectReference(PODS, Key("default", "a"), "uid-a", "7")
NOTE = Note("Created", "3 pods were created")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_repeat_raises_the_count_of_one_series() -> None:
    correlator = Correlator()
    first = correlator.correlate(POD, NOTE, at(0))
    again = correlator.correlate(POD, NOTE, at(5))
    assert first is again
    assert again is not None
    assert (again.count, again.first, again.last) == (2, at(0), at(5))


def test_another_object_reason_or_message_is_another_series() -> None:
    correlator = Correlator()
    other = ObjectReference(PODS, Key("default", "b"), "uid-b")
    found = [
        correlator.correlate(POD, NOTE, at(0)),
        correlator.correlate(other, NOTE, at(0)),
        correlator.correlate(POD, Note("Created", "4 pods were created"), at(0)),
        correlator.correlate(POD, Note("Created", "3 pods were created", EventType.WARNING), at(0)),
    ]
    assert len({series.name for series in found if series}) == 4


def test_many_variants_of_one_reason_are_combined() -> None:
    correlator = Correlator(burst=100)
    found = [correlator.correlate(POD, Note("Failed", f"pod {i} failed"), at(i)) for i in range(30)]
    assert len({series.name for series in found if series}) == 11
    last = found[-1]
    assert last is not None
    assert last.note.message == "(combined from similar events): pod 29 failed"
    assert last.count == 20


def test_one_object_cannot_flood_but_recovers() -> None:
    correlator = Correlator(burst=25, refill_seconds=10)
    taken = [correlator.correlate(POD, NOTE, at(0)) is not None for _ in range(40)]
    assert taken.count(True) == 25
    assert correlator.correlate(POD, NOTE, at(9)) is None
    assert correlator.correlate(POD, NOTE, at(11)) is not None
    assert correlator.correlate(ObjectReference(PODS, Key("default", "b"), "uid-b"), NOTE, at(0)) is not None


def test_memory_is_bounded() -> None:
    correlator = Correlator(memory=50)
    for number in range(200):
        correlator.correlate(ObjectReference(PODS, Key("default", "x"), f"uid-{number}"), NOTE, at(0))
    assert len(correlator._series) == len(correlator._buckets) == len(correlator._alike) == 50


async def test_an_event_is_created_once_and_then_counted(memory_client: Any, api: Any) -> None:
    moment = [at(0)]
    recorder = EventRecorder(memory_client, "tester", instance="tester-1", now=lambda: moment[0])
    recorder.record(POD, NOTE)
    await recorder.flush()
    moment[0] = at(60)
    for _ in range(3):
        recorder.record(POD, NOTE)
    await recorder.flush()
    (event,) = api.list(EVENTS, namespace="default")
    assert memory_client.calls == ["create", "merge_patch"], "three repeats that wait together are one write"
    assert event["count"] == 4
    assert (event["firstTimestamp"], event["lastTimestamp"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:05:05Z")
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "default",
        "name": "a",
        "uid": "uid-a",
        "resourceVersion": "7",
    }
    assert (event["reason"], event["type"], event["source"]["component"]) == ("Created", "Normal", "tester")


async def test_an_event_that_the_server_expired_is_made_anew(memory_client: Any, api: Any) -> None:
    moment = [at(0)]
    recorder = EventRecorder(memory_client, "tester", now=lambda: moment[0])
    recorder.record(POD, NOTE)
    await recorder.flush()
    (event,) = api.list(EVENTS, namespace="default")
    api.delete(EVENTS, Key("default", event["metadata"]["name"]))
    moment[0] = at(7200)
    recorder.record(POD, NOTE)
    await recorder.flush()
    assert [e["count"] for e in api.list(EVENTS, namespace="default")] == [2]


async def test_events_of_cluster_scoped_objects_go_to_default(memory_client: Any, api: Any) -> None:
    recorder = EventRecorder(memory_client, "tester", now=lambda: START)
    recorder.record(ObjectReference(NODES, Key("", "node-1"), "uid-n"), NOTE)
    await recorder.flush()
    (event,) = api.list(EVENTS, namespace="default")
    assert "namespace" not in event["involvedObject"]


async def test_an_event_that_cannot_be_sent_is_dropped_and_counted(memory_client: Any, api: Any) -> None:
    dropped = metrics.EVENTS_DROPPED.labels("error")
    before = dropped._value.get()
    recorder = EventRecorder(memory_client, "tester", now=lambda: START)
    memory_client.refusing = True
    recorder.record(POD, NOTE)
    await recorder.flush()
    assert dropped._value.get() == before + 1
    memory_client.refusing = False
    recorder.record(POD, NOTE)
    await recorder.flush()
    assert [e["count"] for e in api.list(EVENTS, namespace="default")] == [2], "the next one is created, not patched"


async def test_the_queue_of_unsent_events_is_bounded(memory_client: Any, api: Any) -> None:
    recorder = EventRecorder(memory_client, "tester", limit=3, now=lambda: START)
    for number in range(10):
        recorder.record(ObjectReference(PODS, Key("default", f"p{number}"), f"uid-{number}"), NOTE)
    await recorder.flush()
    assert len(api.list(EVENTS, namespace="default")) == 3
