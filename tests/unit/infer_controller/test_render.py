"""Pods and Services as they are made: names, labels, environment, placement."""

import pytest
from tests.unit.infer_controller.worlds import UID, infer, role, service

from matrixinfer.infer_controller.fleet import Role, UnitId
from matrixinfer.infer_controller.plan import MODEL_INFERS
from matrixinfer.infer_controller.render.pods import longest_name, pod
from matrixinfer.infer_controller.render.services import headless_service, is_as_rendered
from matrixinfer.infer_controller.revisions import template_of
from matrixinfer.kube.resource import owner_reference

OWNER = owner_reference(MODEL_INFERS, "m", UID)
UNIT = UnitId(1, "leader", 0)
PREFIX = "modelinfer.matrixinfer.ai/"


def rendered(one: Role, index: int = 0, **given):
    template = template_of([one], **given)
    return pod(infer(template), template, one, UNIT, index, OWNER)


def environment(manifest, container=0, kind="containers"):
    return {variable["name"]: variable for variable in manifest["spec"][kind][container]["env"]}


def test_the_entry_pod_carries_every_label_that_others_select_by():
    labels = rendered(role(workers=1))["metadata"]["labels"]
    assert labels[PREFIX + "name"] == "m"
    assert labels[PREFIX + "group-name"] == "m-1"
    assert labels[PREFIX + "role"] == "leader"
    assert labels[PREFIX + "role-id"] == "leader-0"
    assert labels[PREFIX + "entry"] == "true"
    assert labels[PREFIX + "uid"] == UID
    assert labels[PREFIX + "revision"] == template_of([role(workers=1)]).revision


def test_a_worker_is_no_entry():
    worker = rendered(role(workers=1), 1)
    assert worker["metadata"]["name"] == "m-1-leader-0-1"
    assert PREFIX + "entry" not in worker["metadata"]["labels"]
    assert "hostname" not in worker["spec"]


def test_a_pod_is_owned_by_its_modelinfer_and_nobody_else():
    assert rendered(role())["metadata"]["ownerReferences"] == [OWNER]


def test_the_address_of_an_entry_with_workers_is_that_of_its_service():
    entry = rendered(role(workers=2))
    assert (entry["spec"]["hostname"], entry["spec"]["subdomain"]) == ("m-1-leader-0-0", "m-1-leader-0-0")
    variables = environment(rendered(role(workers=2), 2))
    assert variables["ENTRY_ADDRESS"]["value"] == "m-1-leader-0-0.m-1-leader-0-0.default"
    assert (variables["WORKER_INDEX"]["value"], variables["GROUP_SIZE"]["value"]) == ("2", "3")


def test_a_pod_without_workers_is_its_own_address():
    address = environment(rendered(role()))["ENTRY_ADDRESS"]
    assert address["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_our_variables_replace_the_users_and_reach_init_containers():
    mine = {"name": "GROUP_SIZE", "value": "99"}
    containers = [{"name": "engine", "env": [mine, {"name": "OTHER", "value": "x"}]}]
    one = Role("leader", 1, 0, {"spec": {"containers": containers, "initContainers": [{"name": "init"}]}})
    made = rendered(one)
    assert [v["name"] for v in made["spec"]["containers"][0]["env"]] == [
        "OTHER",
        "ENTRY_ADDRESS",
        "WORKER_INDEX",
        "GROUP_SIZE",
    ]
    assert environment(made)["GROUP_SIZE"]["value"] == "1"
    assert "WORKER_INDEX" in environment(made, kind="initContainers")


def test_the_template_is_not_changed():
    one = role(workers=1)
    before = repr(one)
    rendered(one)
    rendered(one, 1)
    assert repr(one) == before


def test_labels_of_the_user_stay_but_cannot_replace_ours():
    metadata = {"labels": {"team": "a", PREFIX + "role": "thief"}, "annotations": {"note": "b"}}
    made = rendered(Role("leader", 1, 0, {"metadata": metadata, "spec": {"containers": [{"name": "e"}]}}))
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"][PREFIX + "role"] == "leader"
    assert made["metadata"]["annotations"] == {"note": "b"}


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": {"labels": None, "annotations": None}}])
def test_a_template_without_metadata_or_spec_is_rendered(metadata):
    assert rendered(Role("leader", 1, 0, metadata))["metadata"]["name"] == "m-1-leader-0-0"


@pytest.mark.parametrize(
    ("asked", "own", "expected"),
    [("", None, None), ("fast", None, "fast"), ("fast", "mine", "mine"), ("volcano", None, None)],
)
def test_the_scheduler_is_the_templates_then_the_specs_and_never_one_that_is_not_there(asked, own, expected):
    spec = {"containers": [{"name": "e"}], **({"schedulerName": own} if own else {})}
    made = rendered(Role("leader", 1, 0, {"spec": spec}), scheduler_name=asked)
    assert made["spec"].get("schedulerName") == expected


def test_topology_spread_selects_the_pods_of_the_role_unless_told_otherwise():
    (constraint,) = rendered(role(), spread=[{"topologyKey": "zone"}])["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "zone"
    assert constraint["labelSelector"]["matchLabels"] == {PREFIX + "name": "m", PREFIX + "role": "leader"}


def test_the_longest_name_counts_the_highest_ordinals():
    template = template_of([role(replicas=11, workers=3), role("a", replicas=1)])
    assert longest_name(infer(template), 101) == "m-100-leader-10-3"


def test_the_service_selects_the_entry_pod_alone_ready_or_not():
    made = headless_service(infer(), UNIT, OWNER)
    assert made["metadata"]["name"] == "m-1-leader-0-0"
    assert made["spec"]["clusterIP"] == "None"
    assert made["spec"]["publishNotReadyAddresses"] is True
    labels = rendered(role(workers=1))["metadata"]["labels"]
    assert made["spec"]["selector"].items() <= labels.items()
    assert not made["spec"]["selector"].items() <= rendered(role(workers=1), 1)["metadata"]["labels"].items()


def test_a_service_that_somebody_changed_is_noticed():
    assert is_as_rendered(service(1), infer(), UNIT)
    assert not is_as_rendered(service(1, selector={"app": "x"}), infer(), UNIT)
    assert not is_as_rendered(service(1, publishes_not_ready=False), infer(), UNIT)
