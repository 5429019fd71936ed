"""The autoscaler's planner in simulated worlds: converges, stays in bounds, writes nothing when settled.

The rounds are replaced by a verdict that always wants five replicas within the bounds; everything else is the planner
that ships, over caches that lag and processes that die.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.autoscaler.app import stores
from matrixinfer.autoscaler.core.decide import Decision, History
from matrixinfer.autoscaler.core.recommend import Vote
from matrixinfer.autoscaler.core.signals import Signal
from matrixinfer.autoscaler.observe import Stores
from matrixinfer.autoscaler.plan import plan_binding
from matrixinfer.autoscaler.seen import BindingSeen, Verdict
from matrixinfer.autoscaler.views import BINDING, INFER, POLICY
from matrixinfer.kube.plan import Plan, Scale
from matrixinfer.kube.resource import Key, Manifest, Resource
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.planner_suite import Edit, Moment, PlannerWorld, View, planner_suite

ROUND = datetime(2026, 1, 1, tzinfo=UTC)
INFER_KEY, POLICY_KEY, KEY = Key("default", "m"), Key("default", "p"), Key("default", "b")
WANTED = 5


def wanted(scaling: Any) -> int:
    return max(min(WANTED, scaling.max_replicas), min(scaling.min_replicas, scaling.max_replicas))


class Rounds:
    """A round that is always up to date with what the caches show."""

    def __init__(self, caches: Stores) -> None:
        self._caches = caches

    def latest(self, key: Key, uid: str) -> Verdict | None:
        seen = self._caches.seen(key)
        if seen is None or seen.infer is None or seen.binding.spec.scaling_configuration is None:
            return None
        replicas = wanted(seen.binding.spec.scaling_configuration)
        votes = (Vote(Signal("waiting", 1, float(replicas), 1, 0), replicas),)
        decision = Decision(replicas, replicas, False, f"{replicas} are wanted", votes, History())
        return Verdict(ROUND, seen.infer.metadata.uid, seen.infer.replicas, decision)


class Planner:
    def __init__(self, view: View) -> None:
        # A view has the one method of a cache that declaring watches needs.
        self._caches = stores(view)  # type: ignore[arg-type]
        self._rounds = Rounds(self._caches)

    def observe(self, key: Key) -> BindingSeen | None:
        return self._caches.seen(key, self._rounds)

    def plan(self, seen: BindingSeen, now: datetime) -> Plan:
        return plan_binding(seen, now)


def manifest(resource: Resource, key: Key, spec: dict[str, Any]) -> Manifest:
    return with_defaults(
        {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": spec,
        }
    )


def infer(replicas: int) -> tuple[Resource, Manifest]:
    roles = [{"name": "leader", "entryTemplate": {"spec": {"containers": [{"name": "engine", "image": "e"}]}}}]
    return INFER, manifest(INFER, INFER_KEY, {"replicas": replicas, "template": {"roles": roles}})


def policy(*, dry_run: bool) -> tuple[Resource, Manifest]:
    metrics = [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 1}]
    return POLICY, manifest(POLICY, POLICY_KEY, {"metrics": metrics, "dryRun": dry_run})


def binding(bounds: tuple[int, int]) -> tuple[Resource, Manifest]:
    scaling = {
        "target": {"targetRef": {"kind": "ModelInfer", "name": INFER_KEY.name}},
        "minReplicas": bounds[0],
        "maxReplicas": bounds[1],
    }
    return BINDING, manifest(BINDING, KEY, {"policyRef": {"name": POLICY_KEY.name}, "scalingConfiguration": scaling})


BOUNDS = st.tuples(st.integers(0, 4), st.integers(0, 6)).map(lambda pair: (pair[0], max(sum(pair), 1)))
STARTS = st.tuples(
    st.none() | st.integers(0, 12).map(infer), st.none() | st.booleans().map(lambda dry: policy(dry_run=dry)), BOUNDS
).map(lambda parts: [part for part in (*parts[:2], binding(parts[2])) if part is not None])


class Create:
    def __init__(self, made: tuple[Resource, Manifest]) -> None:
        self.made = made

    def __call__(self, api: MemoryApi) -> None:
        api.create(*self.made, field_manager="user")

    def __repr__(self) -> str:
        return f"create {self.made[0].kind}"


class Patch:
    def __init__(self, resource: Resource, key: Key, spec: dict[str, Any]) -> None:
        self.resource, self.key, self.spec = resource, key, spec

    def __call__(self, api: MemoryApi) -> None:
        api.merge_patch(self.resource, self.key, {"spec": self.spec}, field_manager="user")

    def __repr__(self) -> str:
        return f"patch {self.resource.kind} {self.spec}"


def bounds_patch(bounds: tuple[int, int]) -> Edit:
    return Patch(BINDING, KEY, {"scalingConfiguration": {"minReplicas": bounds[0], "maxReplicas": bounds[1]}})


EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.integers(0, 12).map(lambda count: Patch(INFER, INFER_KEY, {"replicas": count})),
    BOUNDS.map(bounds_patch),
    st.booleans().map(lambda dry: Patch(POLICY, POLICY_KEY, {"dryRun": dry})),
    st.booleans().map(lambda dry: Create(policy(dry_run=dry))),
    st.integers(0, 12).map(lambda count: Create(infer(count))),
)


def settled(api: MemoryApi) -> str:
    """ "" when replicas are those that are wanted, or the status says why they are not."""
    found: Any = api.find(BINDING, KEY)
    target: Any = api.find(INFER, INFER_KEY)
    rule: Any = api.find(POLICY, POLICY_KEY)
    if found is None:
        return ""
    conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", ())}
    if target is None or rule is None:
        expected = "TargetNotFound" if target is None else "PolicyNotFound"
        said = conditions["Ready"]["reason"]
        return "" if said == expected else f"Ready says {said}, not {expected}"
    scaling = found["spec"]["scalingConfiguration"]
    count = max(min(WANTED, scaling["maxReplicas"]), min(scaling["minReplicas"], scaling["maxReplicas"]))
    if found["status"]["desiredReplicas"] != count:
        return f"status wants {found['status']['desiredReplicas']}, not {count}"
    if not rule["spec"].get("dryRun") and target["spec"]["replicas"] != count:
        return f"{target['spec']['replicas']} replicas, not {count}"
    return "" if conditions["Ready"]["status"] == "True" else f"not ready: {conditions['Ready']}"


def check(moment: Moment) -> None:
    """Only replicas and status are written, and replicas within the bounds that the planner saw."""
    if not isinstance(moment.write, Scale):
        assert moment.write.resource == BINDING
        return
    assert moment.write.resource == INFER
    assert 0 <= moment.write.replicas <= 10


WORLD = PlannerWorld(
    name="autoscaler",
    primary=BINDING,
    prepare=lambda api: api.register_crds(Path(__file__).parents[3] / "crds"),
    start=STARTS,
    edits=EDITS,
    planner=Planner,
    settled=settled,
    check=check,
    field_manager="matrixinfer-autoscaler",
)
TestAutoscalerPlanner = planner_suite(WORLD, max_examples=40)
