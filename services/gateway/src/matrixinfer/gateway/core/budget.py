"""How many requests may be sent again: a share of those that came, so that retries never multiply an overload.

One budget per server and worker; a share of every worker's requests is a share of all. A few retries are always
allowed, else a server that is asked seldom could never repeat anything. The trap: a pod that dies with hundreds of
requests must not exhaust what its neighbours need: a failure of an endpoint that takes no request any more costs
nothing, because it can happen only once, and neither does a connection that was refused, because nothing was sent
(`handler`).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from matrixinfer.gateway.core.types import Server

__all__ = ["WINDOW_SECONDS", "BudgetLimits", "Budgets", "RetryBudget"]

WINDOW_SECONDS: Final = 10
"""The requests and retries of this span are set against each other."""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """`share` of the requests or `least_per_second` over the window, whichever is more."""

    share: float = 0.2
    least_per_second: float = 3.0


class Budgets:
    """The budget of every server that was asked of late."""

    def __init__(self, limits: BudgetLimits) -> None:
        self._limits = limits
        self._budgets: dict[tuple[str, str], RetryBudget] = {}

    def of(self, server: Server) -> "RetryBudget":
        """Return the budget of a server; it outlives changes of the server."""
        key = (server.namespace, server.name)
        found = self._budgets.get(key)
        if found is None:
            found = self._budgets[key] = RetryBudget(self._limits)
        return found

    def keep(self, servers: Iterable[Server]) -> None:
        """Forget all other servers."""
        keys = {(server.namespace, server.name) for server in servers}
        self._budgets = {key: budget for key, budget in self._budgets.items() if key in keys}


class RetryBudget:
    """Counts requests and retries by whole seconds over the window."""

    __slots__ = ("_limits", "_requests", "_retries", "_second", "_total_requests", "_total_retries")

    def __init__(self, limits: BudgetLimits) -> None:
        self._limits = limits
        self._second = -inf
        self._requests: deque[int] = deque([0] * WINDOW_SECONDS, WINDOW_SECONDS)
        self._retries: deque[int] = deque([0] * WINDOW_SECONDS, WINDOW_SECONDS)
        self._total_requests = self._total_retries = 0

    def request(self, now: float) -> None:
        """A request came at `now`, its first attempt."""
        if now - self._second >= 1.0:
            self._turn(now)
        self._requests[-1] += 1
        self._total_requests += 1

    def spend(self, now: float) -> bool:
        """Whether one more retry is within the budget; it counts when it is."""
        if now - self._second >= 1.0:
            self._turn(now)
        limits = self._limits
        if self._total_retries >= max(limits.least_per_second * WINDOW_SECONDS, limits.share * self._total_requests):
            return False
        self._retries[-1] += 1
        self._total_retries += 1
        return True

    def _turn(self, now: float) -> None:
        for _ in range(int(min(now - self._second, WINDOW_SECONDS))):
            self._total_requests -= self._requests[0]
            self._total_retries -= self._retries[0]
            self._requests.append(0)
            self._retries.append(0)
        self._second = float(int(now))
