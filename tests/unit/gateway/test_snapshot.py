"""From objects to the routing table, and the status that says what was made of them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from matrixinfer.api.conditions import Condition
from matrixinfer.api.v1alpha1.modelroute import ModelRoute
from matrixinfer.api.v1alpha1.modelserver import ModelServer
from matrixinfer.gateway.core.claims import owners
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.selection import endpoint_state, selected
from matrixinfer.gateway.core.snapshot import build_snapshot
from matrixinfer.gateway.core.status import route_status, server_status
from matrixinfer.gateway.core.table import Table
from matrixinfer.gateway.core.types import EndpointState, PluginWeight, Snapshot
from matrixinfer.kube.codec import PODS_SLIM, PodView
from matrixinfer.kube.resource import Key

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def pod(name: str, labels: Mapping[str, str] | None = None, *, ready: bool = True, **metadata: Any) -> PodView:
    phase = metadata.pop("phase", "Running")
    manifest = {
        "metadata": {
            "name": name,
            "namespace": metadata.pop("namespace", "ns"),
            "uid": f"uid-{name}",
            "labels": dict(labels or {"app": "m"}),
            **metadata,
        },
        "status": {
            "phase": phase,
            "podIP": f"10.0.0.{len(name)}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }
    return PODS_SLIM.decode(msgspec.json.encode(manifest))


def server(name: str = "s", **spec: Any) -> ModelServer:
    return ModelServer.model_validate(
        {
            "metadata": {"name": name, "namespace": "ns", "generation": 3},
            "spec": {
                "inferenceEngine": "vLLM",
                "workloadSelector": {"matchLabels": {"app": "m"}},
                "workloadPort": {"port": 8000},
                **spec,
            },
        }
    )


def route(name: str = "r", *targets: str, age_days: int = 1, rules: list[Any] | None = None, **spec: Any) -> ModelRoute:
    created = (NOW - timedelta(days=age_days)).isoformat()
    default = [{"targetModels": [{"modelServerName": target} for target in targets or ("s",)]}]
    return ModelRoute.model_validate(
        {
            "metadata": {"name": name, "namespace": "ns", "generation": 7, "creationTimestamp": created},
            "spec": {"modelName": "m", "rules": default if rules is None else rules, **spec},
        }
    )


def snapshot(*routes: ModelRoute, pods: tuple[PodView, ...] = (), servers: tuple[ModelServer, ...] = ()) -> Snapshot:
    slots = {p.uid: i for i, p in enumerate(pods)}
    return build_snapshot(1, routes, [(s, selected(s, pods)) for s in servers or (server(),)], slots)


def condition(conditions: tuple[Condition, ...], type_: str) -> tuple[str, str]:
    found = next(c for c in conditions if c.type == type_)
    assert found.observed_generation in (3, 7)
    assert found.message.endswith(".")
    return found.status.value, found.reason


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (pod("a"), EndpointState.READY),
        (pod("a", ready=False), None),
        (pod("a", phase="Pending"), None),
        (pod("a", annotations={"modelinfer.matrixinfer.ai/draining-since": "2026-01-01T00:00:00Z"}), "draining"),
        (pod("a", deletionTimestamp="2026-01-01T00:00:00Z"), EndpointState.DRAINING),
    ],
)
def test_only_ready_pods_that_are_not_on_their_way_out_take_requests(made: PodView, state: str | None) -> None:
    assert endpoint_state(made) == state


def test_a_server_selects_by_all_labels_in_its_own_namespace() -> None:
    pods = [pod("in"), pod("other", {"app": "x"}), pod("away", namespace="elsewhere"), pod("over", phase="Succeeded")]
    assert [p.name for p in selected(server(), pods)] == ["in"]


def test_an_empty_selector_takes_no_pod() -> None:
    assert selected(server(workloadSelector={}), [pod("a")]) == []


def test_workers_of_a_group_are_no_endpoints() -> None:
    group = {"app": "m", "modelinfer.matrixinfer.ai/name": "mi"}
    pods = [pod("entry", {**group, "modelinfer.matrixinfer.ai/entry": "true"}), pod("worker", group)]
    assert [p.name for p in selected(server(), pods)] == ["entry"]


def test_of_a_split_server_those_that_decode_answer() -> None:
    split = {"groupKey": "g", "prefillLabels": {"role": "prefill"}, "decodeLabels": {"role": "decode"}}
    made = server(workloadSelector={"matchLabels": {"app": "m"}, "pdGroup": split})
    pods = [pod("p", {"app": "m", "role": "prefill"}), pod("d", {"app": "m", "role": "decode"})]
    assert [p.name for p in selected(made, pods)] == ["d"]


def test_a_snapshot_travels_and_routes() -> None:
    made = snapshot(
        route(
            loraAdapters=["lora"],
            rules=[
                {
                    "name": "gold",
                    "modelMatch": {"headers": {"X-Plan": {"exact": "gold"}}},
                    "targetModels": [{"modelServerName": "s"}],
                },
                {"name": "rest", "targetModels": [{"modelServerName": "absent", "weight": 5}]},
            ],
            timeouts={"idle": "3s"},
        ),
        pods=(pod("a"), pod("bb", deletionTimestamp="2026-01-01T00:00:00Z")),
        servers=(
            server(model="real", trafficPolicy={"timeout": "2m", "retry": {"attempts": 4, "retryInterval": "0s"}}),
        ),
    )
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Snapshot)
    assert again == made
    table = Table(again)
    entry, adapter = table.entries["m"], table.entries["lora"]
    assert (entry.is_adapter, adapter.is_adapter) == (False, True)
    assert entry.route.policy.idle_seconds == 3
    gold = entry.rule_for(Ask("m", "/v1/x", {"x-plan": "gold"}))
    rest = entry.rule_for(Ask("m", "/v1/x", {}))
    assert gold is not None
    assert rest is not None
    assert (gold.name, rest.name) == ("gold", "rest")
    assert table.can_serve(gold.targets[0])
    assert not table.can_serve(rest.targets[0])
    pool = table.pool(gold.targets[0])
    assert pool is not None
    assert [pool.server.endpoints[i].pod for i in pool.ready] == ["a"]
    assert pool.server.model == "real"
    assert (pool.server.policy.total_seconds, pool.server.policy.retry_attempts) == (120, 4)
    assert [(x.name, x.parent) for x in table.listings] == [("lora", "m"), ("m", None)]


def test_the_oldest_route_owns_a_name_and_the_younger_one_keeps_its_others() -> None:
    old, young = route("old", age_days=9), route("young", age_days=1, loraAdapters=["mine"])
    for order in ((old, young), (young, old)):
        assert owners(order) == {"m": Key("ns", "old"), "mine": Key("ns", "young")}
        table = Table(snapshot(*order))
        assert table.entries["m"].route.name == "old"
        assert table.entries["mine"].route.name == "young"
    without = Table(snapshot(young))
    assert without.entries["m"].route.name == "young"


def test_a_broken_expression_spoils_its_rule_only() -> None:
    rules = [
        {"modelMatch": {"uri": {"regex": "("}}, "targetModels": [{"modelServerName": "s"}]},
        {"name": "rest", "targetModels": [{"modelServerName": "s"}]},
    ]
    broken = route(rules=rules)
    rule = Table(snapshot(broken)).entries["m"].rule_for(Ask("m", "/v1/x", {}))
    assert rule is not None
    assert rule.name == "rest"
    status = route_status(broken, owners([broken]), frozenset({"s"}), (), NOW)
    assert condition(status.conditions, "Accepted") == ("False", "InvalidMatch")
    assert "spec.rules[0].modelMatch.uri.regex" in status.conditions[0].message


def test_the_status_of_a_route_tells_the_truth() -> None:
    old, young = route("old", age_days=9), route("young", "s", "absent", age_days=1)
    owned = owners([old, young])
    good = route_status(old, owned, frozenset({"s"}), (), NOW)
    assert good.rules == 1
    assert [condition(good.conditions, t) for t in ("Accepted", "Conflicted", "ResolvedRefs")] == [
        ("True", "Accepted"),
        ("False", "NoConflict"),
        ("True", "ResolvedRefs"),
    ]
    bad = route_status(young, owned, frozenset({"s"}), (), NOW)
    assert condition(bad.conditions, "Conflicted") == ("True", "NameTaken")
    assert condition(bad.conditions, "ResolvedRefs") == ("False", "ModelServerNotFound")


def test_the_status_of_a_server_counts_its_endpoints() -> None:
    status = server_status(server(), [pod("a"), pod("b", ready=False)], NOW)
    assert (status.ready_endpoints, status.total_endpoints, status.endpoints) == (1, 2, "1/2")
    assert condition(status.conditions, "Ready") == ("True", "EndpointsReady")
    assert condition(server_status(server(), [], NOW).conditions, "Ready") == ("False", "NoPods")
    empty = server_status(server(workloadSelector={}), [], NOW)
    assert condition(empty.conditions, "Accepted") == ("False", "EmptySelector")


def test_a_status_that_was_written_is_not_written_again() -> None:
    first = route_status(route(), owners([route()]), frozenset({"s"}), (), NOW)
    stored = ModelRoute.model_validate({**route().to_manifest(), "status": first.to_manifest()})
    later = route_status(stored, owners([stored]), frozenset({"s"}), (), NOW + timedelta(hours=1))
    assert later.to_manifest() == stored.status.to_manifest()


def test_a_typo_in_a_plugin_is_a_condition_and_the_default_profile_stays() -> None:
    """BEAT-09."""
    made = server(scheduler={"plugins": [{"name": "lest-request"}, {"name": "kv-cache", "weight": 3}]})
    assert snapshot(route(), servers=(made,)).servers[0].plugins == ()
    status = server_status(made, [pod("a")], NOW)
    assert condition(status.conditions, "Accepted") == ("False", "UnknownPlugin")
    message = next(c.message for c in status.conditions if c.type == "Accepted")
    assert "'lest-request'" in message
    assert "least-request" in message


def test_a_servers_plugins_travel_with_the_snapshot() -> None:
    made = server(scheduler={"plugins": [{"name": "least-request"}, {"name": "kv-cache", "weight": 3}]})
    assert snapshot(route(), servers=(made,)).servers[0].plugins == (
        PluginWeight("least-request", 1),
        PluginWeight("kv-cache", 3),
    )
    assert condition(server_status(made, [pod("a")], NOW).conditions, "Accepted") == ("True", "Accepted")
