"""Once a second the supervisor compares the endpoints of each server, and leaves out who is much worse than its peers.

The workers see failures in a row by themselves and at once; that one endpoint answers with errors, or slowly, shows
only beside the others and over some time. Owns the supervisor's row of the health board, and what metrics tell of it.
"""

from collections import Counter
from collections.abc import Callable

from matrixinfer.gateway import metrics
from matrixinfer.gateway.core.breaker import BreakerPolicy, Cause, Ejection
from matrixinfer.gateway.core.outliers import OutlierPolicy, Outliers
from matrixinfer.gateway.core.types import Endpoint, EndpointState, Server, Slot, Snapshot
from matrixinfer.gateway.health import HealthBoard, log_ejection

__all__ = ["Comparison"]


class Comparison:
    """Remembers what was seen of each server and each endpoint."""

    def __init__(
        self, health: HealthBoard, breaker: BreakerPolicy, outliers: OutlierPolicy, clock: Callable[[], float]
    ) -> None:
        self._health = health
        self._breaker = breaker
        self._policy = outliers
        self._clock = clock
        self._servers: dict[tuple[str, str], Outliers] = {}
        self._pods: dict[Slot, str] = {}
        self._told: dict[Slot, Ejection] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Forget what was of other pods in the slots of these. Before workers hear of them: who is new is innocent."""
        for endpoint in (e for server in snapshot.servers for e in server.endpoints):
            if self._pods.get(endpoint.slot, endpoint.uid) != endpoint.uid:
                self._health.own_row().forget(endpoint.slot)
            self._pods[endpoint.slot] = endpoint.uid

    def look(self, snapshot: Snapshot) -> None:
        """Compare the endpoints of a snapshot that was followed, and leave out."""
        now, health = self._clock(), self._health
        endpoints = {e.slot: e for server in snapshot.servers for e in server.endpoints}
        ejections = {slot: found for slot in health.ejected(endpoints) if (found := health.ejection(slot)) is not None}
        out = {slot for slot, ejection in ejections.items() if now < ejection.until}
        for server in snapshot.servers:
            self._compare(server, out, now)
        keys = {(server.namespace, server.name) for server in snapshot.servers}
        self._servers = {key: seen for key, seen in self._servers.items() if key in keys}
        self._tell(ejections, now)

    def _compare(self, server: Server, out: set[Slot], now: float) -> None:
        offered = {e.uid: e for e in server.endpoints if e.state is EndpointState.READY and e.slot not in out}
        seen = self._servers.setdefault((server.namespace, server.name), Outliers())
        found = seen.look({uid: self._health.tally(e.slot) for uid, e in offered.items()}, self._policy)
        policy = self._breaker.of(server.policy)
        for uid, cause in found.items():
            self._leave_out(offered[uid], policy, cause, now)

    def _leave_out(self, endpoint: Endpoint, policy: BreakerPolicy, cause: Cause, now: float) -> None:
        ejection = self._health.own_row().eject(endpoint.slot, policy, cause, now)
        if ejection is not None:
            log_ejection(endpoint, ejection, now)

    def _tell(self, ejections: dict[Slot, Ejection], now: float) -> None:
        for slot, ejection in ejections.items():
            if self._told.get(slot) != ejection:
                metrics.EJECTIONS.labels(ejection.cause.name.lower()).inc()
        self._told = ejections
        out = Counter(ejection.cause for ejection in ejections.values() if now < ejection.until)
        for cause in Cause:
            metrics.LEFT_OUT.labels(cause.name.lower()).set(out[cause])
