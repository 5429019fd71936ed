"""The status of routes and servers, written by the one replica that holds the lease.

Two reconcilers in the form of the reconciliation library; the judgement is in `core.status`. Nothing here touches
traffic.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from matrixinfer.api.v1alpha1.modelroute import ModelRoute, TargetTraffic
from matrixinfer.api.v1alpha1.modelserver import ModelServer
from matrixinfer.gateway.core.claims import claimed_names, key_of_route, owners
from matrixinfer.gateway.core.status import route_status, server_status
from matrixinfer.gateway.feeds.kube import ROUTES, SERVERS, ClusterView
from matrixinfer.kube.codec import PodView
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.plan import Plan, WriteStatus
from matrixinfer.kube.resource import Key, Resource
from matrixinfer.kube.sources import mapped

__all__ = ["FIELD_MANAGER", "RouteReconciler", "SeenRoute", "SeenServer", "ServerReconciler", "status_controllers"]

FIELD_MANAGER = "matrixinfer-gateway"


@dataclass(frozen=True, slots=True)
class SeenRoute:
    """A route, who owns the names it claims, the servers of its namespace, and what its targets got to do."""

    route: ModelRoute
    owned: Mapping[str, Key]
    servers: frozenset[str]
    traffic: tuple[TargetTraffic, ...]


@dataclass(frozen=True, slots=True)
class SeenServer:
    """A server and the pods it selects."""

    server: ModelServer
    pods: tuple[PodView, ...]


class RouteReconciler:
    """Writes what is true of a route."""

    def __init__(self, view: ClusterView, traffic_of: Callable[[ModelRoute], tuple[TargetTraffic, ...]]) -> None:
        self._view = view
        self._traffic_of = traffic_of

    def observe(self, key: Key) -> SeenRoute | None:
        """Gather the route, its rivals and its servers."""
        route = self._view.routes.get(key)
        if route is None:
            return None
        rivals = {
            key_of_route(rival): rival
            for name in claimed_names(route)
            for rival in self._view.routes.by_index("name", name)
        }
        servers = frozenset(s.metadata.name for s in self._view.servers.by_index("namespace", key.namespace))
        return SeenRoute(route, owners(rivals.values()), servers, self._traffic_of(route))

    def plan(self, seen: SeenRoute, now: datetime) -> Plan:
        """Return the status to write."""
        status = route_status(seen.route, seen.owned, seen.servers, seen.traffic, now)
        return _status_plan(ROUTES, seen.route, status)


class ServerReconciler:
    """Writes what is true of a server."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def observe(self, key: Key) -> SeenServer | None:
        """Gather the server and its pods."""
        server = self._view.servers.get(key)
        return None if server is None else SeenServer(server, tuple(self._view.pods_of(server)))

    def plan(self, seen: SeenServer, now: datetime) -> Plan:
        """Return the status to write."""
        return _status_plan(SERVERS, seen.server, server_status(seen.server, seen.pods, now))


def status_controllers(
    view: ClusterView, traffic_of: Callable[[ModelRoute], tuple[TargetTraffic, ...]]
) -> tuple[Controller[SeenRoute], Controller[SeenServer]]:
    """Return the controllers of routes and of servers, woken by all that their judgement rests on but the traffic."""

    def rivals(route: ModelRoute) -> Iterable[Key]:
        return {key_of_route(other) for name in claimed_names(route) for other in view.routes.by_index("name", name)}

    def routes_of_server(server: ModelServer) -> Iterable[Key]:
        return [key_of_route(route) for route in view.routes.by_index("namespace", server.metadata.namespace)]

    routes = Controller(
        "gateway-routes",
        view.routes,
        RouteReconciler(view, traffic_of),
        sources=[mapped(view.routes, rivals), mapped(view.servers, routes_of_server)],
        field_manager=FIELD_MANAGER,
        workers=4,
    )
    servers = Controller(
        "gateway-servers",
        view.servers,
        ServerReconciler(view),
        sources=[mapped(view.pods, view.servers_of_pod)],
        field_manager=FIELD_MANAGER,
        workers=4,
    )
    return routes, servers


def _status_plan(resource: Resource, value: ModelRoute | ModelServer, status: Any) -> Plan:
    key = Key(value.metadata.namespace, value.metadata.name)
    desired, current = status.to_manifest(), value.status.to_manifest()
    return Plan(
        why="the status follows what is routed",
        status=(WriteStatus(resource, key, value.metadata.uid, desired, current),),
    )
