"""Server-side apply: who owns what, what a new configuration takes away, who is in conflict."""

from typing import Any

from .conftest import Wire, config_map, gadget


def labelled(**labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": labels}}


async def test_an_apply_creates_and_owns_exactly_what_it_says(wire: Wire) -> None:
    body = gadget(spec={"parts": [{"name": "a", "colour": "red"}], "marks": ["x"], "atoms": ["p"]}, labels={"l": "1"})
    made = await wire.apply("gadgets/a", body)
    assert made.code == 201
    assert made.managers() == {
        ("me", "Apply", ""): {
            "f:metadata": {"f:labels": {"f:l": {}}},
            "f:spec": {
                "f:size": {},
                "f:atoms": {},
                "f:marks": {'v:"x"': {}},
                "f:parts": {'k:{"name":"a"}': {".": {}, "f:name": {}, "f:colour": {}}},
            },
        }
    }
    assert (await wire.apply("gadgets/a", body)).code == 200


async def test_applying_the_same_again_is_no_new_version(wire: Wire) -> None:
    body = gadget(spec={"parts": [{"name": "a"}], "finish": {}, "free": {"x": {"y": 1}}})
    first = await wire.apply("gadgets/a", body)
    again = await wire.apply("gadgets/a", body, force="true")
    assert again.version == first.version


async def test_what_is_no_longer_applied_goes(wire: Wire) -> None:
    spec = {"colour": "red", "parts": [{"name": "a"}, {"name": "b"}], "labels": {"x": "1", "y": "2"}}
    await wire.apply("gadgets/a", gadget(spec=spec, labels={"l": "1"}, annotations={"n": "1"}))
    done = await wire.apply("gadgets/a", gadget(spec={"parts": [{"name": "b"}], "labels": {"y": "2"}}))
    assert done.body["spec"] == {"size": 1, "replicas": 1, "parts": [{"name": "b", "count": 1}], "labels": {"y": "2"}}
    assert "labels" not in done.meta
    assert "annotations" not in done.meta


async def test_what_others_own_stays(wire: Wire) -> None:
    await wire.apply("configmaps/a", labelled(mine="1", shared="s"))
    await wire.apply("configmaps/a", labelled(theirs="2", shared="s"), manager="them")
    await wire.merge("configmaps/a", {"metadata": {"labels": {"hand": "3"}}})
    done = await wire.apply("configmaps/a", labelled())
    assert done.meta["labels"] == {"theirs": "2", "shared": "s", "hand": "3"}
    assert done.managers()["me", "Apply", ""] == {"f:metadata": {"f:labels": {}}}
    nothing = await wire.apply("configmaps/a", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
    assert nothing.meta["labels"] == done.meta["labels"]
    assert ("me", "Apply", "") not in nothing.managers()


async def test_a_field_with_two_wills_is_a_conflict(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"colour": "red"}))
    answer = await wire.apply("gadgets/a", gadget(spec={"colour": "green"}), manager="them")
    assert answer.refusal == (409, "Conflict")
    assert answer.fields == {(".spec.colour", "FieldManagerConflict")}
    assert answer.body["details"]["causes"][0]["message"] == 'conflict with "me"'
    taken = await wire.apply("gadgets/a", gadget(spec={"colour": "green"}), manager="them", force="true")
    assert taken.body["spec"]["colour"] == "green"
    assert "f:colour" not in taken.managers()["me", "Apply", ""]["f:spec"]
    assert "f:colour" in taken.managers()["them", "Apply", ""]["f:spec"]


async def test_a_patch_takes_fields_over_and_the_next_apply_conflicts(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"colour": "red"}))
    patched = await wire.merge("gadgets/a", {"spec": {"colour": "green"}})
    assert patched.managers()["conformance", "Update", ""] == {"f:spec": {"f:colour": {}}}
    assert (await wire.apply("gadgets/a", gadget(spec={"colour": "red"}))).refusal == (409, "Conflict")
    assert (await wire.apply("gadgets/a", gadget(spec={"colour": "red"}), force="true")).body["spec"]["colour"] == "red"


async def test_a_patch_that_only_removes_owns_nothing(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"colour": "red"}))
    patched = await wire.merge("gadgets/a", {"spec": {"colour": None}})
    assert patched.managers() == {("me", "Apply", ""): {"f:spec": {"f:size": {}}}}
    assert (await wire.apply("gadgets/a", gadget(spec={"colour": "red"}))).body["spec"]["colour"] == "red"


async def test_a_shared_field_stays_until_both_let_go(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"colour": "red"}))
    await wire.apply("gadgets/a", gadget(spec={"colour": "red"}), manager="them")
    one = await wire.apply("gadgets/a", gadget())
    assert one.body["spec"]["colour"] == "red"
    two = await wire.apply("gadgets/a", gadget(), manager="them")
    assert "colour" not in two.body["spec"]


async def test_list_maps_merge_item_by_item(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"parts": [{"name": "a", "count": 2}, {"name": "b"}]}))
    theirs = {"parts": [{"name": "b", "colour": "red"}, {"name": "c"}]}
    done = await wire.apply("gadgets/a", gadget(spec=theirs), manager="them")
    assert sorted(done.body["spec"]["parts"], key=lambda part: part["name"]) == [
        {"name": "a", "count": 2},
        {"name": "b", "count": 1, "colour": "red"},
        {"name": "c", "count": 1},
    ]
    gone = await wire.apply("gadgets/a", gadget(), manager="me")
    assert [part["name"] for part in gone.body["spec"]["parts"]] == ["b", "c"]


async def test_atomic_lists_are_one_value(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"atoms": ["p", "q"]}))
    answer = await wire.apply("gadgets/a", gadget(spec={"atoms": ["p"]}), manager="them")
    assert answer.fields == {(".spec.atoms", "FieldManagerConflict")}


async def test_sets_are_owned_element_by_element(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"marks": ["x", "y"]}))
    both = await wire.apply("gadgets/a", gadget(spec={"marks": ["y", "z"]}), manager="them")
    assert sorted(both.body["spec"]["marks"]) == ["x", "y", "z"]
    left = await wire.apply("gadgets/a", gadget())
    assert sorted(left.body["spec"]["marks"]) == ["y", "z"]


async def test_an_emptied_struct_goes_with_its_last_owned_field(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget(spec={"finish": {"coats": 2}}))
    done = await wire.apply("gadgets/a", gadget())
    assert "finish" not in done.body["spec"]


async def test_status_is_applied_through_its_own_door(wire: Wire) -> None:
    made = await wire.apply("gadgets/a", gadget())
    ready = {"type": "Ready", "status": "True"}
    body = {
        "apiVersion": "conformance.example.org/v1",
        "kind": "Gadget",
        "metadata": {"name": "a", "uid": made.meta["uid"]},
        "status": {"phase": "Up", "conditions": [ready]},
    }
    done = await wire.apply("gadgets/a/status", body, manager="boss", force="true")
    assert done.body["status"] == {"phase": "Up", "conditions": [ready]}
    assert done.body["spec"] == made.body["spec"]
    assert done.managers()["boss", "Apply", "status"] == {
        "f:status": {
            "f:phase": {},
            "f:conditions": {'k:{"type":"Ready"}': {".": {}, "f:type": {}, "f:status": {}}},
        }
    }
    cause = {"type": "Progressing", "status": "False"}
    other = await wire.apply("gadgets/a/status", {**body, "status": {"conditions": [cause]}}, manager="clerk")
    assert {c["type"] for c in other.body["status"]["conditions"]} == {"Ready", "Progressing"}
    less = await wire.apply("gadgets/a/status", {**body, "status": {"conditions": [ready]}}, manager="boss")
    assert "phase" not in less.body["status"]
    again = await wire.apply("gadgets/a/status", {**body, "status": {"conditions": [ready]}}, manager="boss")
    assert again.version == less.version


async def test_an_apply_of_the_main_object_leaves_status_alone(wire: Wire) -> None:
    await wire.apply("gadgets/a", gadget())
    await wire.merge("gadgets/a/status", {"status": {"phase": "Up"}})
    done = await wire.apply("gadgets/a", {**gadget(), "status": {"phase": "Sneaked"}})
    assert done.body["status"] == {"phase": "Up"}


async def test_status_of_what_is_not_there_is_not_found(wire: Wire) -> None:
    assert (await wire.apply("gadgets/a/status", gadget())).refusal == (404, "NotFound")


async def test_a_uid_in_an_apply_means_that_object_and_no_other(wire: Wire) -> None:
    assert (await wire.apply("gadgets/a", gadget(uid="ghost"))).refusal == (409, "Conflict")
    await wire.apply("gadgets/a", gadget())
    other = await wire.apply("gadgets/a", gadget(spec={"size": 5}, uid="ghost"))
    assert other.refusal == (422, "Invalid")
    assert other.fields == {("metadata.uid", "FieldValueInvalid")}


async def test_a_status_apply_does_not_look_at_the_uid(wire: Wire) -> None:
    """So a writer that must not touch a namesake has to send the resourceVersion."""
    made = await wire.apply("gadgets/a", gadget())
    body = {**gadget(uid="ghost"), "status": {"phase": "x"}}
    done = await wire.apply("gadgets/a/status", body)
    assert (done.code, done.meta["uid"]) == (200, made.meta["uid"])
    body["metadata"]["resourceVersion"] = made.version
    assert (await wire.apply("gadgets/a/status", body)).refusal == (409, "Conflict")


async def test_an_apply_names_its_object(wire: Wire) -> None:
    body = gadget()
    del body["metadata"]["name"]
    assert (await wire.apply("gadgets/a", body)).refusal == (400, "BadRequest")


async def test_an_apply_needs_a_manager(wire: Wire) -> None:
    answer = await wire.call("PATCH", "gadgets/a", gadget(), content="application/apply-patch+yaml")
    assert answer.refusal == (422, "Invalid")
    assert answer.fields == {("fieldManager", "FieldValueRequired")}


async def test_an_apply_may_not_speak_of_managed_fields(wire: Wire) -> None:
    body = gadget(managedFields=[{"manager": "x"}])
    assert (await wire.apply("gadgets/a", body)).code == 400


async def test_an_apply_of_an_unknown_field_is_an_error(wire: Wire) -> None:
    answer = await wire.apply("gadgets/a", gadget(spec={"typo": 1}))
    assert answer.code == 500
    assert ".spec.typo: field not declared in schema" in answer.body["message"]


async def test_an_apply_that_breaks_the_schema_is_invalid(wire: Wire) -> None:
    assert (await wire.apply("gadgets/a", gadget(spec={"size": 99}))).refusal == (422, "Invalid")


async def test_a_created_object_belongs_to_its_creator(wire: Wire) -> None:
    made = await wire.post("configmaps", config_map(data={"k": "v"}, labels={"l": "1"}))
    assert made.managers() == {
        ("conformance", "Update", ""): {
            "f:data": {".": {}, "f:k": {}},
            "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
        }
    }


async def test_containers_merge_by_name_and_ports_by_number(wire: Wire) -> None:
    base = {"name": "main", "image": "i:1", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [base]}}
    pod["spec"]["schedulerName"] = "nobody"  # type: ignore[index]  # a nested literal
    made = await wire.apply("pods/a", pod)
    assert made.managers()["me", "Apply", ""] == {
        "f:spec": {
            "f:schedulerName": {},
            "f:containers": {
                'k:{"name":"main"}': {
                    ".": {},
                    "f:name": {},
                    "f:image": {},
                    "f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}},
                    "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                }
            },
        }
    }
    again = await wire.apply("pods/a", pod)
    assert again.version == made.version
