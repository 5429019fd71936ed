"""The life of a Model, pass by pass."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from matrixinfer.kube.apply import Failure
from matrixinfer.kube.errors import Conflict, Forbidden, NotOwned
from matrixinfer.kube.plan import Apply, Delete, Scale
from matrixinfer.model_controller.reconciler import explain
from matrixinfer.model_controller.resources import INFERS, MODELS, ROUTES, SERVERS, VERSIONS

INFER = "quickstart-cpu"


def reasons(plan: Any) -> list[str]:
    return [note.reason for note in plan.notes]


def serving(world: Callable[[str], Any]) -> Any:
    made = world("quickstart")
    made.step()
    made.serve(INFER)
    made.settle()
    return made


def test_a_new_model_gets_everything_in_order(world):
    made = world("quickstart")
    first = made.step()
    kinds = [[step.manifest["kind"] for step in wave] for wave in first.waves]
    assert kinds == [["ServiceAccount", "RoleBinding", "ModelVersion"], ["ModelInfer", "ModelServer"], ["ModelRoute"]]
    assert reasons(first) == ["VersionRecorded", "ChildCreated", "ChildCreated", "ChildCreated"]
    assert made.condition("Initialized")["status"] == "False"
    assert made.condition("Progressing")["status"] == "True"


def test_a_made_model_waits_for_its_pods_and_says_so(world):
    made = world("quickstart")
    made.settle()
    assert made.condition("Initialized")["status"] == "True"
    assert made.condition("Active")["status"] == "False"
    assert "no pods of ModelInfer" in made.condition("Active")["message"]


def test_a_serving_model_is_active_and_writes_nothing(world):
    made = serving(world)
    status = made.model["status"]
    assert [(c["type"], c["status"]) for c in status["conditions"]] == [
        ("Active", "True"),
        ("Failed", "False"),
        ("Initialized", "True"),
        ("Progressing", "False"),
    ]
    (version,) = made.versions
    assert status["activeVersions"] == version
    assert status["backendStatuses"] == [{"name": INFER, "replicas": 1, "readyReplicas": 1, "versionName": version}]
    assert status["endpointName"] == "quickstart"
    made.now += timedelta(hours=1)
    assert made.plan().is_empty


def test_becoming_active_is_an_event_once(world):
    made = world("quickstart")
    made.settle()
    made.serve(INFER)
    assert reasons(made.step()) == ["ModelAvailable"]
    assert reasons(made.step()) == []


def test_pods_that_fail_take_the_model_out(world):
    made = serving(world)
    made.serve(INFER, available=False)
    made.infer(INFER)["status"]["conditions"][0]["message"] = "group 0 cannot pull its image"
    made.settle()
    assert made.condition("Active")["status"] == "False"
    assert "cannot pull its image" in made.condition("Active")["message"]
    made.serve(INFER)
    made.settle()
    assert made.condition("Active")["status"] == "True"


def test_a_download_that_fails_is_told_by_the_model_and_the_version(world):
    made = world("quickstart")
    made.settle()
    made.serve(INFER, available=False)
    (version,) = made.versions.values()
    fault = {
        "type": "Resolved",
        "status": "False",
        "reason": "AccessDenied",
        "message": "the key is not allowed to read",
    }
    version["status"]["conditions"].append({**fault, "lastTransitionTime": "2026-01-31T12:00:00Z"})
    made.settle()
    assert "not allowed to read" in made.condition("Active")["message"]
    failed = next(c for c in made.versions.popitem()[1]["status"]["conditions"] if c["type"] == "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "AccessDenied")


def test_a_deleted_child_comes_back(world):
    made = serving(world)
    del made.children[(SERVERS, INFER)]
    plan = made.step()
    assert [type(step) for step in plan.steps] == [Apply]
    assert made.condition("Initialized")["status"] == "True", "what was there once stays initialized"


def test_a_changed_child_is_repaired(world):
    made = serving(world)
    made.children[(ROUTES, "quickstart")]["spec"]["rules"][0]["targetModels"][0]["weight"] = 1
    plan = made.step()
    assert reasons(plan) == ["ChildUpdated"]
    assert made.plan().is_empty


def test_what_others_add_to_a_child_is_left_alone(world):
    made = serving(world)
    made.infer(INFER)["metadata"]["labels"]["team"] = "a"
    made.infer(INFER)["metadata"]["annotations"] = {"note": "x"}
    assert made.plan().is_empty


def test_a_changed_image_is_a_new_version_and_the_old_serves_until_all_pods_are_new(world):
    made = serving(world)
    (old,) = made.versions
    made.edit(lambda spec: spec["backends"][0]["workers"][0].update(image="example/engine:2"))
    assert [step.resource for step in made.step().steps] == [VERSIONS, INFERS]
    (new,) = set(made.versions) - {old}
    made.serve(INFER, updated=0)
    made.settle()
    assert made.model["status"]["activeVersions"] == old
    assert made.condition("Progressing")["status"] == "True"
    made.serve(INFER)
    made.settle()
    assert made.model["status"]["activeVersions"] == new
    assert made.condition("Progressing")["status"] == "False"


def test_bounds_and_weights_make_no_version(world):
    made = serving(world)
    made.edit(lambda spec: spec["backends"][0].update(maxReplicas=2, routeWeight=7))
    plan = made.step()
    assert [step.manifest["kind"] for step in plan.steps] == ["ModelRoute"]
    assert len(made.versions) == 1


def test_a_pinned_version_is_served_again(world):
    made = serving(world)
    (old,) = made.versions
    made.edit(lambda spec: spec["backends"][0]["workers"][0].update(image="example/engine:2"))
    made.step()
    made.serve(INFER)
    made.settle()
    made.edit(lambda spec: spec["backends"][0].update(versionName=old))
    made.step()
    made.serve(INFER)
    made.settle()
    assert made.model["status"]["activeVersions"] == old
    image = made.infer(INFER)["spec"]["template"]["roles"][0]["entryTemplate"]["spec"]["containers"][0]["image"]
    assert image == "matrixinfer/engine-llamacpp:dev"


def test_a_pin_to_nothing_fails_and_the_model_serves_as_before(world):
    made = serving(world)
    made.edit(lambda spec: spec["backends"][0].update(versionName="nothing"))
    plan = made.step()
    assert plan.steps == ()
    assert plan.error is not None
    assert made.condition("Failed")["reason"] == "VersionNotFound"
    assert made.condition("Active")["status"] == "True"
    made.edit(lambda spec: spec["backends"][0].pop("versionName"))
    assert "Recovered" in reasons(made.step())
    made.serve(INFER)
    made.settle()
    assert made.condition("Failed")["status"] == "False"


def test_old_versions_go_beyond_the_limit_but_never_one_that_serves(world):
    made = serving(world)
    made.edit(lambda spec: spec.update(versionHistoryLimit=1))
    for n in range(4):
        made.now += timedelta(minutes=1)
        made.edit(lambda spec, n=n: spec["backends"][0]["workers"][0].update(image=f"example/engine:{n}"))
        made.step()
        for version in made.versions.values():
            version["metadata"]["creationTimestamp"] = version["metadata"].get("made") or made.now.isoformat()
            version["metadata"].setdefault("made", made.now.isoformat())
        made.serve(INFER)
        made.settle()
    assert len(made.versions) == 2
    assert made.model["status"]["activeVersions"] in made.versions


def test_a_removed_backend_takes_its_objects_with_it(world):
    made = world("model-two-backends")
    made.settle()
    for infer in ("harbor-24b-agg", "harbor-24b-pd"):
        made.serve(infer)
    made.settle()
    made.edit(lambda spec: spec["backends"].pop())
    plan = made.step()
    assert sorted(step.key.name for step in plan.steps if isinstance(step, Delete) and step.resource != VERSIONS) == [
        "harbor-24b-pd",
        "harbor-24b-pd",
    ]
    assert made.names() == {"ModelInfer/harbor-24b-agg", "ModelServer/harbor-24b-agg", "ModelRoute/harbor-24b"}
    made.settle()
    assert all(version["spec"]["backendName"] == "agg" for version in made.versions.values())


def test_a_removed_policy_takes_its_objects_with_it(world):
    made = world("model-backend-policy")
    made.settle()
    made.edit(lambda spec: spec["backends"][0].pop("autoscalingPolicy"))
    made.settle()
    assert not any("Autoscaling" in name for name in made.names())


def test_another_client_name_replaces_the_route(world):
    made = serving(world)
    made.edit(lambda spec: spec.update(name="Other/Name"))
    assert any(isinstance(step, Delete) and step.resource == ROUTES for step in made.step().steps)
    made.settle()
    assert made.children[(ROUTES, "quickstart")]["spec"]["modelName"] == "Other/Name"


def test_replicas_are_never_applied_and_corrected_only_out_of_bounds(world):
    made = serving(world)
    assert all(
        "replicas" not in step.manifest["spec"]
        for step in world("quickstart").plan().steps
        if isinstance(step, Apply) and step.resource == INFERS
    )
    made.infer(INFER)["spec"]["replicas"] = 3
    assert made.plan().steps == (), "somebody scaled within the bounds"
    made.infer(INFER)["spec"]["replicas"] = 9
    assert [(type(step), step.replicas) for step in made.plan().steps] == [(Scale, 3)]


def test_an_autoscaler_may_go_above_what_we_would_allow_but_not_below(world):
    made = world("model-backend-policy")
    made.settle()
    infer = made.infer("lantern-8b-main")
    infer["spec"]["replicas"] = 9
    assert made.plan().steps == ()
    infer["spec"]["replicas"] = 0
    assert [step.replicas for step in made.plan().steps] == [1]


def test_an_invalid_model_is_left_as_it_is_with_the_reason(world):
    made = serving(world)
    made.edit(lambda spec: spec["backends"][0].update(minReplicas=9))
    plan = made.step()
    assert plan.steps == ()
    assert made.condition("Failed")["reason"] == "InvalidSpec"
    assert "spec.backends[0].minReplicas" in made.condition("Failed")["message"]


def test_a_model_that_cannot_even_be_read_is_an_event(world):
    made = world("quickstart")
    made.model["spec"]["backends"] = "many"
    plan = made.plan()
    assert (plan.status, reasons(plan)) == ((), ["InvalidSpec"])


def test_a_model_that_is_being_deleted_is_left_to_garbage_collection(world):
    made = serving(world)
    made.model["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    assert made.plan().is_empty


def test_a_model_scaled_to_zero_is_active(world):
    made = world("model-policy-by-cost")
    made.settle()
    for infer in ("mosaic-large", "mosaic-small"):
        made.infer(infer)["spec"]["replicas"] = 0 if infer.endswith("large") else 1
        made.serve(infer)
    made.settle()
    assert made.condition("Active")["status"] == "True"


def test_models_of_one_namespace_share_the_downloaders_account(world):
    made = serving(world)
    made.owners = (("another", "uid-2"), *made.owners)
    plan = made.step()
    assert [step.manifest["kind"] for step in plan.steps] == ["ServiceAccount", "RoleBinding"]
    assert [owner["uid"] for owner in plan.steps[0].manifest["metadata"]["ownerReferences"]] == ["uid-2", "uid-model"]
    made.owners = made.owners[1:]
    assert made.plan().is_empty, "an owner that is gone is the garbage collector's business"


def test_a_name_that_is_taken_is_told_and_recovers(world):
    made = world("quickstart")
    plan = made.plan()
    step = next(step for step in plan.steps if isinstance(step, Apply) and step.resource == INFERS)
    failure = Failure(step, NotOwned(f"ModelInfer llm/{INFER}", "nobody"))
    (status,) = [w for w in explain(made.seen, plan, [failure], made.now) if w.resource == MODELS]
    failed = next(c for c in status.desired["conditions"] if c["type"] == "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "NotOwned")
    assert "rename" in failed["message"]
    active = next(c for c in status.desired["conditions"] if c["type"] == "Active")
    assert (active["status"], active["reason"]) == ("False", "ModelFailed")


def test_a_write_that_is_forbidden_is_told_and_one_that_passes_by_itself_is_not(world):
    made = world("quickstart")
    plan = made.plan()
    step = plan.steps[0]
    forbidden = explain(made.seen, plan, [Failure(step, Forbidden(403, "Forbidden", "no"))], made.now)
    assert next(c for c in forbidden[-1].desired["conditions"] if c["type"] == "Failed")["reason"] == "WriteRefused"
    assert explain(made.seen, plan, [Failure(step, Conflict(409, "Conflict", "again"))], made.now) == plan.status


def test_a_namespace_that_goes_is_no_failure(world):
    made = world("quickstart")
    plan = made.plan()
    details = {"causes": [{"reason": "NamespaceTerminating"}]}
    failure = Failure(plan.steps[0], Forbidden(403, "Forbidden", "it is being terminated", details))
    assert explain(made.seen, plan, [failure], made.now) == plan.status
