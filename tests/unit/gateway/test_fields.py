"""Every field of a ModelRoute and a ModelServer acts, or its object's status says that it does not."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tests.unit.gateway.test_snapshot import NOW, pod, route, server

from matrixinfer.api.v1alpha1.modelroute import ModelRoute, ModelRouteSpec
from matrixinfer.api.v1alpha1.modelserver import ModelServer, ModelServerSpec
from matrixinfer.gateway.core.claims import owners
from matrixinfer.gateway.core.selection import selected
from matrixinfer.gateway.core.snapshot import build_snapshot
from matrixinfer.gateway.core.status import route_status, server_status
from matrixinfer.gateway.core.types import Snapshot

S = {"modelServerName": "s"}
PD = {"groupKey": "g", "prefillLabels": {"role": "p"}, "decodeLabels": {"role": "d"}}
LIMIT = {"inputTokensPerUnit": 5, "global": {"redis": {"address": "redis:6379"}}}


def rules(**rule: Any) -> dict[str, Any]:
    return {"rules": [{"targetModels": [S], **rule}]}


def matching(**match: Any) -> dict[str, Any]:
    return rules(modelMatch=match)


def policy(**fields: Any) -> dict[str, Any]:
    return {"trafficPolicy": fields}


def sticky(**fields: Any) -> dict[str, Any]:
    return policy(sessionAffinity=fields)


# A spec with the field, and the same without it or with another value of it.
ROUTE: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "modelName": ({"modelName": "a"}, {"modelName": "b"}),
    "loraAdapters": ({"loraAdapters": ["x"]}, {}),
    "rules.name": (rules(name="x"), rules()),
    "rules.modelMatch.headers": (matching(headers={"x": {"exact": "a"}}), matching()),
    "rules.modelMatch.headers.exact": (matching(headers={"x": {"exact": "a"}}), matching(headers={"x": {}})),
    "rules.modelMatch.headers.prefix": (matching(headers={"x": {"prefix": "a"}}), matching(headers={"x": {}})),
    "rules.modelMatch.headers.regex": (matching(headers={"x": {"regex": "a"}}), matching(headers={"x": {}})),
    "rules.modelMatch.uri.exact": (matching(uri={"exact": "/v1/x"}), matching(uri={})),
    "rules.modelMatch.uri.prefix": (matching(uri={"prefix": "/v1/x"}), matching(uri={})),
    "rules.modelMatch.uri.regex": (matching(uri={"regex": "/v1/x"}), matching(uri={})),
    "rules.modelMatch.body.model": (matching(body={"model": "m"}), matching(body={})),
    "rules.targetModels.modelServerName": (rules(), rules(targetModels=[{"modelServerName": "t"}])),
    "rules.targetModels.weight": (rules(), rules(targetModels=[{**S, "weight": 5}])),
    "rules.fallbacks.modelServerName": (rules(fallbacks=[S]), rules()),
    "rateLimit.inputTokensPerUnit": ({"rateLimit": LIMIT}, {}),
    "rateLimit.outputTokensPerUnit": ({"rateLimit": {"outputTokensPerUnit": 5}}, {}),
    "rateLimit.unit": ({"rateLimit": {**LIMIT, "unit": "hour"}}, {}),
    "rateLimit.scope": ({"rateLimit": {**LIMIT, "scope": "Subject"}}, {}),
    "rateLimit.global.redis.address": ({"rateLimit": LIMIT}, {}),
    "timeouts.request": ({"timeouts": {"request": "5s"}}, {}),
    "timeouts.firstByte": ({"timeouts": {"firstByte": "5s"}}, {}),
    "timeouts.idle": ({"timeouts": {"idle": "5s"}}, {}),
    "priority": ({"priority": 5}, {}),
}
SERVER: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "model": ({"model": "a"}, {}),
    "inferenceEngine": ({"inferenceEngine": "SGLang"}, {"inferenceEngine": "vLLM"}),
    "workloadSelector.matchLabels": ({}, {"workloadSelector": {"matchLabels": {"app": "other"}}}),
    **{
        f"workloadSelector.pdGroup.{key}": ({"workloadSelector": {"matchLabels": {"app": "m"}, "pdGroup": PD}}, {})
        for key in PD
    },
    "workloadPort.port": ({"workloadPort": {"port": 9}}, {}),
    "workloadPort.protocol": ({"workloadPort": {"port": 8000, "protocol": "https"}}, {}),
    "workloadPort.grpcPort": ({"workloadPort": {"port": 8000, "grpcPort": 9}}, {}),
    "trafficPolicy.timeout": (policy(timeout="5s"), policy()),
    "trafficPolicy.firstByteTimeout": (policy(firstByteTimeout="5s"), policy()),
    "trafficPolicy.idleTimeout": (policy(idleTimeout="5s"), policy()),
    "trafficPolicy.retry.attempts": (policy(retry={"attempts": 5}), policy(retry={})),
    "trafficPolicy.retry.retryInterval": (policy(retry={"retryInterval": "5s"}), policy(retry={})),
    "trafficPolicy.circuitBreaker.consecutiveFailures": (
        policy(circuitBreaker={"consecutiveFailures": 7}),
        policy(circuitBreaker={}),
    ),
    "trafficPolicy.circuitBreaker.baseEjection": (
        policy(circuitBreaker={"baseEjection": "7s"}),
        policy(circuitBreaker={}),
    ),
    "trafficPolicy.circuitBreaker.maxEjectedPercent": (
        policy(circuitBreaker={"maxEjectedPercent": 7}),
        policy(circuitBreaker={}),
    ),
    "trafficPolicy.maxInFlightPerEndpoint": (policy(maxInFlightPerEndpoint=5), policy()),
    "trafficPolicy.sessionAffinity.source": (sticky(name="x", source="Cookie"), sticky(name="x")),
    "trafficPolicy.sessionAffinity.name": (sticky(name="x"), sticky(name="y")),
    "trafficPolicy.sessionAffinity.ttl": (sticky(name="x", ttl="7s"), sticky(name="x")),
    "kvConnector.type": ({"kvConnector": {"type": "nixl"}}, {}),
    "scheduler.plugins.name": ({"scheduler": {"plugins": [{"name": "least-request"}]}}, {}),
    "scheduler.plugins.weight": (
        {"scheduler": {"plugins": [{"name": "least-request", "weight": 5}]}},
        {"scheduler": {"plugins": [{"name": "least-request"}]}},
    ),
}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        here = f"{path}{field.alias or name}"
        inner = models_in(field.annotation)
        if not inner:
            yield here
        for one in inner:
            yield from leaves(one, f"{here}.")


def test_no_field_is_forgotten() -> None:
    assert set(leaves(ModelRouteSpec)) <= ROUTE.keys()
    assert set(leaves(ModelServerSpec)) <= SERVER.keys()


def published(made_route: ModelRoute, made_server: ModelServer) -> Snapshot:
    pods = [pod("a"), pod("b", {"app": "m", "role": "d"}), pod("c", {"app": "other"})]
    slots = {p.uid: slot for slot, p in enumerate(pods)}
    return build_snapshot(1, [made_route], [(made_server, selected(made_server, pods))], slots)


def accepted(conditions: Any) -> str:
    return str(next(c.message for c in conditions if c.type == "Accepted"))


@pytest.mark.parametrize("field", ROUTE)
def test_a_field_of_a_route_acts_or_is_named_in_its_status(field: str) -> None:
    with_it, without = (route(**{"rules": [{"targetModels": [S]}], **spec}) for spec in ROUTE[field])
    acts = published(with_it, server()) != published(without, server())
    said = f"spec.{field.split('.')[0]}" in accepted(
        route_status(with_it, owners([with_it]), frozenset({"s"}), (), NOW).conditions
    )
    assert acts != said


@pytest.mark.parametrize("field", SERVER)
def test_a_field_of_a_server_acts_or_is_named_in_its_status(field: str) -> None:
    with_it, without = (server(**spec) for spec in SERVER[field])
    acts = published(route(), with_it) != published(route(), without)
    message = accepted(server_status(with_it, [], NOW).conditions)
    said = any(f"spec.{part}" in message for part in (field, field.rpartition(".")[0]) if part)
    assert acts != said


def test_a_split_server_says_that_its_pods_decode_alone() -> None:
    message = accepted(server_status(server(**SERVER["workloadSelector.pdGroup.groupKey"][0]), [], NOW).conditions)
    assert "the pods that decode answer alone" in message
