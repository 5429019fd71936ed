"""What the conformance suite cannot show on the real server: forks, compaction, namespaces, our CRDs."""

from pathlib import Path
from typing import Any

import pytest

from matrixinfer.kube.resource import CONFIG_MAPS, CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES, PODS, Key, Resource
from matrixinfer.testkit import builders
from matrixinfer.testkit.clock import ManualClock
from matrixinfer.testkit.memory import MemoryApi, StatusError
from matrixinfer.testkit.structural import Schema, defaulted, pruned

CRDS = Path(__file__).parents[3] / "crds"
KEY = Key("default", "a")


def config_map(name: str = "a", namespace: str = "default", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


def test_our_own_crds_are_served() -> None:
    api = MemoryApi()
    served = {resource.kind for resource in api.register_crds(CRDS)}
    assert served == {
        "Model",
        "ModelVersion",
        "ModelInfer",
        "ModelServer",
        "ModelRoute",
        "AutoscalingPolicy",
        "AutoscalingPolicyBinding",
    }
    infers = Resource("workload.matrixinfer.ai", "v1alpha1", "modelinfers", "ModelInfer")
    assert api.kind(infers).scale is not None
    with pytest.raises(StatusError, match="spec"):
        api.create(infers, {"metadata": {"name": "a"}})


def test_a_deleted_crd_takes_its_objects_along() -> None:
    api = MemoryApi()
    api.register_crds(Path(__file__).parents[2] / "conformance" / "gadgets.yaml")
    gadgets = Resource("conformance.example.org", "v1", "gadgets", "Gadget")
    api.create(gadgets, {"metadata": {"name": "a"}, "spec": {"size": 1}})
    api.delete(CUSTOM_RESOURCE_DEFINITIONS, Key("", "gadgets.conformance.example.org"))
    with pytest.raises(StatusError) as gone:
        api.list(gadgets)
    assert gone.value.code == 404


def test_a_fork_goes_its_own_way() -> None:
    api = MemoryApi()
    api.create(CONFIG_MAPS, config_map())
    twin = api.fork()
    twin.merge_patch(CONFIG_MAPS, KEY, {"data": {"k": "v"}})
    twin.create(CONFIG_MAPS, config_map("b"))
    assert api.get(CONFIG_MAPS, KEY)["data"] == {}
    assert api.find(CONFIG_MAPS, Key("default", "b")) is None
    assert len(api.writes) == 1


def test_what_a_caller_edits_is_not_the_store() -> None:
    api = MemoryApi()
    manifest = config_map(k="v")
    api.create(CONFIG_MAPS, manifest)["data"]["k"] = "changed"
    manifest["data"]["k"] = "changed"
    api.get(CONFIG_MAPS, KEY)["data"]["k"] = "changed"
    api.list(CONFIG_MAPS)[0]["data"]["k"] = "changed"
    assert api.get(CONFIG_MAPS, KEY)["data"] == {"k": "v"}


def test_a_compacted_history_is_gone() -> None:
    api = MemoryApi()
    before = api.resource_version
    api.create(CONFIG_MAPS, config_map())
    page = api.page(CONFIG_MAPS, limit=1)
    api.create(CONFIG_MAPS, config_map("b"))
    token = api.page(CONFIG_MAPS, limit=1).next_token
    api.compact()
    with pytest.raises(StatusError) as old:
        api.changes(CONFIG_MAPS, before)
    with pytest.raises(StatusError) as stale:
        api.page(CONFIG_MAPS, limit=1, token=token)
    assert (old.value.code, stale.value.code) == (410, 410)
    assert not page.next_token
    assert api.changes(CONFIG_MAPS, api.resource_version) == []


def test_a_deleted_namespace_empties_itself_and_takes_nothing_new() -> None:
    api = MemoryApi()
    api.create(NAMESPACES, {"metadata": {"name": "n"}})
    held = config_map("held", "n")
    held["metadata"]["finalizers"] = ["example.org/hold"]
    api.create(CONFIG_MAPS, held)
    api.create(CONFIG_MAPS, config_map("free", "n"))
    api.delete(NAMESPACES, Key("", "n"))
    assert [item["metadata"]["name"] for item in api.list(CONFIG_MAPS, "n")] == ["held"]
    with pytest.raises(StatusError) as refused:
        api.create(CONFIG_MAPS, config_map("late", "n"))
    assert refused.value.code == 403
    api.merge_patch(CONFIG_MAPS, Key("n", "held"), {"metadata": {"finalizers": []}})
    api.collect_garbage()
    assert api.find(NAMESPACES, Key("", "n")) is None


def test_garbage_is_collected_through_generations() -> None:
    api = MemoryApi()
    owner = api.create(CONFIG_MAPS, config_map("owner"))
    child = api.create(
        CONFIG_MAPS, {"metadata": {"name": "child", "ownerReferences": [builders.owner_reference(owner)]}}
    )
    api.create(PODS, builders.pod("grandchild", owner=child))
    api.delete(CONFIG_MAPS, Key("default", "owner"))
    assert api.list(CONFIG_MAPS) == []
    assert api.list(PODS) == []


def test_deletion_times_come_from_the_given_clock() -> None:
    clock = ManualClock()
    api = MemoryApi(now=clock)
    api.create(PODS, builders.pod("a", spec={"nodeName": "n", "terminationGracePeriodSeconds": 60}))
    marked = api.delete(PODS, KEY)
    assert marked["metadata"]["deletionTimestamp"] == "2026-01-01T00:01:00Z"


def test_writes_that_change_nothing_are_counted_but_marked() -> None:
    api = MemoryApi()
    api.apply(CONFIG_MAPS, config_map(k="v"), field_manager="me")
    api.apply(CONFIG_MAPS, config_map(k="v"), field_manager="me")
    assert [(write.verb, write.changed) for write in api.writes] == [("apply", True), ("apply", False)]


@pytest.mark.parametrize(
    ("schema", "value", "stored"),
    [
        ({"properties": {"a": {"default": 1}}}, {}, {"a": 1}),
        ({"properties": {"a": {"default": 1}}}, {"a": 2}, {"a": 2}),
        ({"items": {"properties": {"a": {"default": []}}}}, [{}], [{"a": []}]),
        ({"additionalProperties": {"properties": {"a": {"default": 1}}}}, {"x": {}}, {"x": {"a": 1}}),
    ],
)
def test_defaults_fill_every_level_that_is_there(schema: Schema, value: Any, stored: Any) -> None:
    assert defaulted(value, schema) == stored


def test_pruning_says_what_it_dropped() -> None:
    schema = {"properties": {"spec": {"properties": {"a": {}, "l": {"items": {"properties": {}}}}}}}
    unknown: list[str] = []
    body = {"kind": "X", "spec": {"a": 1, "b": 2, "l": [{"c": 3}]}}
    assert pruned(body, schema, "", unknown) == {"kind": "X", "spec": {"a": 1, "l": [{}]}}
    assert unknown == ["spec.b", "spec.l[0].c"]
