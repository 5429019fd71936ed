"""The routing state that the supervisor publishes, as immutable values that travel as msgpack.

Owns the shapes only: `snapshot` builds them from Kubernetes objects, `table` makes them fast to ask. The trap: a
worker may run one revision older code for a moment during its restart, so fields are only ever added with a default.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

__all__ = [
    "Endpoint",
    "EndpointState",
    "Mark",
    "Match",
    "PluginWeight",
    "Route",
    "Rule",
    "Server",
    "SessionAffinity",
    "Slot",
    "Snapshot",
    "StringMatch",
    "Target",
    "TrafficPolicy",
]

Slot: TypeAlias = int
"""Row number of a pod in the shared load board; the same pod keeps it for life."""


Mark: TypeAlias = int
"""Number of a pod in the prefix index; unlike a slot it is not given to another pod for a very long time."""


class EndpointState(StrEnum):
    """Whether an endpoint takes new requests, or only finishes those it has."""

    READY = "ready"
    DRAINING = "draining"


class Endpoint(msgspec.Struct, frozen=True, array_like=True):
    """One pod of a server, reachable at `address`:`port`."""

    slot: Slot
    pod: str
    uid: str
    address: str
    port: int
    state: EndpointState = EndpointState.READY
    tls: bool = False
    mark: Mark = 0
    metrics_port: int | None = None
    """Where the engine's metrics are, in plain HTTP, when that is not `port`."""
    adapters: tuple[str, ...] = ()
    """Those adapters of the server's routes that the pod has loaded, as far as is known."""


class SessionAffinity(msgspec.Struct, frozen=True, array_like=True):
    """Where the identity of a conversation is found."""

    is_cookie: bool
    name: str


class TrafficPolicy(msgspec.Struct, frozen=True, array_like=True):
    """What a ModelServer asks of its traffic; None leaves the gateway's own setting in force. Times in seconds."""

    total_seconds: float | None = None
    first_byte_seconds: float | None = None
    idle_seconds: float | None = None
    retry_attempts: int | None = None
    retry_interval_seconds: float | None = None
    max_in_flight_per_endpoint: int | None = None
    eject_failures: int | None = None
    eject_seconds: float | None = None
    eject_most_percent: int | None = None
    session: SessionAffinity | None = None


class PluginWeight(msgspec.Struct, frozen=True, array_like=True):
    """One plugin of a scheduling profile; the weight is that of a scorer against the others."""

    name: str
    weight: int = 1


class Server(msgspec.Struct, frozen=True, array_like=True):
    """A ModelServer with the pods it selects. `model` is the name that the engine knows, when it has another one.

    `plugins` are known ones only; empty leaves the gateway's default profile in force.
    """

    namespace: str
    name: str
    model: str | None
    engine: str
    endpoints: tuple[Endpoint, ...] = ()
    policy: TrafficPolicy = TrafficPolicy()
    plugins: tuple[PluginWeight, ...] = ()


class StringMatch(msgspec.Struct, frozen=True, array_like=True):
    """One of exact, prefix, regex (RE2, unanchored), looked at in this order; all unset matches everything."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


class Match(msgspec.Struct, frozen=True, array_like=True):
    """Conditions that must all hold. Header names are lower case."""

    headers: tuple[tuple[str, StringMatch], ...] = ()
    uri: StringMatch | None = None
    model: str | None = None


class Target(msgspec.Struct, frozen=True, array_like=True):
    """A share of a rule's traffic: the position of a server in `Snapshot.servers`, None when it does not exist."""

    name: str
    weight: int
    server: int | None


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """The first rule whose match holds decides; `fallbacks` are tried in order when no target can serve."""

    name: str
    match: Match | None
    targets: tuple[Target, ...]
    fallbacks: tuple[Target, ...] = ()


class Route(msgspec.Struct, frozen=True, array_like=True):
    """A ModelRoute with the names it owns after conflicts were settled; `created` is seconds since the epoch.

    What its `policy` sets goes before the server's.
    """

    namespace: str
    name: str
    model: str | None
    adapters: tuple[str, ...]
    rules: tuple[Rule, ...]
    created: int = 0
    policy: TrafficPolicy = TrafficPolicy()
    priority: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a worker needs to route, at one revision. Never edited; a change is a new snapshot."""

    revision: int
    servers: tuple[Server, ...] = ()
    routes: tuple[Route, ...] = ()
    gone: tuple[str, ...] = ()
    """Uids of pods that no longer exist but may still be waited for: their requests end at once."""
