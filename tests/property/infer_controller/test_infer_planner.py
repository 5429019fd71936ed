"""The infer-controller's planner in simulated clusters: converges, keeps budgets, survives kills and stale caches."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from matrixinfer.api import intstr, names
from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.infer_controller.fleet import Seen, Timing
from matrixinfer.infer_controller.observe import LostNodes, Observer, Stores
from matrixinfer.infer_controller.plan import MODEL_INFERS, plan
from matrixinfer.kube.plan import Merge, Plan
from matrixinfer.kube.resource import CONTROLLER_REVISIONS, NODES, PODS, SERVICES, Key, Manifest, Resource
from matrixinfer.kube.store import Store
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.planner_suite import Edit, Moment, PlannerWorld, View, planner_suite

KEY = Key("default", "m")
FIELD_MANAGER = "matrixinfer-infer-controller"
TIMING = Timing(
    settle=timedelta(seconds=2),
    backoff_base=timedelta(seconds=2),
    backoff_cap=timedelta(seconds=20),
    backoff_reset=timedelta(seconds=60),
)


class WithoutNodes:
    """A view whose nodes nobody watches: the suite deletes what is watched, and without nodes nothing converges."""

    def __init__(self, view: View) -> None:
        self._view = view

    def watch(self, resource: Resource, *, project: Any, label_selector: str = "", indexes: Any = None) -> Any:
        if resource == NODES:
            return Store(resource, project)
        return self._view.watch(resource, project=project, label_selector=label_selector, indexes=indexes)


class Planner:
    """The planner of a process that just started, without the pacing of status writes."""

    def __init__(self, view: View) -> None:
        stores = Stores.declared(WithoutNodes(view))
        lost = LostNodes(stores.nodes, stores.pods, lambda _key: None)
        self._observer = Observer(
            stores, lost_nodes=lambda: lost.believed, in_flight=dict, timing=TIMING, history_limit=2
        )

    def observe(self, key: Key) -> Seen | None:
        return self._observer.observe(key)

    def plan(self, seen: Seen, now: datetime) -> Plan:
        return plan(seen, now)


# ---------------------------------------------------------------------- worlds


def template(image: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", "image": image}]}}


def role(name: str, replicas: int, workers: int, image: str) -> dict[str, Any]:
    made = {"name": name, "replicas": replicas, "workerReplicas": workers, "entryTemplate": template(image)}
    return {**made, "workerTemplate": template(image)} if workers else made


IMAGES = st.sampled_from(["engine:1", "engine:2", "engine:3"])
ROLES = st.one_of(
    st.builds(lambda r, w, i: [role("leader", r, w, i)], st.integers(1, 2), st.integers(0, 2), IMAGES),
    st.builds(
        lambda p, d, w, i, j: [role("prefill", p, 0, i), role("decode", d, w, j)],
        st.integers(1, 2),
        st.integers(0, 2),
        st.integers(0, 1),
        IMAGES,
        IMAGES,
    ),
)
BUDGETS = st.sampled_from([(1, 0), (1, 1), (0, 1), (2, 0), (0, 2), ("50%", 0), ("25%", "25%"), (0, 0)])
PARTITIONS = st.sampled_from([0, 0, 0, 1, 2])
STRATEGIES = st.sampled_from(["InferGroupRollingUpdate", "RoleRollingUpdate"])


def manifest(
    replicas: int, roles: list[Any], budgets: tuple[Any, Any], partition: int, strategy: str, policy: str, grace: int
) -> Manifest:
    return with_defaults(
        {
            "apiVersion": MODEL_INFERS.api_version,
            "kind": MODEL_INFERS.kind,
            "metadata": {"name": KEY.name, "namespace": KEY.namespace},
            "spec": {
                "replicas": replicas,
                "recoveryPolicy": policy,
                "rolloutStrategy": {
                    "type": strategy,
                    "rollingUpdateConfiguration": {
                        "maxUnavailable": budgets[0],
                        "maxSurge": budgets[1],
                        "partition": partition,
                    },
                },
                "template": {"restartGracePeriodSeconds": grace, "roles": roles},
            },
        }
    )


STARTS = st.builds(
    manifest,
    st.integers(0, 4),
    ROLES,
    BUDGETS,
    PARTITIONS,
    STRATEGIES,
    st.sampled_from(["InferGroupRecreate", "RoleRecreate", "None"]),
    st.sampled_from([0, 0, 5]),
).map(lambda made: [(MODEL_INFERS, made)])


class Patch:
    """A user changes part of the spec."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def __call__(self, api: MemoryApi) -> None:
        api.merge_patch(MODEL_INFERS, KEY, {"spec": self.spec}, field_manager="user")

    def __repr__(self) -> str:
        return f"Patch({self.spec})"


def scaled(replicas: int) -> Edit:
    return lambda api: api.scale(MODEL_INFERS, KEY, replicas=replicas, field_manager="user")  # type: ignore[return-value]


def recreated(api: MemoryApi) -> None:
    """Delete and make anew under the same name; the old pods are still there."""
    old = api.get(MODEL_INFERS, KEY)
    api.delete(MODEL_INFERS, KEY, field_manager="user")
    fresh = {"apiVersion": old["apiVersion"], "kind": old["kind"], "spec": old["spec"]}
    api.create(
        MODEL_INFERS, {**fresh, "metadata": {"name": KEY.name, "namespace": KEY.namespace}}, field_manager="user"
    )


EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.integers(0, 5).map(scaled),
    ROLES.map(lambda roles: Patch({"template": {"roles": roles}})),
    PARTITIONS.map(lambda p: Patch({"rolloutStrategy": {"rollingUpdateConfiguration": {"partition": p}}})),
    BUDGETS.map(
        lambda b: Patch({"rolloutStrategy": {"rollingUpdateConfiguration": {"maxUnavailable": b[0], "maxSurge": b[1]}}})
    ),
    STRATEGIES.map(lambda s: Patch({"rolloutStrategy": {"type": s}})),
    st.just(recreated),
    st.just(lambda api: api.delete(MODEL_INFERS, KEY, field_manager="user")),
)


# ---------------------------------------------------------------------- what must hold


def children(api: MemoryApi, owner_uid: str) -> list[Any]:
    return [
        pod
        for pod in api.list(PODS)
        if any(owner["uid"] == owner_uid for owner in pod["metadata"].get("ownerReferences", ()))
    ]


def is_ready(pod: Mapping[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def by_ordinal(pods: list[Any]) -> dict[int, list[Any]]:
    groups: defaultdict[int, list[Any]] = defaultdict(list)
    for pod in pods:
        groups[int(pod["metadata"]["labels"][names.INFER_GROUP_NAME].rpartition("-")[2])].append(pod)
    return dict(groups)


def wanted_names(infer: Mapping[str, Any], ordinal: int) -> set[str]:
    return {
        names.pod_name(KEY.name, ordinal, role["name"], replica, index)
        for role in infer["spec"]["template"]["roles"]
        for replica in range(role["replicas"])
        for index in range(1 + role["workerReplicas"])
    }


def settled(api: MemoryApi) -> str:
    """The groups are those that the spec asks for, all ready; below the partition the template may be another."""
    infer = api.find(MODEL_INFERS, KEY)
    if infer is None:
        left = [*api.list(PODS), *api.list(SERVICES), *api.list(CONTROLLER_REVISIONS)]
        return f"{len(left)} children are left" if left else ""
    spec = infer["spec"]
    groups = by_ordinal(children(api, infer["metadata"]["uid"]))
    partition = spec["rolloutStrategy"]["rollingUpdateConfiguration"].get("partition", 0)
    if len(groups) != spec["replicas"]:
        return f"{sorted(groups)} are there and {spec['replicas']} are wanted"
    for ordinal, pods in groups.items():
        if not all(is_ready(pod) for pod in pods):
            return f"group {ordinal} is not ready"
        if any(
            "deletionTimestamp" in p["metadata"] or names.INFER_REMOVAL in p["metadata"].get("annotations", {})
            for p in pods
        ):
            return f"group {ordinal} is still being removed"
        if ordinal >= partition and (reason := wrong_shape(infer, ordinal, pods)):
            return reason
    return wrong_services(api, infer) or wrong_status(infer, partition)


def wrong_shape(infer: Mapping[str, Any], ordinal: int, pods: list[Any]) -> str:
    roles = {role["name"]: role for role in infer["spec"]["template"]["roles"]}
    for pod in pods:
        role = roles.get(pod["metadata"]["labels"][names.INFER_ROLE])
        if role is None:
            return f"{pod['metadata']['name']} is of a role that is gone"
        image = role["entryTemplate"]["spec"]["containers"][0]["image"]
        if pod["spec"]["containers"][0]["image"] != image:
            return f"{pod['metadata']['name']} was not updated to {image}"
    # After a scale-down the replicas of a role may be sparse, but their number and size are as wanted.
    counted: defaultdict[tuple[str, str], int] = defaultdict(int)
    for pod in pods:
        labels = pod["metadata"]["labels"]
        counted[labels[names.INFER_ROLE], labels[names.INFER_ROLE_ID]] += 1
    for role in roles.values():
        sizes = [count for (name, _), count in counted.items() if name == role["name"]]
        if sizes != [1 + role["workerReplicas"]] * role["replicas"]:
            return f"group {ordinal} has {sizes} pods of role {role['name']}"
    return ""


def wrong_services(api: MemoryApi, infer: Mapping[str, Any]) -> str:
    """One Service for each role replica with workers, and no other."""
    pods = children(api, infer["metadata"]["uid"])
    wanted = {
        pod["metadata"]["name"].rpartition("-")[0] + "-0" for pod in pods if not pod["metadata"]["name"].endswith("-0")
    }
    there = {service["metadata"]["name"] for service in api.list(SERVICES)}
    return "" if wanted == there else f"services {sorted(there)} are there and {sorted(wanted)} are wanted"


def wrong_status(infer: Mapping[str, Any], partition: int) -> str:
    status, replicas = infer["status"], infer["spec"]["replicas"]
    counts = {key: status.get(key, 0) for key in ("replicas", "readyReplicas", "availableReplicas")}
    if set(counts.values()) != {replicas}:
        return f"status says {counts} and there are {replicas}"
    if partition == 0 and status["currentRevision"] != status["updateRevision"]:
        return "the update is over and the status still tells two revisions"
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    if (conditions["Available"], conditions["Progressing"], conditions["UpdateInProgress"]) != (
        "True",
        "False",
        "False",
    ):
        return f"conditions say {conditions}"
    if any(c["observedGeneration"] != infer["metadata"]["generation"] for c in status["conditions"]):
        return "a condition speaks of an older generation"
    return ""


def budgets_of(infer: Mapping[str, Any]) -> tuple[int, int]:
    pace = infer["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    surge = intstr.resolve(pace["maxSurge"], infer["spec"]["replicas"], round_up=True)
    missing = intstr.resolve(pace["maxUnavailable"], infer["spec"]["replicas"], round_up=False)
    return max(missing, 0 if surge else 1), surge


def removal_of(pod: Mapping[str, Any]) -> str:
    """Why a pod is going, or nothing."""
    return str(pod["metadata"].get("annotations", {}).get(names.INFER_REMOVAL, ""))


def available(api: MemoryApi, infer: Mapping[str, Any]) -> int:
    """Groups of which nothing but surplus role replicas is going and everything is ready; as many as serve."""
    whole = 0
    for there in by_ordinal(children(api, infer["metadata"]["uid"])).values():
        pods = [p for p in there if removal_of(p) != "unit/ScaleDown"]
        staying = [p for p in pods if not removal_of(p)]
        whole += len(staying) == len(pods) and all(
            is_ready(p) and "deletionTimestamp" not in p["metadata"] for p in pods
        )
    return whole


def check(moment: Moment) -> None:
    """No write exceeds a budget: not the surge, and an update never leaves fewer groups than it may."""
    infer = moment.after.find(MODEL_INFERS, KEY)
    if infer is None or not moment.fresh:
        return
    missing, surge = budgets_of(infer)
    uid = infer["metadata"]["uid"]
    groups = [len(by_ordinal(children(api, uid))) for api in (moment.before, moment.after)]
    assert groups[1] <= max(groups[0], infer["spec"]["replicas"] + surge), f"{groups[1]} groups exist"
    if isinstance(moment.write, Merge) and "/Rollout" in str(moment.write.patch):
        before, after = available(moment.before, infer), available(moment.after, infer)
        floor = infer["spec"]["replicas"] - missing
        assert after >= min(before, floor), f"an update leaves {after} of {floor} groups"


def prepare(api: MemoryApi) -> None:
    api.register_crds(Path(__file__).parents[3] / "crds")


WORLD = PlannerWorld(
    name="infer-controller",
    primary=MODEL_INFERS,
    start=STARTS,
    planner=Planner,
    settled=settled,
    field_manager=FIELD_MANAGER,
    edits=EDITS,
    check=check,
    prepare=prepare,
    # A revision that only protected groups still have is nowhere else; without it their lost pods cannot come back.
    irreplaceable=[CONTROLLER_REVISIONS],
    rounds=250,
)

TestInferPlanner = planner_suite(WORLD, max_examples=25)
