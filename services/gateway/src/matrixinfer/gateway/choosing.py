"""Where a request goes: its route, rule, target and endpoint, by the newest table and the loads of this moment.

Every part of the decision is pure and lies in `core`; here they are asked in order, without an await in between, so
nothing changes while a request is being placed.
"""

from collections.abc import Callable

import msgspec

from matrixinfer.gateway import errors
from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.load import Burden
from matrixinfer.gateway.core.match import Ask
from matrixinfer.gateway.core.objects import Keeper
from matrixinfer.gateway.core.prompt import Prompt
from matrixinfer.gateway.core.schedule.framework import Refused
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.session import session_of
from matrixinfer.gateway.core.split import choose_target, draw
from matrixinfer.gateway.core.table import Pool, RouteEntry, Table
from matrixinfer.gateway.core.types import Endpoint, Rule, Server, Target, TrafficPolicy
from matrixinfer.gateway.health import Health
from matrixinfer.gateway.placing import Placement, Placer
from matrixinfer.gateway.prefixes import PrefixIndex
from matrixinfer.gateway.trace import Trace

__all__ = ["Choice", "Chooser", "Full", "Load"]

_NO_POLICY = TrafficPolicy()


class Choice(msgspec.Struct, frozen=True, gc=False):
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
    priority: int = 0
    """The route's."""

    def undo(self) -> None:
        """The endpoint did not get the request."""
        if self.placement is not None:
            self.placement.undo()


class Full(msgspec.Struct, frozen=True):
    """No endpoint has room, and this is the server to wait for."""

    server: Server
    priority: int
    """The route's."""
    is_empty: bool
    """There is not even an endpoint that is busy."""


class Load(msgspec.Struct, frozen=True, gc=False):
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
        self._pools = {(pool.server.namespace, pool.server.name): pool for pool in table.pools}

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
        return Choice(_NO_POLICY, None, server, server.endpoints[position], Burden())

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
    ) -> Choice | Full:
        """Return where the next attempt goes, and note it in `trace`; or what to wait for. Raises GatewayError.

        With `kept_by` it goes there if the rule allows: nobody else knows what the request continues.
        """
        rule = entry.rule_for(ask)
        if rule is None:
            raise errors.no_rule(ask.model)
        kept = self._kept(rule, kept_by, tried)
        pool, target = kept or self._target(rule, trace.request_id, tried)
        if pool is None or target is None:
            return self._nobody(entry, rule, ask, trace)
        # A pool that was narrowed to one endpoint is made for this request.
        placer = self._placers.get(id(pool)) or self._placer(pool)
        server = pool.server
        placed = placer.place(
            trace.request_id,
            load.prompt,
            load.size,
            model=(entry.route.model or "") if entry.is_adapter else ask.model,
            adapter=ask.model if entry.is_adapter else "",
            tried=tried,
            ejected=self._health.left_out(pool.pods, server.policy),
            session=session_of(server.policy.session, ask.headers) if server.policy.session else "",
            rung=rung,
        )
        if isinstance(placed, Refused):
            if kept is not None:
                # Room elsewhere is none for it, and everybody behind it would wait for this one endpoint.
                raise errors.overloaded(ask.model)
            trace.server = server
            return Full(server, entry.route.priority, is_empty=False)
        endpoint = placed.endpoint
        trace.server, trace.endpoint = server, endpoint
        trace.placed, trace.rule, trace.target, trace.revision = placed, rule.name, target.name, self.table.revision
        renamed = None if entry.is_adapter or server.model == ask.model else server.model
        return Choice(entry.route.policy, renamed, server, endpoint, placed.burden, placed, entry.route.priority)

    def _nobody(self, entry: RouteEntry, rule: Rule, ask: Ask, trace: Trace) -> Full:
        """No target and no fallback has an endpoint: wait for the one that the request belongs to."""

        def exists(target: Target) -> bool:
            return self.table.pool(target) is not None

        target = choose_target(rule, draw(trace.request_id, "target"), exists)
        pool = None if target is None else self.table.pool(target)
        if pool is None:
            raise errors.no_endpoints(ask.model)
        trace.server = pool.server
        return Full(pool.server, entry.route.priority, is_empty=True)

    def has_room(self, server: Server) -> bool:
        """Whether it is worth trying to place a request that waits for the server: a guess that costs little."""
        pool = self._pools.get((server.namespace, server.name))
        if pool is None or not pool.candidates:
            # The server is gone, or others may have endpoints now.
            return True
        return self._placers[id(pool)].has_room()

    def is_offered(self, choice: Choice) -> bool:
        """Whether the endpoint of a choice is still one that takes new requests."""
        return choice.endpoint.uid in self.table.offered

    def is_left_out(self, choice: Choice) -> bool:
        """Whether it takes none for now, because it fails."""
        return choice.endpoint.uid in self._health.left_out(Pool.of(choice.server).pods, choice.server.policy)

    def _kept(self, rule: Rule, kept_by: Keeper | None, tried: frozenset[str]) -> tuple[Pool, Target] | None:
        """The endpoint that keeps what a request continues, when a target of the rule has it and it is ready."""
        if kept_by is None:
            return None
        places = dict(self.table.keepers.get(kept_by, ()))
        for target in (*rule.targets, *rule.fallbacks) if places else ():
            pool, position = self.table.pool(target), places.get(-1 if target.server is None else target.server)
            if pool is None or position is None or position not in pool.ready:
                continue
            if pool.server.endpoints[position].uid not in tried:
                return pool.narrowed(position), target
        return None

    def _target(self, rule: Rule, request_id: str, tried: frozenset[str]) -> tuple[Pool | None, Target | None]:
        table = self.table
        if not tried and (sole := _sole(rule)) is not None and (pool := table.pool(sole)) is not None and pool.ready:
            return pool, sole
        number = draw(request_id, "target")

        def has_untried(target: Target) -> bool:
            pool = table.pool(target)
            return pool is not None and any(pool.server.endpoints[i].uid not in tried for i in pool.ready)

        target = choose_target(rule, number, has_untried) if tried else None
        target = target or choose_target(rule, number, table.can_serve)
        return (None, None) if target is None else (table.pool(target), target)

    def _placer(self, pool: Pool) -> Placer:
        return Placer(pool, self._board, self._prefixes, self._clock)


def _sole(rule: Rule) -> Target | None:
    """The target of a rule that has one only, and nothing to draw."""
    return rule.targets[0] if len(rule.targets) == 1 and rule.targets[0].weight > 0 else None
