"""Names and records of templates."""

from dataclasses import replace

import orjson
from tests.unit.infer_controller.worlds import NEW, NOW, OLD, UID, infer, pod, role, seen, stored, template

from matrixinfer.infer_controller.groups import muster
from matrixinfer.infer_controller.plan import MODEL_INFERS
from matrixinfer.infer_controller.revisions import expired, missing, parse, render, template_of
from matrixinfer.kube.resource import owner_reference

OWNER = owner_reference(MODEL_INFERS, "m", UID)


def test_counts_are_not_part_of_a_revision():
    assert template(role(replicas=1)).revision == template(role(replicas=5)).revision


def test_what_ends_up_in_pods_is_part_of_a_revision():
    base = template_of([role(workers=1)])
    others = [
        template_of([role(workers=2)]),
        template_of([role(workers=1, image="engine:2")]),
        template_of([role("other", workers=1)]),
        template_of([role(workers=1), role("more")]),
        template_of([role(workers=1)], "fast"),
        template_of([role(workers=1)], "", [{"topologyKey": "zone"}]),
    ]
    assert len({base.revision, *(other.revision for other in others)}) == 7


def test_revisions_stay_the_same_from_version_to_version():
    """A change of this value replaces every pod of every fleet when the controller is upgraded."""
    assert template_of([role(workers=1)]).revision == "aa7e6ac2c4"


def test_each_role_has_a_revision_of_its_own():
    one, other = template(role("a"), role("b")), template(role("a"), role("b", image="engine:9"))
    assert one.role_revisions["a"] == other.role_revisions["a"]
    assert one.role_revisions["b"] != other.role_revisions["b"]


def test_a_record_reads_back_as_what_was_recorded():
    whole = template_of([role(workers=1, replicas=3), role("b")], "fast", [{"topologyKey": "zone"}])
    manifest = orjson.loads(orjson.dumps(render(infer(whole), OWNER, 7)))
    assert (manifest["metadata"]["name"], manifest["revision"]) == (f"m-{whole.revision}", 7)
    assert repr(parse(manifest["data"], whole.revision)) == repr(replace(whole, spread=({"topologyKey": "zone"},)))


def test_a_record_by_somebody_else_is_no_template():
    assert parse(None, "x") is None
    assert parse({"roles": [{"name": "a"}]}, "x") is None
    assert parse({"data": []}, "x") is None


def test_a_template_is_recorded_once_with_the_next_number():
    assert missing(seen(), OWNER) == ()
    (step,) = missing(seen(infer(NEW), revisions=(stored(OLD, 4),)), OWNER)
    assert step.manifest["revision"] == 5


def test_the_oldest_unused_records_go_beyond_the_limit_and_used_ones_stay():
    olds = [template(image=f"engine:{number}") for number in range(20, 25)]
    records = [stored(made, number) for number, made in enumerate(olds)]
    world = seen(infer(NEW), [pod(0, of=olds[0])], revisions=(*records, stored(NEW, 9)), history_limit=2)
    gone = expired(world, muster(world, NOW), olds[1].revision)
    assert [step.key.name for step in gone] == [f"m-{olds[2].revision}"]
