"""The planner suite accepts a sound planner and catches each kind of unsound one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st

from matrixinfer.kube.codec import PODS_SLIM, PodView
from matrixinfer.kube.plan import Create, Delete, Plan, WriteStatus
from matrixinfer.kube.resource import PODS, Key, Manifest, Resource
from matrixinfer.kube.store import Store
from matrixinfer.testkit import builders
from matrixinfer.testkit.kinds import KindSpec
from matrixinfer.testkit.memory import MemoryApi
from matrixinfer.testkit.planner_suite import Edit, Moment, PlannerWorld, View, planner_suite

WIDGETS = Resource("example.org", "v1", "widgets", "Widget")
KEY = Key("default", "w")
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Seen:
    widget: Manifest
    pods: tuple[PodView, ...]


def _desired(widget: Mapping[str, Any], ordinal: int) -> dict[str, Any]:
    return builders.pod(
        f"{widget['metadata']['name']}-{ordinal}",
        labels={"image": widget["spec"]["image"]},
        owner=widget,
        containers=[builders.container(image=widget["spec"]["image"])],
    )


class Sound:
    """Keeps `replicas` pods of one image; replaces at most one healthy pod at a time."""

    def __init__(self, view: View) -> None:
        self.widgets: Store[Manifest] = view.watch(WIDGETS)
        self.pods = view.watch(PODS, project=PODS_SLIM, indexes={"owner": lambda pod: pod.owner_uids})

    def observe(self, key: Key) -> Seen | None:
        widget = self.widgets.get(key)
        if widget is None or "deletionTimestamp" in widget["metadata"]:
            return None
        owned = self.pods.by_index("owner", widget["metadata"]["uid"])
        return Seen(widget, tuple(sorted(owned, key=lambda pod: pod.name)))

    def plan(self, seen: Seen, now: datetime) -> Plan:
        widget: Any = seen.widget
        names = {f"w-{ordinal}": ordinal for ordinal in range(widget["spec"]["replicas"])}
        here = {pod.name: pod for pod in seen.pods}
        creates = [Create(PODS, _desired(widget, n)) for name, n in names.items() if name not in here]
        deletes = [self._delete(pod) for pod in seen.pods if not pod.deleting and self._is_useless(pod, names)]
        outdated = [
            pod
            for pod in seen.pods
            if not pod.deleting and pod.labels["image"] != widget["spec"]["image"] and pod.name in names
        ]
        all_ready = len(here) == len(names) and all(pod.ready for pod in seen.pods)
        if outdated and all_ready and not deletes:
            deletes.append(self._delete(outdated[0]))
        ready = sum(pod.ready for pod in seen.pods)
        return Plan("keep replicas", waves=(creates, deletes), status=[self._status(widget, ready)])

    def _is_useless(self, pod: PodView, names: Mapping[str, int]) -> bool:
        return pod.phase == "Failed" or pod.name not in names

    @staticmethod
    def _delete(pod: PodView) -> Delete:
        return Delete(PODS, pod.key, pod.uid)

    @staticmethod
    def _status(widget: Any, ready: int) -> WriteStatus:
        return WriteStatus(WIDGETS, KEY, widget["metadata"]["uid"], {"ready": ready}, widget.get("status", {}))


class Flapping(Sound):
    """Writes something new on every pass."""

    def plan(self, seen: Seen, now: datetime) -> Plan:
        plan = super().plan(seen, now)
        return replace(plan, status=[self._status(seen.widget, now.toordinal() * 86400 + now.second + now.minute * 60)])


class Blind(Sound):
    """Never replaces a failed pod."""

    def _is_useless(self, pod: PodView, names: Mapping[str, int]) -> bool:
        return pod.name not in names


class Mutating(Sound):
    """Edits the object from the store."""

    def plan(self, seen: Seen, now: datetime) -> Plan:
        widget: Any = seen.widget
        widget["spec"]["touched"] = True
        return super().plan(seen, now)


class Hasty(Sound):
    """Replaces every outdated pod at once."""

    def plan(self, seen: Seen, now: datetime) -> Plan:
        plan = super().plan(seen, now)
        widget: Any = seen.widget
        outdated = [p for p in seen.pods if not p.deleting and p.labels["image"] != widget["spec"]["image"]]
        return replace(plan, waves=(*plan.waves, [self._delete(pod) for pod in outdated]))


class Impatient(Sound):
    """Takes a pod that it has not seen run for a minute for a stuck one."""

    def plan(self, seen: Seen, now: datetime) -> Plan:
        plan = super().plan(seen, now)
        stuck = [
            p for p in seen.pods if p.phase == "Pending" and not p.deleting and p.created and now - p.created > MINUTE
        ]
        return replace(plan, waves=(*plan.waves, [self._delete(pod) for pod in stuck]))


class Forgetful(Sound):
    """Needs what it remembered: after a crash it never finishes."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.begun = not self.widgets.values()

    def plan(self, seen: Seen, now: datetime) -> Plan:
        if not seen.pods:
            self.begun = True
        return super().plan(seen, now) if self.begun else Plan("not mine", again_after=timedelta(seconds=30))


def settled(api: MemoryApi) -> str:
    widget = api.find(WIDGETS, KEY)
    pods = api.list(PODS)
    if widget is None:
        return "pods are left" if pods else ""
    ready = [
        p
        for p in pods
        if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))
    ]
    if len(ready) != widget["spec"]["replicas"] or len(pods) != len(ready):
        return f"{len(ready)} of {widget['spec']['replicas']} pods are ready, {len(pods)} exist"
    if any(pod["spec"]["containers"][0]["image"] != widget["spec"]["image"] for pod in pods):
        return "a pod has the old image"
    return "" if widget.get("status", {}).get("ready") == len(ready) else "the status is wrong"


def one_at_a_time(moment: Moment) -> None:
    if not moment.fresh or not isinstance(moment.write, Delete):
        return
    going = [
        p for p in moment.after.list(PODS) if "deletionTimestamp" in p["metadata"] and p["status"]["phase"] == "Running"
    ]
    names = {f"w-{n}" for n in range(moment.after.get(WIDGETS, moment.key)["spec"]["replicas"])}
    healthy = [p for p in going if p["metadata"]["name"] in names]
    assert len(healthy) <= 1, "two wanted pods are going at the same time"


@dataclass(frozen=True)
class Set:
    member: str
    value: Any

    def __call__(self, api: MemoryApi) -> None:
        api.merge_patch(WIDGETS, KEY, {"spec": {self.member: self.value}}, field_manager="user")


def delete_widget(api: MemoryApi) -> None:
    api.delete(WIDGETS, KEY, field_manager="user")


def world(planner: Callable[[View], Sound], *, check: Callable[[Moment], None] = lambda _moment: None) -> PlannerWorld:
    widget = builders.custom(WIDGETS, "w", spec={"replicas": 2, "image": "a"})
    edits: st.SearchStrategy[Edit] = st.one_of(
        st.builds(Set, st.just("replicas"), st.integers(0, 3)),
        st.builds(Set, st.just("image"), st.sampled_from("abc")),
        st.just(delete_widget),
    )
    return PlannerWorld(
        name="widgets",
        primary=WIDGETS,
        start=st.just([(WIDGETS, widget)]),
        planner=planner,
        settled=settled,
        edits=edits,
        check=check,
        prepare=lambda api: api.register(KindSpec(WIDGETS, status=True, has_generation=True)),
        rounds=60,
    )


TestSoundPlanner = planner_suite(world(Sound), max_examples=50)

CONVERGES = "test_any_reachable_world_converges_and_falls_silent"
KILLED = "test_a_killed_and_lagging_controller_converges"
PURE = "test_a_plan_depends_on_what_was_seen_and_changes_none_of_it"
STALE = "test_a_stale_cache_destroys_nothing_that_a_fresh_one_keeps"


@pytest.mark.parametrize(
    ("planner", "test", "claim"),
    [
        (Flapping, CONVERGES, "still writing"),
        (Blind, CONVERGES, "settled in a wrong state"),
        (Hasty, CONVERGES, "going at the same time"),
        (Mutating, PURE, "changed its input"),
        (Impatient, STALE, "stale cache would destroy"),
        (Forgetful, KILLED, "settled in a wrong state"),
    ],
)
def test_the_suite_catches(planner: Callable[[View], Sound], test: str, claim: str) -> None:
    check = one_at_a_time if planner is Hasty else (lambda _moment: None)
    suite = planner_suite(world(planner, check=check), max_examples=800, shrink=False)
    with pytest.raises(AssertionError, match=claim):
        getattr(suite(), test)()
