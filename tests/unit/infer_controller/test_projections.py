"""What is kept of the objects that the API server sends."""

import tracemalloc
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from tests.unit.infer_controller.worlds import NEW, UID, infer

from matrixinfer.api.v1alpha1.modelinfer import RecoveryPolicy, RolloutStrategyType
from matrixinfer.infer_controller.fleet import Cause, Scope, UnitId
from matrixinfer.infer_controller.plan import MODEL_INFERS
from matrixinfer.infer_controller.projections import INFERS, NODES, PODS, REVISIONS, SERVICES
from matrixinfer.infer_controller.render.pods import pod as rendered_pod
from matrixinfer.infer_controller.render.services import headless_service
from matrixinfer.infer_controller.revisions import render
from matrixinfer.kube.resource import Key, owner_reference

OWNER = owner_reference(MODEL_INFERS, "m", UID)
TIME = "2026-01-01T10:00:00Z"


def pod_bytes(name="m-3-leader-2-1", **given):
    labels = {
        "modelinfer.matrixinfer.ai/name": "m",
        "modelinfer.matrixinfer.ai/group-name": "m-3",
        "modelinfer.matrixinfer.ai/role": "leader",
        "modelinfer.matrixinfer.ai/role-id": "leader-2",
        "modelinfer.matrixinfer.ai/revision": "abc",
    }
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": "u",
        "resourceVersion": "7",
        "labels": labels,
        "ownerReferences": [OWNER],
        **given.pop("metadata", {}),
    }
    return orjson.dumps({"metadata": metadata, **given})


def decoded(**given):
    return PODS.decode(pod_bytes(**given))


def test_a_pod_knows_its_place():
    pod = decoded()
    assert (pod.unit, pod.index, pod.infer, pod.revision, pod.owner_uid) == (UnitId(3, "leader", 2), 1, "m", "abc", UID)
    assert PODS.identify(pod).controller_uid == UID


def test_what_we_render_is_what_we_read():
    unit = UnitId(4, "leader", 0)
    (role,) = NEW.roles
    pod = PODS.decode(orjson.dumps(rendered_pod(infer(), NEW, role, unit, 0, OWNER)))
    assert (pod.unit, pod.index, pod.revision, pod.infer) == (unit, 0, NEW.revision, "m")


@pytest.mark.parametrize("name", ["x", "m-3-leader-2", "m-3-leader-2-x", "m-4-leader-2-1", "other-3-leader-2-1"])
def test_a_pod_with_our_labels_and_another_name_is_none_of_ours(name):
    assert decoded(name=name).infer == ""


def test_readiness_and_its_time_are_kept_in_both_directions():
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": TIME}]
    pod = decoded(status={"phase": "Running", "conditions": conditions})
    assert (pod.ready, pod.ready_changed) == (False, datetime(2026, 1, 1, 10, tzinfo=UTC))


def test_restarts_of_a_sidecar_are_not_the_engines():
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": TIME}}
    status = {"initContainerStatuses": [{"name": "peers", "restartCount": 3, "lastState": ended}]}
    spec = {"initContainers": [{"name": "peers", "restartPolicy": "Always"}, {"name": "fetch"}]}
    pod = decoded(status=status, spec=spec)
    assert (pod.restarts, pod.last_exit) == (0, None)
    assert decoded(status=status, spec={"initContainers": [{"name": "peers"}]}).restarts == 3


def test_the_newest_exit_counts_and_a_finished_init_container_does_not():
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": TIME}}
    well = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T11:00:00Z"}}
    status = {
        "initContainerStatuses": [{"name": "fetch", "state": well}],
        "containerStatuses": [{"name": "engine", "restartCount": 2, "lastState": ended, "state": {"running": {}}}],
    }
    pod = decoded(status=status)
    assert (pod.restarts, pod.exit_reason, pod.last_exit) == (2, "OOMKilled", datetime(2026, 1, 1, 10, tzinfo=UTC))
    assert decoded(status={"initContainerStatuses": [{"name": "fetch", "state": well}]}).last_exit is None


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("ErrImagePull", "ImagePullBackOff"),
        ("ImagePullBackOff", "ImagePullBackOff"),
        ("ContainerCreating", ""),
        ("PodInitializing", ""),
        ("CrashLoopBackOff", "CrashLoopBackOff"),
    ],
)
def test_a_reason_to_wait_is_kept_when_it_is_one_and_does_not_alternate(reason, kept):
    status = {"containerStatuses": [{"name": "engine", "state": {"waiting": {"reason": reason}}}]}
    assert decoded(status=status).waiting == kept


def test_a_mark_is_read_from_annotations_and_a_cost_that_is_no_number_is_none():
    annotations = {
        "modelinfer.matrixinfer.ai/draining-since": TIME,
        "modelinfer.matrixinfer.ai/removal": "group/Rollout",
        "controller.kubernetes.io/pod-deletion-cost": "dear",
    }
    pod = decoded(metadata={"annotations": annotations})
    assert pod.removal is not None
    assert (pod.removal.scope, pod.removal.cause, pod.deletion_cost) == (Scope.GROUP, Cause.ROLLOUT, 0)


def test_the_port_named_http_is_where_the_engine_answers():
    containers = [{"name": "engine", "ports": [{"containerPort": 1}, {"name": "http", "containerPort": 8000}]}]
    assert decoded(spec={"containers": containers}).port == 8000
    assert decoded().port == 0


def test_ten_thousand_pods_fit_into_a_few_ten_mebibytes():
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    raws = [pod_bytes(name=f"m-{n}-leader-0-0", status=status, spec={"nodeName": "node-1"}) for n in range(500)]
    tracemalloc.start()
    kept = [PODS.decode(raw) for raw in raws]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(kept) < 2_000, "bytes for each pod"


def test_a_service_and_a_record_read_back():
    unit = UnitId(0, "leader", 0)
    service = SERVICES.decode(orjson.dumps(headless_service(infer(), unit, OWNER)))
    assert (service.name, service.infer, service.publishes_not_ready) == ("m-0-leader-0-0", "m", True)
    record = REVISIONS.decode(orjson.dumps(render(infer(), OWNER, 3)))
    assert record.template is not None
    assert (record.revision, record.number, record.template.revision) == (NEW.revision, 3, NEW.revision)


def test_a_node_is_ready_or_not_and_since_when():
    condition = {"type": "Ready", "status": "Unknown", "lastTransitionTime": TIME}
    node = NODES.decode(orjson.dumps({"metadata": {"name": "n"}, "status": {"conditions": [condition]}}))
    assert (node.ready, node.since) == (False, datetime(2026, 1, 1, 10, tzinfo=UTC))


# ---------------------------------------------------------------------- ModelInfers

ROLE = {"name": "leader", "entryTemplate": {"spec": {"containers": [{"name": "e", "image": "i"}]}}, "workerReplicas": 0}


def read(spec=None, **given):
    metadata = {"name": "m", "namespace": "default", "uid": UID, "generation": 4, **given.pop("metadata", {})}
    spec = {"template": {"roles": [ROLE]}} if spec is None else spec
    return INFERS.decode(orjson.dumps({"metadata": metadata, "spec": spec, **given}))


def test_a_small_modelinfer_has_every_default():
    found = read()
    assert (found.key, found.generation, found.replicas, found.problem) == (Key("default", "m"), 4, 1, "")
    assert (found.max_unavailable, found.max_surge, found.partition) == (1, 0, 0)
    assert (found.policy, found.strategy) == (
        RecoveryPolicy.ROLE_RECREATE,
        RolloutStrategyType.INFER_GROUP_ROLLING_UPDATE,
    )


def test_everything_that_a_spec_says_is_read():
    found = read(
        {
            "replicas": 3,
            "schedulerName": "volcano",
            "recoveryPolicy": "None",
            "backoffLimit": 2,
            "rolloutStrategy": {
                "type": "RoleRollingUpdate",
                "rollingUpdateConfiguration": {"maxUnavailable": "25%", "maxSurge": 2, "partition": 1},
            },
            "template": {"roles": [ROLE], "restartGracePeriodSeconds": 9, "gangSchedule": {"enable": True}},
        }
    )
    assert (found.replicas, found.policy, found.backoff_limit, found.wants_gang) == (3, RecoveryPolicy.NONE, 2, True)
    assert (found.max_unavailable, found.max_surge, found.partition) == ("25%", 2, 1)
    assert (found.strategy, found.restart_grace) == (RolloutStrategyType.ROLE_ROLLING_UPDATE, timedelta(seconds=9))


def test_the_status_comes_back_as_it_was_written():
    status = {"currentRevision": "abc", "recoveries": [{"name": "m-0", "attempts": 2, "lastTime": TIME}]}
    found = read(status=status)
    assert (found.current_revision, found.status) == ("abc", status)
    assert found.recoveries[0].attempts == 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, "spec.template"),
        ({"template": {"roles": []}}, "spec.template.roles"),
        ({"template": {"roles": [{**ROLE, "name": "Leader"}]}}, "lower case"),
        ({"template": {"roles": [{**ROLE, "workerReplicas": 2}]}}, "workerTemplate"),
        ({"template": {"roles": [{**ROLE, "replicas": "many"}]}}, "replicas"),
        (
            {
                "template": {"roles": [ROLE]},
                "rolloutStrategy": {"rollingUpdateConfiguration": {"maxSurge": "some"}},
            },
            "maxSurge",
        ),
    ],
)
def test_a_spec_that_cannot_be_carried_out_is_kept_with_the_reason(spec, told):
    found = read(spec, status={"conditions": [{"type": "Broken"}]})
    assert told in found.problem
    assert found.uid == UID


def test_names_that_would_be_too_long_are_told():
    assert "shorten the name" in read(metadata={"name": "m" * 60}).problem
