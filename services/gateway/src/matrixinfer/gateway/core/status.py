"""What the gateway says about routes and servers: their conditions and counts. Pure.

Every condition carries the generation that it speaks of and a sentence that says what to do.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from matrixinfer.api.conditions import Condition, set_condition
from matrixinfer.api.v1alpha1.modelroute import ModelRoute, ModelRouteStatus, TargetTraffic
from matrixinfer.api.v1alpha1.modelserver import ModelServer, ModelServerStatus, SessionAffinity
from matrixinfer.gateway.core.claims import claimed_names, key_of_route
from matrixinfer.gateway.core.match import PatternError, string_test
from matrixinfer.gateway.core.schedule.profiles import PLUGINS, unknown_plugins
from matrixinfer.gateway.core.selection import endpoint_state
from matrixinfer.gateway.core.snapshot import server_names, string_matches
from matrixinfer.gateway.core.types import EndpointState
from matrixinfer.kube.codec import PodView
from matrixinfer.kube.resource import Key

__all__ = ["Judgement", "route_status", "server_status"]

_DEFAULT_TTL = SessionAffinity(name="any").ttl

Judgement = tuple[str, bool, str, str]
"""Type, status, reason and message of one condition."""


def route_status(
    route: ModelRoute,
    owned: Mapping[str, Key],
    known_servers: frozenset[str],
    traffic: tuple[TargetTraffic, ...],
    now: datetime,
) -> ModelRouteStatus:
    """Return the status of a route; `known_servers` are the names of the servers in its namespace."""
    judgements = (_accepted(route), _conflicted(route, owned), _resolved(route, known_servers))
    generation = route.metadata.generation
    return ModelRouteStatus(
        observed_generation=generation,
        rules=len(route.spec.rules),
        targets=traffic,
        conditions=_conditions(route.status.conditions, judgements, generation, now),
    )


def server_status(server: ModelServer, pods: Sequence[PodView], now: datetime) -> ModelServerStatus:
    """Return the status of a server that selects `pods`."""
    ready = sum(endpoint_state(pod) is EndpointState.READY for pod in pods)
    generation = server.metadata.generation
    judgements = (_server_accepted(server), _serves(ready, len(pods)))
    return ModelServerStatus(
        observed_generation=generation,
        ready_endpoints=ready,
        total_endpoints=len(pods),
        endpoints=f"{ready}/{len(pods)}",
        conditions=_conditions(server.status.conditions, judgements, generation, now),
    )


def _conditions(
    before: Sequence[Condition], judgements: Sequence[Judgement], generation: int, now: datetime
) -> tuple[Condition, ...]:
    ours = {type_ for type_, *_ in judgements}
    conditions = [condition for condition in before if condition.type in ours]
    for type_, holds, reason, message in judgements:
        conditions = set_condition(conditions, type_, holds, reason, message, generation, now)
    return tuple(conditions)


def _accepted(route: ModelRoute) -> Judgement:
    for index, rule in enumerate(route.spec.rules):
        for field, test in string_matches(rule.model_match) if rule.model_match else ():
            try:
                string_test(test)
            except PatternError as exc:
                path = f"spec.rules[{index}].modelMatch.{field}.regex"
                return (
                    "Accepted",
                    False,
                    "InvalidMatch",
                    f"{path} is not an RE2 expression ({exc}); the rule never matches.",
                )
    if not claimed_names(route):
        return "Accepted", False, "NoName", "Set spec.modelName or spec.loraAdapters: the route answers for no name."
    if not route.spec.rules:
        return "Accepted", False, "NoRules", "Add a rule to spec.rules: without one every request is answered with 404."
    return _in_force("route", ["spec.rateLimit"] if route.spec.rate_limit is not None else [])


def _conflicted(route: ModelRoute, owned: Mapping[str, Key]) -> Judgement:
    mine = key_of_route(route)
    taken = [(name, owned[name]) for name in claimed_names(route) if owned.get(name, mine) != mine]
    if not taken:
        return "Conflicted", False, "NoConflict", "No older route claims the same names."
    names = ", ".join(f"{name!r} (by {owner})" for name, owner in taken)
    return "Conflicted", True, "NameTaken", f"Older routes own these names: {names}. Rename one of the two."


def _resolved(route: ModelRoute, known_servers: frozenset[str]) -> Judgement:
    wanted = {name for rule in route.spec.rules for name in server_names(rule)}
    missing = sorted(wanted - known_servers)
    if missing:
        message = f"No ModelServer {', '.join(map(repr, missing))} in namespace {route.metadata.namespace!r}."
        return "ResolvedRefs", False, "ModelServerNotFound", message
    return "ResolvedRefs", True, "ResolvedRefs", "Every ModelServer that the rules name exists."


def _server_accepted(server: ModelServer) -> Judgement:
    if not server.spec.workload_selector.match_labels:
        message = "spec.workloadSelector.matchLabels is empty and would take every pod; name at least one label."
        return "Accepted", False, "EmptySelector", message
    scheduler = server.spec.scheduler
    unknown = unknown_plugins([plugin.name for plugin in scheduler.plugins]) if scheduler else ()
    if unknown:
        message = (
            f"spec.scheduler.plugins names {', '.join(map(repr, unknown))}, which this gateway does not have; the "
            f"default profile is in force. Known are {', '.join(sorted(PLUGINS))}."
        )
        return "Accepted", False, "UnknownPlugin", message
    policy = server.spec.traffic_policy
    affinity = policy.session_affinity if policy else None
    set_ = {
        "spec.workloadPort.grpcPort": server.spec.workload_port.grpc_port,
        "spec.kvConnector": server.spec.kv_connector,
        # A conversation's pod is computed, not remembered: there is nothing that could be forgotten.
        "spec.trafficPolicy.sessionAffinity.ttl": affinity.ttl if affinity and affinity.ttl != _DEFAULT_TTL else None,
    }
    split = server.spec.workload_selector.pd_group
    note = " Prefill is not split off: the pods that decode answer alone." if split else ""
    return _in_force("server", [path for path, value in set_.items() if value is not None], note)


def _in_force(what: str, ignored: Sequence[str], note: str = "") -> Judgement:
    """Accepted, with the fields that this version of the gateway does not act on."""
    if not ignored:
        return "Accepted", True, "Accepted", f"The {what} is in force.{note}"
    message = f"The {what} is in force, except what this version does not act on: {', '.join(ignored)}.{note}"
    return "Accepted", True, "PartlyInForce", message


def _serves(ready: int, total: int) -> Judgement:
    if ready:
        return "Ready", True, "EndpointsReady", f"{ready} of {total} endpoints take requests."
    if total:
        return "Ready", False, "NoEndpointReady", f"None of {total} selected pods takes requests."
    return "Ready", False, "NoPods", "The selector takes no pod."
