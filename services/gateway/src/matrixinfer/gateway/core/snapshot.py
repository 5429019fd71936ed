"""From Kubernetes objects to the routing state of one revision. Pure; runs in the supervisor.

Only servers that a route names are published. A pod keeps its slot whatever selects it. What cannot be right in an
object (a missing server, a regular expression that RE2 refuses) makes a rule that never serves, and a condition that
says so; it never keeps the rest from being published. An unknown scheduling plugin leaves the default profile in force.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

from matrixinfer.api.v1alpha1 import modelroute as api
from matrixinfer.api.v1alpha1.modelserver import ModelServer, Protocol, SchedulerProfile, SessionSource, WorkloadPort
from matrixinfer.gateway.core.claims import claimed_names, key_of_route, owners
from matrixinfer.gateway.core.schedule.profiles import unknown_plugins
from matrixinfer.gateway.core.selection import endpoint_state
from matrixinfer.gateway.core.types import (
    Endpoint,
    EndpointState,
    Mark,
    Match,
    PluginWeight,
    Route,
    Rule,
    Server,
    SessionAffinity,
    Slot,
    Snapshot,
    StringMatch,
    Target,
    TrafficPolicy,
)
from matrixinfer.kube.codec import PodView
from matrixinfer.kube.resource import Key

__all__ = ["build_snapshot", "referenced_servers", "server_names", "string_matches"]


_METRICS_PORT_ANNOTATION = "prometheus.io/port"
_LAST_PORT = 65535
_PORT_DIGITS = 5


def referenced_servers(routes: Iterable[api.ModelRoute]) -> set[Key]:
    """Return the keys of all servers that a route names."""
    return {
        Key(route.metadata.namespace, name)
        for route in routes
        for rule in route.spec.rules
        for name in server_names(rule)
    }


def server_names(rule: api.Rule) -> list[str]:
    """Return the names of the servers that a rule sends to, its fallbacks last."""
    return [t.model_server_name for t in rule.target_models] + [f.model_server_name for f in rule.fallbacks]


def build_snapshot(
    revision: int,
    routes: Sequence[api.ModelRoute],
    servers: Sequence[tuple[ModelServer, Sequence[PodView]]],
    slots: Mapping[str, Slot],
    gone: Iterable[str] = (),
    marks: Mapping[str, Mark] | None = None,
    adapters: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Snapshot:
    """Return the snapshot; `servers` come with the pods that they select. Pods without a slot are left out.

    A pod without a mark has the number of its slot for one. `adapters` are those that pods have loaded, by uid.
    """
    known = _Known(slots, slots if marks is None else marks, adapters)
    positions = {_key(server): position for position, (server, _) in enumerate(servers)}
    owned = owners(routes)
    built = (_route(route, owned, positions) for route in sorted(routes, key=key_of_route))
    return Snapshot(
        revision,
        tuple(_server(server, pods, known) for server, pods in servers),
        tuple(route for route in built if route.model is not None or route.adapters),
        tuple(sorted(gone)),
    )


def string_matches(match: api.ModelMatch) -> Iterable[tuple[str, StringMatch]]:
    """Return every text comparison of a match with the path of its field, for whoever judges them."""
    for name, test in match.headers.items():
        yield f"headers[{name}]", _string_match(test)
    if match.uri is not None:
        yield "uri", _string_match(match.uri)


def _key(server: ModelServer) -> Key:
    return Key(server.metadata.namespace, server.metadata.name)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of pods beside their objects, by uid."""

    slots: Mapping[str, Slot]
    marks: Mapping[str, Mark]
    adapters: Mapping[str, tuple[str, ...]]


def _server(server: ModelServer, pods: Sequence[PodView], known: _Known) -> Server:
    spec = server.spec
    endpoints = tuple(
        _endpoint(pod, state, spec.workload_port, known)
        for pod in pods
        if pod.uid in known.slots and (state := endpoint_state(pod)) is not None
    )
    return Server(
        server.metadata.namespace,
        server.metadata.name,
        spec.model or None,
        spec.inference_engine.value,
        endpoints,
        _server_policy(server),
        _plugins(spec.scheduler),
    )


def _endpoint(pod: PodView, state: EndpointState, where: WorkloadPort, known: _Known) -> Endpoint:
    return Endpoint(
        known.slots[pod.uid],
        pod.name,
        pod.uid,
        pod.pod_ip,
        where.port,
        state,
        where.protocol is Protocol.HTTPS,
        known.marks[pod.uid],
        _metrics_port(pod, where.port),
        known.adapters.get(pod.uid, ()),
    )


def _metrics_port(pod: PodView, port: int) -> int | None:
    """Where a pod says that its metrics are, in the words that everybody uses; None when that is the engine's port."""
    text = pod.annotations.get(_METRICS_PORT_ANNOTATION, "")
    said = int(text) if text.isascii() and text.isdigit() and len(text) <= _PORT_DIGITS else 0
    return said if 0 < said <= _LAST_PORT and said != port else None


def _plugins(profile: SchedulerProfile | None) -> tuple[PluginWeight, ...]:
    """A list with a name that is not known has no effect at all: half a profile would be nobody's wish."""
    if profile is None or unknown_plugins([plugin.name for plugin in profile.plugins]):
        return ()
    return tuple(PluginWeight(plugin.name, plugin.weight) for plugin in profile.plugins)


def _server_policy(server: ModelServer) -> TrafficPolicy:
    policy = server.spec.traffic_policy
    if policy is None:
        return TrafficPolicy()
    retry, breaker, affinity = policy.retry, policy.circuit_breaker, policy.session_affinity
    return TrafficPolicy(
        _seconds(policy.timeout),
        _seconds(policy.first_byte_timeout),
        _seconds(policy.idle_timeout),
        retry.attempts if retry else None,
        max(0.0, retry.retry_interval.total_seconds()) if retry else None,
        policy.max_in_flight_per_endpoint,
        breaker.consecutive_failures if breaker else None,
        _seconds(breaker.base_ejection) if breaker else None,
        breaker.max_ejected_percent if breaker else None,
        SessionAffinity(affinity.source is SessionSource.COOKIE, affinity.name) if affinity else None,
    )


def _route(route: api.ModelRoute, owned: Mapping[str, Key], positions: Mapping[Key, int]) -> Route:
    key, created = key_of_route(route), route.metadata.creation_timestamp
    mine = [name for name in claimed_names(route) if owned[name] == key]
    model = route.spec.model_name or None
    timeouts = route.spec.timeouts
    return Route(
        key.namespace,
        key.name,
        model if model in mine else None,
        tuple(name for name in mine if name != model),
        tuple(_rule(rule, key.namespace, positions) for rule in route.spec.rules),
        int(created.timestamp()) if created else 0,
        TrafficPolicy(_seconds(timeouts.request), _seconds(timeouts.first_byte), _seconds(timeouts.idle))
        if timeouts
        else TrafficPolicy(),
        route.spec.priority,
    )


def _rule(rule: api.Rule, namespace: str, positions: Mapping[Key, int]) -> Rule:
    def target(name: str, weight: int) -> Target:
        return Target(name, weight, positions.get(Key(namespace, name)))

    return Rule(
        rule.name or "",
        _match(rule.model_match) if rule.model_match else None,
        tuple(target(t.model_server_name, t.weight) for t in rule.target_models),
        tuple(target(f.model_server_name, 0) for f in rule.fallbacks),
    )


def _match(match: api.ModelMatch) -> Match:
    return Match(
        tuple((name.lower(), _string_match(test)) for name, test in match.headers.items()),
        _string_match(match.uri) if match.uri else None,
        match.body.model if match.body else None,
    )


def _string_match(match: api.StringMatch) -> StringMatch:
    return StringMatch(match.exact, match.prefix, match.regex)


def _seconds(value: timedelta | None) -> float | None:
    # Zero always meant "no limit of its own" in manifests of this kind.
    seconds = value.total_seconds() if value is not None else 0.0
    return seconds if seconds > 0 else None
