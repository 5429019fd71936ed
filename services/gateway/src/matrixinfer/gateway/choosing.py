"""Where a request goes: its route, rule, target and endpoint, by the newest table and the loads of this moment.

Every part of the decision is pure and lies in `core`; here they are asked in order, without an await in between, so
nothing changes while a request is being placed.
"""

from dataclasses import dataclass
from functools import partial

from matrixinfer.gateway import errors
from matrixinfer.gateway.access import DecisionRecord
from matrixinfer.gateway.board import LoadBoard, gather
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.schedule.framework import Decision, Profile, Refused, View, decide
from matrixinfer.gateway.core.split import choose_target, draw
from matrixinfer.gateway.core.table import Pool, RouteEntry, Table
from matrixinfer.gateway.core.types import Endpoint, Rule, Server, Target
from matrixinfer.gateway.trace import Trace

__all__ = ["Choice", "Chooser"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an attempt goes."""

    entry: RouteEntry
    server: Server
    endpoint: Endpoint
    decision: Decision


class Chooser:
    """Chooses by one table; a new table comes with a new chooser."""

    def __init__(self, table: Table, board: LoadBoard, profile: Profile) -> None:
        self.table = table
        self._board = board
        self._profile = profile
        # Everything that is read per request is derived here, once per revision.
        self._gathers = {id(pool): gather(pool.slots) for pool in table.pools}

    def entry(self, trace: Trace) -> RouteEntry:
        """Return the route that owns the model asked for. Raises GatewayError."""
        entry = self.table.entries.get(trace.model)
        if entry is None:
            raise errors.model_not_found(trace.model)
        return entry

    def choose(self, entry: RouteEntry, ask: Ask, trace: Trace, tried: frozenset[str]) -> Choice:
        """Return where the next attempt goes, and note it in `trace`. Raises GatewayError."""
        rule = entry.rule_for(ask)
        if rule is None:
            raise errors.no_rule(ask.model)
        pool, target = self._target(rule, trace.request_id, tried)
        if pool is None or target is None:
            raise errors.no_endpoints(ask.model)
        decision = self._schedule(pool, trace.request_id, tried)
        if isinstance(decision, Refused):
            raise errors.overloaded(ask.model)
        trace.server, trace.endpoint = pool.server, decision.endpoint
        trace.decision = _record(self.table.revision, rule, target, decision)
        return Choice(entry, pool.server, decision.endpoint, decision)

    def _target(self, rule: Rule, request_id: str, tried: frozenset[str]) -> tuple[Pool | None, Target | None]:
        table, number = self.table, draw(request_id, "target")

        def has_untried(target: Target) -> bool:
            pool = table.pool(target)
            return pool is not None and any(pool.server.endpoints[i].uid not in tried for i in pool.ready)

        target = choose_target(rule, number, has_untried) if tried else None
        target = target or choose_target(rule, number, table.can_serve)
        return (None, None) if target is None else (table.pool(target), target)

    def _schedule(self, pool: Pool, request_id: str, tried: frozenset[str]) -> Decision | Refused:
        pick = self._gathers[id(pool)]
        endpoints = pool.server.endpoints
        view = View(
            [endpoints[i] for i in pool.ready],
            self._board.requests(pick),
            self._board.request_bytes(pick),
            tried,
            pool.server.policy.max_in_flight_per_endpoint,
        )
        return decide(self._profile, view, partial(draw, request_id))


def _record(revision: int, rule: Rule, target: Target, decision: Decision) -> DecisionRecord:
    best = max(decision.scores)
    return DecisionRecord(
        revision,
        rule.name,
        target.name,
        len(decision.candidates),
        decision.scores.count(best),
        round(best, 4),
        {removal.filter: len(removal.positions) for removal in decision.removals},
    )
