"""The model-controller's planner in simulated clusters: converges, undoes nobody's scaling, survives kills and lag."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.kube.plan import Apply, Delete, Plan
from matrixinfer.kube.resource import Key, Manifest
from matrixinfer.model_controller.app import FIELD_MANAGER, watched
from matrixinfer.model_controller.desired import desired
from matrixinfer.model_controller.drift import has_drifted
from matrixinfer.model_controller.observe import Observer, Seen
from matrixinfer.model_controller.plan import plan
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.resources import CHILDREN, INFERS, MODELS, ROUTES, SERVICE_ACCOUNTS, VERSIONS
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.planner_suite import Edit, Moment, PlannerWorld, View, planner_suite

NAMES = ("m", "n")
ENVIRONMENT = RenderEnvironment()
POLICY = {"metrics": [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 4}]}


class Planner:
    """The planner of a process that just started."""

    def __init__(self, view: View) -> None:
        self._observer = Observer(watched(view))

    def observe(self, key: Key) -> Seen | None:
        return self._observer.observe(key)

    def plan(self, seen: Seen, now: datetime) -> Plan:
        return plan(seen, ENVIRONMENT, now)


# ---------------------------------------------------------------------- worlds


def backend(name: str, image: int, least: int, spread: int, weight: int, policy: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "type": "LlamaCpp",
        "modelURI": "s3://models/a",
        "minReplicas": least,
        "maxReplicas": least + spread,
        "routeWeight": weight,
        "workers": [{"image": f"example/engine:{image}"}],
    }
    return {**made, "autoscalingPolicy": POLICY} if policy else made


BACKENDS = st.lists(
    st.builds(
        backend,
        st.sampled_from(["a", "b"]),
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(0, 2),
        st.sampled_from([1, 100]),
        st.booleans(),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda made: made["name"],
)
SPECS = st.builds(
    lambda backends, limit, name: {
        "backends": backends,
        "versionHistoryLimit": limit,
        **({"name": name} if name else {}),
    },
    BACKENDS,
    st.integers(0, 2),
    st.sampled_from(["", "", "Org/Other"]),
)


def model(name: str, spec: Mapping[str, Any]) -> Manifest:
    return with_defaults(
        {
            "apiVersion": MODELS.api_version,
            "kind": "Model",
            "metadata": {"name": name, "namespace": "default"},
            "spec": dict(spec),
        }
    )


def respecified(name: str, spec: Mapping[str, Any]) -> Edit:
    return lambda api: api.apply(MODELS, model(name, spec), field_manager="user", force=True)


def pinned(name: str, choice: int) -> Edit:
    def edit(api: MemoryApi) -> None:
        versions = [v["metadata"]["name"] for v in api.list(VERSIONS) if v["spec"]["modelName"] == name]
        found = api.get(MODELS, Key("default", name))
        wanted = [*versions, "nothing"][choice % (len(versions) + 1)]
        backends = [dict(found["spec"]["backends"][0], versionName=wanted), *found["spec"]["backends"][1:]]
        api.merge_patch(MODELS, Key("default", name), {"spec": {"backends": backends}}, field_manager="user")

    return edit


def served(choice: int, updated: int, available: bool) -> Edit:
    """The infer-controller reports on one ModelInfer."""

    def edit(api: MemoryApi) -> None:
        infers = api.list(INFERS)
        if not infers:
            return
        infer = infers[choice % len(infers)]
        replicas = infer["spec"]["replicas"]
        condition = {
            "type": "Available",
            "status": str(available),
            "reason": "AllGroupsReady",
            "message": "told by a test",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        }
        status = {
            "observedGeneration": infer["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": min(updated, replicas),
            "readyReplicas": replicas,
            "conditions": [condition],
        }
        place = {"name": infer["metadata"]["name"], "namespace": "default"}
        api.apply(
            INFERS, {"metadata": place, "status": status}, field_manager="infer", subresource="status", force=True
        )

    return edit


def scaled(choice: int, replicas: int) -> Edit:
    def edit(api: MemoryApi) -> None:
        infers = api.list(INFERS)
        if infers:
            name = infers[choice % len(infers)]["metadata"]["name"]
            api.scale(INFERS, Key("default", name), replicas=replicas)

    return edit


def tampered(choice: int) -> Edit:
    def edit(api: MemoryApi) -> None:
        routes = api.list(ROUTES)
        if routes:
            name = routes[choice % len(routes)]["metadata"]["name"]
            api.merge_patch(ROUTES, Key("default", name), {"spec": {"rules": []}}, field_manager="user")

    return edit


CHOICE = st.integers(0, 5)
EDITS = st.one_of(
    st.builds(respecified, st.sampled_from(NAMES), SPECS),
    st.builds(pinned, st.sampled_from(NAMES), CHOICE),
    st.builds(served, CHOICE, st.integers(0, 3), st.booleans()),
    st.builds(scaled, CHOICE, st.integers(0, 4)),
    st.builds(tampered, CHOICE),
    st.sampled_from(NAMES).map(lambda name: lambda api: api.delete(MODELS, Key("default", name), field_manager="user")),
)


# ---------------------------------------------------------------------- what must hold


def owned(api: MemoryApi, resource: Any, uid: str) -> dict[str, Any]:
    return {
        found["metadata"]["name"]: found
        for found in api.list(resource)
        if any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences", ()))
    }


def settled(api: MemoryApi) -> str:
    uids = {found["metadata"]["uid"] for found in api.list(MODELS)}
    for resource in (*CHILDREN, VERSIONS, SERVICE_ACCOUNTS):
        for found in api.list(resource):
            if not any(owner["uid"] in uids for owner in found["metadata"].get("ownerReferences", ())):
                return f"{resource.kind} {found['metadata']['name']} is left of a Model that is gone"
    return next((fault for found in api.list(MODELS) if (fault := wrong(api, found))), "")


def wrong(api: MemoryApi, manifest: Mapping[str, Any]) -> str:
    typed, uid = Model.model_validate(manifest), manifest["metadata"]["uid"]
    recorded = {name: ModelVersion.model_validate(v) for name, v in owned(api, VERSIONS, uid).items()}
    status = manifest.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    if status.get("observedGeneration") != manifest["metadata"]["generation"]:
        return "the status speaks of an older generation"
    try:
        wanted = desired(typed, recorded, ENVIRONMENT)
    except RenderError as refusal:
        return "" if conditions["Failed"]["reason"] == refusal.reason else f"{refusal} is not told"
    if conditions["Failed"]["status"] != "False" or conditions["Initialized"]["status"] != "True":
        return f"conditions say {conditions}"
    for child in wanted.children:
        if has_drifted(api.find(child.resource, Key("default", child.name)), child.manifest):
            return f"{child.resource.kind} {child.name} is not as it should be"
    wanted_names = {(child.resource, child.name) for child in wanted.children}
    for resource in CHILDREN:
        for name in owned(api, resource, uid):
            if (resource, name) not in wanted_names:
                return f"{resource.kind} {name} is not wanted"
    for spec in typed.spec.backends:
        replicas = api.get(INFERS, Key("default", f"{typed.metadata.name}-{spec.name}"))["spec"]["replicas"]
        most = spec.max_replicas if spec.autoscaling_policy is None else 1_000_000
        if not spec.min_replicas <= replicas <= most:
            return f"{replicas} replicas are out of bounds"
    return wrong_versions(typed, recorded, {served.name for served in wanted.served})


def wrong_versions(typed: Model, recorded: Mapping[str, ModelVersion], in_use: set[str]) -> str:
    if missing := in_use - recorded.keys():
        return f"versions {missing} are not recorded"
    active = {
        n for n, v in recorded.items() if any(c.type == "Active" and c.status == "True" for c in v.status.conditions)
    }
    for spec in typed.spec.backends:
        spare = {n for n, v in recorded.items() if v.spec.backend_name == spec.name} - in_use - active
        if len(spare) > typed.spec.version_history_limit:
            return f"{len(spare)} spare versions are kept"
    return ""


def check(moment: Moment) -> None:
    """No apply touches replicas, and while the Model is as it was seen no wanted child is deleted."""
    if isinstance(moment.write, Apply) and moment.write.resource == INFERS:
        assert "replicas" not in moment.write.manifest["spec"]
        name = moment.write.manifest["metadata"]["name"]
        before, after = (api.find(INFERS, Key("default", name)) for api in (moment.before, moment.after))
        assert before is None or after is None or before["spec"]["replicas"] == after["spec"]["replicas"]
    if isinstance(moment.write, Delete) and moment.write.resource == INFERS and moment.fresh:
        backends = {
            f"{found['metadata']['name']}-{spec['name']}"
            for found in moment.before.list(MODELS)
            for spec in found["spec"]["backends"]
        }
        assert moment.write.key.name not in backends


def prepare(api: MemoryApi) -> None:
    api.register_crds(Path(__file__).parents[3] / "crds")


WORLD = PlannerWorld(
    name="model-controller",
    primary=MODELS,
    start=st.builds(
        lambda first, second: [(MODELS, model("m", first))] + ([(MODELS, model("n", second))] if second else []),
        SPECS,
        st.one_of(st.none(), SPECS),
    ),
    planner=Planner,
    settled=settled,
    field_manager=FIELD_MANAGER,
    edits=EDITS,
    check=check,
    prepare=prepare,
)

TestModelPlanner = planner_suite(WORLD, max_examples=25)
