"""Whatever happens to routes, servers and pods, in whatever order: the routing table is what the objects say now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api.v1alpha1.modelroute import ModelRoute
from matrixinfer.api.v1alpha1.modelserver import ModelServer
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.slots import SlotBook
from matrixinfer.gateway.core.split import choose_target
from matrixinfer.gateway.core.table import Table
from matrixinfer.gateway.core.types import Rule, Target
from matrixinfer.gateway.feeds.kube import ClusterView, SnapshotFeed
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import PODS_SLIM
from matrixinfer.kube.resource import Key

BORN = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACES = ("blue", "red")
LABELS: tuple[dict[str, str], ...] = (
    {},
    {"app": "a"},
    {"app": "b"},
    {"app": "a", "tier": "x"},
    {"app": "b", "tier": "x"},
    {"tier": "x"},
)
NAMES = ("m", "n", "lora")

Spec = Mapping[str, Any]


@dataclass
class Objects:
    """The objects as they are, and a feed that hears of each change; what holds is computed anew from the former."""

    pods: dict[Key, Spec] = field(default_factory=dict)
    servers: dict[Key, Spec] = field(default_factory=dict)
    routes: dict[Key, Spec] = field(default_factory=dict)
    uids: int = 0

    def __post_init__(self) -> None:
        # The stores are written to by this test instead of by reflectors, so nobody asks the client anything.
        self.view = ClusterView(Cache(cast("Client", None)), None)
        self.feed = SnapshotFeed(self.view, SlotBook(1000), 0)

    def set_pod(self, key: Key, labels: Mapping[str, str], *, ready: bool, reborn: bool) -> None:
        if reborn or key not in self.pods:
            self.uids += 1
        uid = f"uid-{self.uids}" if reborn or key not in self.pods else self.pods[key]["uid"]
        self.pods[key] = {"labels": labels, "ready": ready, "uid": uid}
        status = {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        metadata = {"name": key.name, "namespace": key.namespace, "uid": uid, "labels": labels}
        self.view.pods.put(PODS_SLIM.decode(msgspec.json.encode({"metadata": metadata, "status": status})))

    def set_server(self, key: Key, labels: Mapping[str, str]) -> None:
        self.servers[key] = {"labels": labels}
        self.view.servers.put(
            ModelServer.model_validate(
                {
                    "metadata": {"name": key.name, "namespace": key.namespace},
                    "spec": {
                        "inferenceEngine": "vLLM",
                        "workloadSelector": {"matchLabels": labels},
                        "workloadPort": {"port": 8000},
                    },
                }
            )
        )

    def set_route(self, key: Key, names: Sequence[str], age: int, servers: Sequence[str]) -> None:
        self.routes[key] = {"names": names, "age": age, "servers": servers}
        created = (BORN - timedelta(days=age)).isoformat()
        self.view.routes.put(
            ModelRoute.model_validate(
                {
                    "metadata": {"name": key.name, "namespace": key.namespace, "creationTimestamp": created},
                    "spec": {
                        "modelName": names[0],
                        "loraAdapters": list(names[1:]),
                        "rules": [{"targetModels": [{"modelServerName": name} for name in servers]}],
                    },
                }
            )
        )

    def selected(self, server: Key) -> set[str]:
        labels = self.servers[server]["labels"] if server in self.servers else {}
        return {
            pod["uid"]
            for key, pod in self.pods.items()
            if labels and key.namespace == server.namespace and pod["ready"] and labels.items() <= pod["labels"].items()
        }

    def owner(self, name: str) -> Key | None:
        claims = [(-route["age"], key) for key, route in self.routes.items() if name in route["names"]]
        return min(claims)[1] if claims else None

    def check(self) -> None:
        self.feed.settle()
        table = Table(self.feed.current)
        for name in NAMES:
            entry, owner = table.entries.get(name), self.owner(name)
            assert (Key(entry.route.namespace, entry.route.name) if entry else None) == owner
            if entry is None or owner is None:
                continue
            assert entry.is_adapter == (name != self.routes[owner]["names"][0])
            rule = entry.rule_for(Ask(name, "/v1/x", {}))
            assert rule is not None
            for target in rule.targets:
                pool = table.pool(target)
                found = {pool.server.endpoints[i].uid for i in pool.ready} if pool else set()
                assert found == self.selected(Key(owner.namespace, target.name))


_keys = st.builds(Key, st.sampled_from(NAMESPACES), st.sampled_from(["one", "two"]))
_labels = st.sampled_from(LABELS)
_names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
_servers = st.lists(st.sampled_from(["one", "two", "absent"]), min_size=1, max_size=3, unique=True)
_changes = st.one_of(
    st.tuples(st.just("pod"), _keys, _labels, st.booleans(), st.booleans()),
    st.tuples(st.just("server"), _keys, _labels),
    st.tuples(st.just("route"), _keys, _names, st.integers(0, 2), _servers),
    st.tuples(st.just("no pod"), _keys),
    st.tuples(st.just("no server"), _keys),
    st.tuples(st.just("no route"), _keys),
)


@given(st.tuples(*[_labels] * 8), st.lists(_changes, max_size=30))
def test_beat_30_36_50_the_table_is_what_the_objects_say_after_any_history(
    labels: tuple[dict[str, str], ...], changes: list[tuple[Any, ...]]
) -> None:
    """Relabelled pods and servers leave nothing behind, names go to the oldest claim, foreign pods are never taken."""
    world, of = Objects(), iter(labels)
    for namespace in NAMESPACES:
        for name in ("one", "two"):
            world.set_pod(Key(namespace, name), next(of), ready=True, reborn=False)
            world.set_server(Key(namespace, name), next(of))
    world.set_route(Key("blue", "one"), ["m"], 2, ["one", "two"])
    world.set_route(Key("red", "two"), ["n", "lora"], 1, ["two", "one"])
    world.check()
    for what, key, *more in changes:
        if what == "pod":
            world.set_pod(key, more[0], ready=more[1], reborn=more[2])
        elif what == "server":
            world.set_server(key, more[0])
        elif what == "route":
            world.set_route(key, *more)
        else:
            objects, store = {
                "no pod": (world.pods, world.view.pods),
                "no server": (world.servers, world.view.servers),
                "no route": (world.routes, world.view.routes),
            }[what]
            objects.pop(key, None)
            store.remove(key)
        world.check()


def test_beat_30_33_of_two_claims_the_older_holds_and_its_end_hands_the_name_over() -> None:
    """Names are one space for all namespaces: age decides, then namespace and name, the same in every replica."""
    world = Objects()
    blue, red = Key("blue", "one"), Key("red", "one")
    world.set_route(red, ["m", "lora"], 5, ["one"])
    world.set_route(blue, ["m"], 1, ["one"])
    assert (world.owner("m"), world.owner("lora")) == (red, red)
    world.check()
    world.routes.pop(red)
    world.view.routes.remove(red)
    assert (world.owner("m"), world.owner("lora")) == (blue, None)
    world.check()
    world.set_route(red, ["m"], 1, ["one"])
    assert world.owner("m") == blue
    world.check()


# -- choosing -----------------------------------------------------------------------------------------------------

_targets = st.lists(st.builds(Target, st.text(max_size=3), st.integers(0, 100), st.integers(0, 7)), max_size=8)


@given(_targets, _targets, st.sets(st.integers(0, 7)), st.floats(0, 1, exclude_max=True))
def test_beat_31_32_a_request_goes_to_a_target_that_can_serve_whenever_the_rule_has_one(
    targets: list[Target], fallbacks: list[Target], healthy: set[int], number: float
) -> None:
    """Empty lists, zero weights and dead servers: never a crash, never a target that cannot serve."""
    rule = Rule("", None, tuple(targets), tuple(fallbacks))

    def can_serve(target: Target) -> bool:
        return target.server in healthy

    chosen = choose_target(rule, number, can_serve)
    weighted = [target for target in targets if target.weight and can_serve(target)]
    spare = [target for target in fallbacks if can_serve(target)]
    if weighted:
        assert chosen in weighted
    else:
        assert chosen == (spare[0] if spare else None)


@pytest.mark.parametrize(
    ("match", "headers", "path", "holds"),
    [
        ({"headers": {"X-Plan": {"prefix": "go"}}, "uri": {"regex": "chat"}}, {"x-plan": "gold"}, "/v1/chat/x", True),
        ({"headers": {"X-Plan": {"prefix": "go"}}, "uri": {"regex": "chat"}}, {"x-plan": "gold"}, "/v1/x", False),
        ({"headers": {"X-Plan": {"prefix": "go"}}, "uri": {"regex": "chat"}}, {}, "/v1/chat/x", False),
        ({"headers": {"a": {"exact": "1"}, "b": {"exact": "2"}}}, {"a": "1", "b": "2"}, "/v1/x", True),
        ({"headers": {"a": {"exact": "1"}, "b": {"exact": "2"}}}, {"a": "1"}, "/v1/x", False),
        ({"body": {"model": "m"}}, {}, "/v1/x", True),
        ({"body": {"model": "lora"}}, {}, "/v1/x", False),
        ({"uri": {"exact": "/v1/x"}, "body": {"model": "m"}}, {}, "/v1/x", True),
    ],
)
def test_beat_100_no_condition_of_a_rule_is_skipped(
    match: dict[str, Any], headers: dict[str, str], path: str, holds: bool
) -> None:
    """All of headers, path and body, as they are written in the object."""
    world = Objects()
    key = Key("blue", "one")
    world.set_server(key, {"app": "a"})
    world.view.routes.put(
        ModelRoute.model_validate(
            {
                "metadata": {"name": "one", "namespace": "blue"},
                "spec": {
                    "modelName": "m",
                    "loraAdapters": ["lora"],
                    "rules": [{"modelMatch": match, "targetModels": [{"modelServerName": "one"}]}],
                },
            }
        )
    )
    world.feed.settle()
    entry = Table(world.feed.current).entries["m"]
    assert (entry.rule_for(Ask("m", path, headers)) is not None) is holds


def test_beat_35_a_label_change_keeps_the_pods_place_on_the_load_board() -> None:
    world = Objects()
    key = Key("blue", "one")
    world.set_server(key, {"app": "a"})
    world.set_route(key, ["m"], 1, ["one"])
    world.set_pod(key, {"app": "a"}, ready=True, reborn=False)
    world.feed.settle()
    before = world.feed.current.servers[0].endpoints[0]
    world.set_pod(key, {"app": "a", "tier": "x"}, ready=True, reborn=False)
    world.feed.settle()
    assert world.feed.current.servers[0].endpoints[0] == before
