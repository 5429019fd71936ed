"""What a model's route and one of its servers agree on, and where that is counted: worked out once per table.

Owns the looking up only, so that a request does it once instead of thing by thing. What is counted outlives a table.
"""

from collections.abc import Sequence

import msgspec

from matrixinfer.gateway.core.budget import Budgets, RetryBudget
from matrixinfer.gateway.core.types import Server, TrafficPolicy
from matrixinfer.gateway.stats import Series, Stats
from matrixinfer.gateway.terms import Agreed, TrafficDefaults, agreed

__all__ = ["Way", "Ways"]


class Way(msgspec.Struct, frozen=True):
    """From a model to one of its servers."""

    series: Series
    budget: RetryBudget
    agreed: Agreed


class Ways:
    """Every way that was asked for since the newest table."""

    def __init__(self, stats: Stats, defaults: TrafficDefaults) -> None:
        self._stats = stats
        self._defaults = defaults
        self._budgets = Budgets(defaults.retry_budget)
        self._ways: dict[tuple[str, str, str], Way] = {}

    def begin_anew(self, servers: Sequence[Server]) -> None:
        """A new table holds, with these servers."""
        self._ways = {}
        self._budgets.keep(servers)

    def of(self, model: str, route: str, policy: TrafficPolicy, server: Server) -> Way:
        """Return the way of a model to a server; `route` (namespace/name) owns the model, and `policy` is its own."""
        key = model, server.namespace, server.name
        way = self._ways.get(key)
        if way is None:
            series = self._stats.series(model, route, server.name)
            way = Way(series, self._budgets.of(server), agreed(policy, server.policy, self._defaults))
            self._ways[key] = way
        return way
