"""Projections: slim pods, typed objects, plain manifests."""

import tracemalloc
from datetime import UTC, datetime

import msgspec
import orjson
import pytest

from matrixinfer.kube.codec import MANIFESTS, PODS_SLIM, Meta, PodView, struct
from matrixinfer.kube.resource import Key


def pod_bytes(number: int = 0) -> bytes:
    """A pod as a real API server stores it, managedFields and all; about 5 kB."""
    return orjson.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"infer-{number // 4}-0-prefill-0-{number % 4}",
                "namespace": "models",
                "uid": f"8c4a3d5e-0000-4000-8000-{number:012d}",
                "resourceVersion": str(1000 + number),
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {f"modelinfer.example/label-{i}": f"value-{number // 4}" for i in range(8)},
                "annotations": {"example/revision": "v1-abcdef"},
                "ownerReferences": [
                    {
                        "apiVersion": "example.org/v1",
                        "kind": "Widget",
                        "name": f"infer-{number // 4}",
                        "uid": f"owner-{number // 4}",
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
                "managedFields": [{"manager": "kubelet", "fieldsV1": {f"f:field-{i}": {"f:x": {}} for i in range(60)}}],
            },
            "spec": {
                "nodeName": f"node-{number % 50}",
                "containers": [
                    {"name": "engine", "image": "i", "env": [{"name": f"E{i}", "value": "v"} for i in range(40)]}
                ],
            },
            "status": {
                "phase": "Running",
                "podIP": f"10.0.{number // 250}.{number % 250}",
                "startTime": "2026-01-02T03:04:06Z",
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-02T03:04:06Z"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:05:00Z"},
                ],
                "containerStatuses": [
                    {
                        "name": "engine",
                        "ready": True,
                        "restartCount": 2,
                        "state": {"running": {"startedAt": "2026-01-02T03:04:50Z"}},
                        "lastState": {
                            "terminated": {
                                "reason": "OOMKilled",
                                "exitCode": 137,
                                "finishedAt": "2026-01-02T03:04:49Z",
                            }
                        },
                    }
                ],
            },
        }
    )


def test_a_pod_view_holds_what_controllers_ask_for() -> None:
    pod = PODS_SLIM.decode(pod_bytes(5))
    assert isinstance(pod, PodView)
    assert pod.key == Key("models", "infer-1-0-prefill-0-1")
    assert pod.owner_uids == ("owner-1",)
    assert pod.ready
    assert pod.ready_since == datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
    assert pod.pod_ip == "10.0.0.5"
    assert pod.node_name == "node-5"
    assert pod.scheduled
    assert not pod.deleting
    assert pod.restart_count == 2
    (engine,) = pod.containers
    assert engine.running
    assert (engine.last_terminated_reason, engine.last_exit_code) == ("OOMKilled", 137)
    identity = PODS_SLIM.identify(pod)
    assert (identity.uid, identity.resource_version, identity.controller_uid) == (pod.uid, "1005", "owner-1")


def test_a_bare_pod_decodes() -> None:
    pod = PODS_SLIM.decode(b'{"metadata":{"name":"a","namespace":"n"}}')
    assert (pod.ready, pod.phase, pod.containers, pod.owner_uids) == (False, "", (), ())


def test_an_unschedulable_pod_says_why() -> None:
    raw = {
        "metadata": {"name": "a"},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]},
    }
    pod = PODS_SLIM.decode(orjson.dumps(raw))
    assert (pod.scheduled, pod.unscheduled_message) == (False, "0/3 nodes")


def test_waiting_and_terminated_reasons_are_kept() -> None:
    raw = {
        "metadata": {"name": "a"},
        "status": {
            "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "m"}}}],
            "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"reason": "Error", "exitCode": 3, "message": "why"}}}
            ],
        },
    }
    pod = PODS_SLIM.decode(orjson.dumps(raw))
    assert pod.containers[0].waiting_reason == "ImagePullBackOff"
    assert (pod.init_containers[0].terminated_reason, pod.init_containers[0].exit_code) == ("Error", 3)
    assert pod.init_containers[0].terminated_message == "why"


def test_a_cached_pod_costs_a_few_kibibytes() -> None:
    raws = [pod_bytes(number) for number in range(400)]
    PODS_SLIM.decode(raws[0])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        pods = [PODS_SLIM.decode(raw) for raw in raws]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(pods) < 3.5 * 1024


def test_a_manifest_loses_its_managed_fields() -> None:
    manifest = MANIFESTS.decode(pod_bytes())
    assert "managedFields" not in manifest["metadata"]  # type: ignore[operator]
    assert MANIFESTS.identify(manifest).controller_uid == "owner-0"


class Labelled(msgspec.Struct):
    metadata: Meta


def test_a_struct_of_your_own_needs_only_metadata() -> None:
    projection = struct(Labelled)
    value = projection.decode(pod_bytes(3))
    assert projection.identify(value).key == Key("models", "infer-0-0-prefill-0-3")
    assert value.metadata.owner_references[0].kind == "Widget"


def test_a_broken_object_raises_instead_of_becoming_something_else() -> None:
    with pytest.raises(msgspec.ValidationError):
        PODS_SLIM.decode(b'{"metadata":{"name":7}}')
