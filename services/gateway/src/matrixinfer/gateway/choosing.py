"""Where a request goes: its route, rule, target and endpoint, by the newest table and the loads of this moment.

Every part of the decision is pure and lies in `core`; here they are asked in order, without an await in between, so
nothing changes while a request is being placed.
"""

from collections.abc import Callable

import msgspec

from matrixinfer.gateway import errors
from matrixinfer.gateway.access import DecisionRecord
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.load import Burden
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.objects import Keeper
from matrixinfer.gateway.core.prompt import Prompt
from matrixinfer.gateway.core.schedule.framework import Refused
from matrixinfer.gateway.core.schedule.record import Recorded
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.split import choose_target, draw
from matrixinfer.gateway.core.table import Pool, RouteEntry, Table
from matrixinfer.gateway.core.types import Endpoint, Rule, Server, Target, TrafficPolicy
from matrixinfer.gateway.health import Health
from matrixinfer.gateway.placing import Placement, Placer
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.trace import Trace

__all__ = ["Choice", "Chooser", "Load"]

_NO_POLICY = TrafficPolicy()


class Choice(msgspec.Struct, frozen=True):
    """Where an attempt goes."""

    policy: TrafficPolicy
    """The route's."""
    model: str | None
    """What the engine shall read as the model; None leaves what the client wrote."""
    server: Server
    endpoint: Endpoint
    burden: Burden
    placement: Placement | None = None
    """How it was decided on; None where there was nothing to decide."""

    def undo(self) -> None:
        """The endpoint did not get the request."""
        if self.placement is not None:
            self.placement.undo()


class Load(msgspec.Struct, frozen=True):
    """What a request weighs, read once before it is placed: its body in bytes, its prompt as far as it is known."""

    size: int
    prompt: Prompt


class Chooser:
    """Chooses by one table; a new table comes with a new chooser."""

    def __init__(
        self,
        table: Table,
        board: LoadBoard,
        prefixes: PrefixIndex | None,
        health: Health,
        clock: Callable[[], float],
    ) -> None:
        self.table = table
        self._board = board
        self._prefixes = prefixes
        self._health = health
        self._clock = clock
        # Everything that is read per request is derived here, once per revision.
        self._placers = {id(pool): self._placer(pool) for pool in table.pools}

    def entry(self, trace: Trace) -> RouteEntry:
        """Return the route that owns the model asked for. Raises GatewayError."""
        entry = self.table.entries.get(trace.model)
        if entry is None:
            raise errors.model_not_found(trace.model)
        return entry

    def keeper_of(self, object_id: str, kept_by: Keeper, trace: Trace) -> Choice:
        """Return where a call for a stored object goes: to who keeps it. Raises GatewayError."""
        places = self.table.keepers.get(kept_by)
        if places is None:
            raise errors.object_lost(object_id)
        at, position = places[0]
        server = self.table.pools[at].server
        trace.server, trace.endpoint = server, server.endpoints[position]
        return Choice(_NO_POLICY, None, server, server.endpoints[position], Burden(0))

    def choose(
        self,
        entry: RouteEntry,
        ask: Ask,
        trace: Trace,
        load: Load,
        *,
        tried: frozenset[str] = frozenset(),
        kept_by: Keeper | None = None,
        rung: Rung = Rung.FULL,
    ) -> Choice:
        """Return where the next attempt goes, and note it in `trace`. Raises GatewayError.

        With `kept_by` it goes there if the rule allows: nobody else knows what the request continues.
        """
        rule = entry.rule_for(ask)
        if rule is None:
            raise errors.no_rule(ask.model)
        pool, target = self._kept(rule, kept_by, tried) or self._target(rule, trace.request_id, tried)
        if pool is None or target is None:
            raise errors.no_endpoints(ask.model)
        # A pool that was narrowed to one endpoint is made for this request.
        placer = self._placers.get(id(pool)) or self._placer(pool)
        placed = placer.place(
            trace.request_id,
            load.prompt,
            load.size,
            model=(entry.route.model or "") if entry.is_adapter else ask.model,
            adapter=ask.model if entry.is_adapter else "",
            tried=tried,
            ejected=self._health.left_out(pool.pods, pool.server.policy),
            rung=rung,
        )
        if isinstance(placed, Refused):
            raise errors.overloaded(ask.model)
        endpoint, revision = placed.endpoint, self.table.revision
        trace.server, trace.endpoint = pool.server, endpoint
        trace.decision = _record(revision, rule, target, placed, rung)
        trace.recorded = Recorded.of(trace.request_id, revision, placed.profile, placed.view, rung)
        renamed = None if entry.is_adapter or pool.server.model == ask.model else pool.server.model
        return Choice(entry.route.policy, renamed, pool.server, endpoint, placed.burden, placed)

    def is_offered(self, choice: Choice) -> bool:
        """Whether the endpoint of a choice is still one that takes new requests."""
        return choice.endpoint.uid in self.table.offered

    def is_left_out(self, choice: Choice) -> bool:
        """Whether it takes none for now, because it fails."""
        return choice.endpoint.uid in self._health.left_out(Pool.of(choice.server).pods, choice.server.policy)

    def _kept(self, rule: Rule, kept_by: Keeper | None, tried: frozenset[str]) -> tuple[Pool, Target] | None:
        """The endpoint that keeps what a request continues, when a target of the rule has it and it is ready."""
        places = dict(self.table.keepers.get(kept_by, ())) if kept_by is not None else {}
        for target in (*rule.targets, *rule.fallbacks) if places else ():
            pool, position = self.table.pool(target), places.get(-1 if target.server is None else target.server)
            if pool is None or position is None or position not in pool.ready:
                continue
            if pool.server.endpoints[position].uid not in tried:
                return pool.narrowed(position), target
        return None

    def _target(self, rule: Rule, request_id: str, tried: frozenset[str]) -> tuple[Pool | None, Target | None]:
        table, number = self.table, draw(request_id, "target")

        def has_untried(target: Target) -> bool:
            pool = table.pool(target)
            return pool is not None and any(pool.server.endpoints[i].uid not in tried for i in pool.ready)

        target = choose_target(rule, number, has_untried) if tried else None
        target = target or choose_target(rule, number, table.can_serve)
        return (None, None) if target is None else (table.pool(target), target)

    def _placer(self, pool: Pool) -> Placer:
        return Placer(pool, self._board, self._prefixes, self._clock)


def _record(revision: int, rule: Rule, target: Target, placed: Placement, rung: Rung) -> DecisionRecord:
    decision = placed.decision
    best = max(decision.scores)
    return DecisionRecord(
        revision,
        rule.name,
        target.name,
        len(decision.candidates),
        decision.scores.count(best),
        round(best, 4),
        {removal.filter: len(removal.positions) for removal in decision.removals},
        placed.view.prompt_tokens,
        placed.cached_tokens,
        rung.label if rung else "",
    )
