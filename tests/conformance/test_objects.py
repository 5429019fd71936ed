"""Create, read, update, delete: metadata, preconditions, finalizers, subresources."""

from typing import Any

import pytest

from .conftest import Wire, config_map, gadget, pod


async def test_a_create_fills_in_what_only_the_server_knows(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget(uid="mine", generation=7, creationTimestamp="2001-01-01T00:00:00Z"))
    assert made.code == 201
    assert made.meta["generation"] == 1
    assert made.meta["uid"] != "mine"
    assert made.meta["creationTimestamp"] > "2020"
    assert made.version.isdigit()
    assert (await wire.get("gadgets/a")).body == made.body


async def test_a_name_is_taken_once(wire: Wire) -> None:
    await wire.post("configmaps", config_map())
    again = await wire.post("configmaps", config_map())
    assert again.refusal == (409, "AlreadyExists")
    assert again.body["details"] == {"name": "a", "kind": "configmaps"}
    assert again.body["status"] == "Failure"


async def test_what_is_not_there_is_not_found(wire: Wire) -> None:
    answer = await wire.get("gadgets/none")
    assert answer.refusal == (404, "NotFound")
    assert answer.body["details"] == {"name": "none", "group": "conformance.example.org", "kind": "gadgets"}
    assert (await wire.put("gadgets/none", gadget("none"))).refusal == (404, "NotFound")
    assert (await wire.delete("gadgets/none")).refusal == (404, "NotFound")
    assert (await wire.merge("gadgets/none", {})).refusal == (404, "NotFound")


async def test_a_kind_that_is_not_served_is_not_found(wire: Wire) -> None:
    answer = await wire.get("/apis/conformance.example.org/v1/gizmos")
    assert answer.code == 404


async def test_nothing_lives_in_a_namespace_that_does_not_exist(wire: Wire) -> None:
    answer = await wire.post("/api/v1/namespaces/no-such-place/configmaps", config_map())
    assert answer.refusal == (404, "NotFound")
    assert answer.body["details"]["kind"] == "namespaces"


async def test_generate_name_makes_fresh_names(wire: Wire) -> None:
    body = config_map()
    body["metadata"] = {"generateName": "a-"}
    names = {(await wire.post("configmaps", body)).meta["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("a-") and len(name) == 7 for name in names)


async def test_a_name_must_be_a_name(wire: Wire) -> None:
    answer = await wire.post("configmaps", config_map("Not_A_Name"))
    assert answer.refusal == (422, "Invalid")
    assert answer.fields == {("metadata.name", "FieldValueInvalid")}


async def test_body_and_url_must_agree(wire: Wire) -> None:
    await wire.post("configmaps", config_map())
    assert (await wire.put("configmaps/a", config_map("b"))).refusal == (400, "BadRequest")
    assert (await wire.post("configmaps", config_map(namespace="kube-system"))).refusal == (400, "BadRequest")


async def test_a_put_of_a_stale_version_is_a_conflict(wire: Wire) -> None:
    made = await wire.post("configmaps", config_map())
    await wire.merge("configmaps/a", {"data": {"k": "v"}})
    stale = await wire.put("configmaps/a", made.body)
    assert stale.refusal == (409, "Conflict")
    assert stale.body["details"] == {"name": "a", "kind": "configmaps"}
    assert (await wire.put("configmaps/a", config_map(data={"k": "w"}))).body["data"] == {"k": "w"}


async def test_a_write_that_changes_nothing_is_no_new_version(wire: Wire) -> None:
    made = await wire.post("configmaps", config_map(data={"k": "v"}))
    assert (await wire.put("configmaps/a", made.body)).version == made.version
    assert (await wire.merge("configmaps/a", {"data": {"k": "v"}})).version == made.version


async def test_a_merge_patch_merges_and_null_removes(wire: Wire) -> None:
    await wire.post("configmaps", config_map(data={"a": "1", "b": "2"}, labels={"x": "y"}))
    patched = await wire.merge("configmaps/a", {"data": {"a": None, "c": "3"}, "metadata": {"labels": {"z": "w"}}})
    assert patched.body["data"] == {"b": "2", "c": "3"}
    assert patched.meta["labels"] == {"x": "y", "z": "w"}


async def test_a_merge_patch_of_a_stale_version_is_a_conflict(wire: Wire) -> None:
    await wire.post("configmaps", config_map())
    answer = await wire.merge("configmaps/a", {"metadata": {"resourceVersion": "1"}, "data": {"k": "v"}})
    assert answer.refusal == (409, "Conflict")


@pytest.mark.parametrize("what", ["configmaps", "gadgets"])
async def test_a_merge_patch_with_the_uid_of_another_object_is_invalid(wire: Wire, what: str) -> None:
    await wire.post(what, config_map() if what == "configmaps" else gadget())
    answer = await wire.merge(f"{what}/a", {"metadata": {"uid": "someone-else", "labels": {"k": "v"}}})
    assert answer.refusal == (422, "Invalid")
    assert answer.fields == {("metadata.uid", "FieldValueInvalid")}


async def test_a_put_names_the_version_and_the_object_it_means(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget())
    blind = await wire.put("gadgets/a", gadget())
    assert blind.refusal == (422, "Invalid")
    assert blind.fields == {("metadata.resourceVersion", "FieldValueInvalid")}
    other = await wire.put("gadgets/a", gadget(uid="ghost", resourceVersion=made.version))
    assert other.refusal == (409, "Conflict")


async def test_a_json_patch_applies_or_is_refused(wire: Wire) -> None:
    await wire.post("configmaps", config_map(data={"a": "1"}))
    content = "application/json-patch+json"
    done = await wire.call("PATCH", "configmaps/a", [{"op": "add", "path": "/data/b", "value": "2"}], content=content)
    assert done.body["data"] == {"a": "1", "b": "2"}
    missing = await wire.call("PATCH", "configmaps/a", [{"op": "remove", "path": "/data/z"}], content=content)
    assert missing.refusal == (422, "Invalid")


async def test_custom_kinds_take_no_strategic_patch(wire: Wire) -> None:
    await wire.post("gadgets", gadget())
    answer = await wire.call("PATCH", "gadgets/a", {}, content="application/strategic-merge-patch+json")
    assert answer.refusal == (415, "UnsupportedMediaType")


async def test_status_and_spec_have_their_own_doors(wire: Wire) -> None:
    made = await wire.post("gadgets", {**gadget(), "status": {"phase": "Sneaked"}})
    assert "status" not in made.body
    done = await wire.merge("gadgets/a/status", {"status": {"phase": "Seen"}, "spec": {"size": 9}})
    assert done.body["status"] == {"phase": "Seen"}
    assert done.body["spec"]["size"] == 1
    assert done.meta["generation"] == 1
    main = await wire.merge("gadgets/a", {"status": {"phase": "Sneaked"}, "spec": {"size": 2}})
    assert main.body["status"] == {"phase": "Seen"}
    assert main.meta["generation"] == 2


async def test_a_status_write_cannot_touch_metadata_of_custom_kinds(wire: Wire) -> None:
    await wire.post("gadgets", gadget(labels={"a": "b"}))
    done = await wire.merge("gadgets/a/status", {"metadata": {"labels": {"a": "c"}}, "status": {"phase": "x"}})
    assert done.meta["labels"] == {"a": "b"}


async def test_generation_counts_changes_of_the_spec_only(wire: Wire) -> None:
    await wire.post("gadgets", gadget())
    labelled = await wire.merge("gadgets/a", {"metadata": {"labels": {"x": "y"}}})
    assert labelled.meta["generation"] == 1
    assert (await wire.merge("gadgets/a", {"spec": {"size": 2}})).meta["generation"] == 2


async def test_the_scale_subresource_reads_and_writes_replicas_only(wire: Wire) -> None:
    await wire.post("gadgets", gadget(spec={"replicas": 3}))
    await wire.merge("gadgets/a/status", {"status": {"replicas": 2, "selector": "app=a"}})
    scale = await wire.get("gadgets/a/scale")
    assert (scale.body["kind"], scale.body["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale.body["spec"] == {"replicas": 3}
    assert scale.body["status"] == {"replicas": 2, "selector": "app=a"}
    scaled = await wire.merge("gadgets/a/scale", {"spec": {"replicas": 5}})
    assert scaled.body["spec"] == {"replicas": 5}
    stored = await wire.get("gadgets/a")
    assert stored.body["spec"] == {"size": 1, "replicas": 5}
    assert stored.meta["generation"] == 2
    assert stored.version == scaled.version


async def test_a_kind_without_scale_has_none(wire: Wire) -> None:
    await wire.post("configmaps", config_map())
    assert (await wire.get("configmaps/a/scale")).code == 404


async def test_a_finalizer_holds_a_deleted_object_until_it_is_taken_away(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget(finalizers=["example.org/hold"]))
    marked = await wire.delete("gadgets/a")
    assert marked.code == 200
    assert marked.meta["deletionTimestamp"]
    assert marked.meta["deletionGracePeriodSeconds"] == 0
    assert marked.meta["generation"] == made.meta["generation"] + 1
    more = await wire.merge("gadgets/a", {"metadata": {"finalizers": ["example.org/hold", "example.org/more"]}})
    assert more.refusal == (422, "Invalid")
    again = await wire.delete("gadgets/a")
    assert again.version == marked.version
    async with wire.watch("gadgets", resourceVersion=marked.version) as event:
        assert (await wire.merge("gadgets/a", {"metadata": {"finalizers": []}})).code == 200
        assert (await event())[0] == "DELETED"
    assert (await wire.get("gadgets/a")).code == 404


async def test_a_delete_names_the_object_it_means(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget())
    other = await wire.delete("gadgets/a", {"preconditions": {"uid": "another"}})
    assert other.refusal == (409, "Conflict")
    stale = await wire.delete("gadgets/a", {"preconditions": {"resourceVersion": "1"}})
    assert stale.refusal == (409, "Conflict")
    done = await wire.delete("gadgets/a", {"preconditions": {"uid": made.meta["uid"]}})
    assert (done.code, done.body["status"]) == (200, "Success")
    assert done.body["details"]["uid"] == made.meta["uid"]


async def test_a_dry_run_answers_and_stores_nothing(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget(), dryRun="All")
    assert made.code == 201
    assert made.body["spec"]["replicas"] == 1
    assert (await wire.get("gadgets/a")).code == 404


async def test_a_pod_that_nobody_runs_goes_at_once(wire: Wire) -> None:
    await wire.post("pods", pod())
    assert (await wire.delete("pods/a")).code == 200
    assert (await wire.get("pods/a")).code == 404


async def test_a_running_pod_gets_its_grace(wire: Wire) -> None:
    await wire.post("pods", pod(nodeName="nowhere", terminationGracePeriodSeconds=3600))
    marked = await wire.delete("pods/a")
    assert marked.meta["deletionGracePeriodSeconds"] == 3600
    shorter = await wire.delete("pods/a", {"gracePeriodSeconds": 600})
    assert shorter.meta["deletionGracePeriodSeconds"] == 600
    longer = await wire.delete("pods/a", {"gracePeriodSeconds": 900})
    assert longer.meta["deletionGracePeriodSeconds"] == 600
    await wire.delete("pods/a", {"gracePeriodSeconds": 0})
    await wire.until_gone("pods/a")


async def test_a_pod_is_bound_once(wire: Wire) -> None:
    await wire.post("pods", pod())
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"name": "node-x"}}
    assert (await wire.post("pods/a/binding", binding)).code == 201
    assert (await wire.get("pods/a")).body["spec"]["nodeName"] == "node-x"
    assert (await wire.post("pods/a/binding", binding)).refusal == (409, "Conflict")


async def test_a_pod_keeps_its_spec(wire: Wire) -> None:
    await wire.post("pods", pod())
    image = await wire.apply(
        "pods/a",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "main", "image": "example/image:2"}]},
        },
        force="true",
    )
    assert image.body["spec"]["containers"][0]["image"] == "example/image:2"
    moved = await wire.merge("pods/a", {"spec": {"hostname": "elsewhere"}})
    assert moved.refusal == (422, "Invalid")
    assert moved.fields == {("spec", "FieldValueForbidden")}


async def test_pod_defaults_that_a_planner_meets(wire: Wire) -> None:
    made = await wire.post("pods", pod())
    spec: dict[str, Any] = made.body["spec"]
    named = ("restartPolicy", "dnsPolicy", "terminationGracePeriodSeconds", "enableServiceLinks", "serviceAccountName")
    assert {name: spec[name] for name in named} == {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 30,
        "enableServiceLinks": True,
        "serviceAccountName": "default",
    }
    assert made.body["status"]["phase"] == "Pending"
    assert made.meta["generation"] == 1


async def test_service_defaults_that_a_planner_meets(wire: Wire) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"clusterIP": "None", "selector": {"app": "a"}, "ports": [{"name": "http", "port": 80}]},
    }
    made = await wire.post("services", body)
    assert made.body["spec"] == {
        "clusterIP": "None",
        "clusterIPs": ["None"],
        "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}],
        "selector": {"app": "a"},
        "sessionAffinity": "None",
        "type": "ClusterIP",
    }


async def test_a_lease_is_taken_by_an_optimistic_update(wire: Wire) -> None:
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"}
    made = await wire.post(
        "leases", {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": spec}
    )
    first = await wire.put("leases/a", {**made.body, "spec": {**spec, "holderIdentity": "two"}})
    late = await wire.put("leases/a", {**made.body, "spec": {**spec, "holderIdentity": "three"}})
    assert first.code == 200
    assert late.refusal == (409, "Conflict")


async def test_garbage_follows_its_owner(wire: Wire) -> None:
    # Not one of our kind: the real collector learns of a new CRD only every half minute.
    owner = await wire.post("configmaps", config_map("owner"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.meta["uid"], "controller": True}
    await wire.post("configmaps", config_map("child", ownerReferences=[reference]))
    await wire.post("configmaps", config_map("free"))
    await wire.delete("configmaps/owner", {"propagationPolicy": "Background"})
    await wire.until_gone("configmaps/child")
    assert (await wire.get("configmaps/free")).code == 200


async def test_an_orphan_stays(wire: Wire) -> None:
    owner = await wire.post("configmaps", config_map("owner"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.meta["uid"]}
    await wire.post("configmaps", config_map("child", ownerReferences=[reference]))
    await wire.delete("configmaps/owner", {"propagationPolicy": "Orphan"})
    await wire.until_gone("configmaps/owner")
    child = await wire.get("configmaps/child")
    assert child.code == 200
    assert "ownerReferences" not in child.meta


async def test_an_event_is_an_object_like_others(wire: Wire) -> None:
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "a.1"},
        "involvedObject": {"kind": "Gadget", "name": "a", "namespace": wire.namespace},
        "reason": "Happened",
        "message": "it did",
        "type": "Normal",
    }
    assert (await wire.post("events", event)).code == 201
    found = await wire.get("events", fieldSelector="involvedObject.name=a")
    assert [item["reason"] for item in found.body["items"]] == ["Happened"]
