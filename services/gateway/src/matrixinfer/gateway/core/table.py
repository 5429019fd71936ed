"""A snapshot made fast to ask: names to routes, rules to compiled predicates. Built once per revision in each worker.

Owns nothing that changes. A rule whose regular expression cannot be compiled never matches (the route's status says
so).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from matrixinfer.gateway.core.match import Ask, PatternError, Predicate, predicate
from matrixinfer.gateway.core.objects import Keeper, keeper
from matrixinfer.gateway.core.types import Endpoint, EndpointState, Route, Rule, Server, Snapshot, Target

__all__ = ["Listing", "Pool", "RouteEntry", "Table"]


@dataclass(frozen=True, slots=True)
class Pool:
    """A server and those of its endpoints that take new requests, with their slots in the same order."""

    server: Server
    ready: tuple[int, ...]
    """Positions in `server.endpoints`."""
    candidates: tuple[Endpoint, ...]
    """The endpoints at these positions."""
    slots: tuple[int, ...]
    pods: Mapping[int, str]
    """Uids of all that are ready, by slot; `narrowed` leaves it as it is."""

    @staticmethod
    def of(server: Server) -> "Pool":
        """Select the ready endpoints of `server`."""
        ready = tuple(i for i, e in enumerate(server.endpoints) if e.state is EndpointState.READY)
        candidates = tuple(server.endpoints[i] for i in ready)
        slots = tuple(endpoint.slot for endpoint in candidates)
        return Pool(server, ready, candidates, slots, {endpoint.slot: endpoint.uid for endpoint in candidates})

    def narrowed(self, position: int) -> "Pool":
        """The same server with one of its endpoints only."""
        endpoint = self.server.endpoints[position]
        return replace(self, ready=(position,), candidates=(endpoint,), slots=(endpoint.slot,))


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A route as a request meets it, under one of its names."""

    route: Route
    rules: tuple[tuple[Predicate, Rule], ...]
    is_adapter: bool

    def rule_for(self, ask: Ask) -> Rule | None:
        """Return the first rule that holds."""
        for holds, rule in self.rules:
            if holds(ask):
                return rule
        return None


@dataclass(frozen=True, slots=True)
class Listing:
    """One entry of GET /v1/models; `parent` is set for an adapter."""

    name: str
    created: int
    parent: str | None = None


class Table:
    """What a worker asks per request. Immutable; the worker swaps the whole table on a change."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Compile `snapshot`."""
        self.revision = snapshot.revision
        self.pools = tuple(Pool.of(server) for server in snapshot.servers)
        self.entries: Mapping[str, RouteEntry] = {
            name: entry for route in snapshot.routes for name, entry in _entries(route)
        }
        self.listings = tuple(sorted(_listings(snapshot.routes), key=lambda listing: listing.name))
        self.gone = frozenset(snapshot.gone)
        self.offered = frozenset(pool.server.endpoints[i].uid for pool in self.pools for i in pool.ready)
        """Uids of all pods that take new requests."""

    def pool(self, target: Target) -> Pool | None:
        """Return the pool of a target; None when its server does not exist."""
        return None if target.server is None else self.pools[target.server]

    @cached_property
    def keepers(self) -> Mapping[Keeper, list[tuple[int, int]]]:
        """Where an endpoint that keeps objects is: positions in `pools` and in the endpoints of the server there."""
        # Made when first asked for: most gateways never are.
        found: dict[Keeper, list[tuple[int, int]]] = {}
        for at, pool in enumerate(self.pools):
            for position, endpoint in enumerate(pool.server.endpoints):
                found.setdefault(keeper(endpoint), []).append((at, position))
        return found

    def series_keys(self) -> Iterator[tuple[str, str, str]]:
        """Return model, route and server of all requests that can come; the server is empty where none was found."""
        for model, entry in self.entries.items():
            route = f"{entry.route.namespace}/{entry.route.name}"
            yield model, route, ""
            for name in dict.fromkeys(t.name for rule in entry.route.rules for t in (*rule.targets, *rule.fallbacks)):
                yield model, route, name

    def can_serve(self, target: Target) -> bool:
        """Whether a target has an endpoint that takes new requests."""
        pool = self.pool(target)
        return pool is not None and bool(pool.ready)


def _entries(route: Route) -> list[tuple[str, RouteEntry]]:
    rules = tuple((_predicate(rule), rule) for rule in route.rules)
    adapter = RouteEntry(route, rules, is_adapter=True)
    entries = [(name, adapter) for name in route.adapters]
    if route.model is not None:
        entries.append((route.model, RouteEntry(route, rules, is_adapter=False)))
    return entries


def _predicate(rule: Rule) -> Predicate:
    try:
        return predicate(rule.match)
    except PatternError:
        return lambda _ask: False


def _listings(routes: tuple[Route, ...]) -> list[Listing]:
    models = [Listing(route.model, route.created) for route in routes if route.model is not None]
    return models + [Listing(name, route.created, route.model) for route in routes for name in route.adapters]
