"""The traffic figures of every route, kept up to date from the workers' counts.

Owns when figures change as far as anybody else is concerned: not more often than the pause, and not for a change that
nobody would act on, so that a steady cluster writes nothing. The trap: a gateway that has just started has seen less
than a minute, and would say that nothing happens; until then the status stays as it is.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from matrixinfer.api.v1alpha1.modelroute import ModelRoute, TargetTraffic
from matrixinfer.gateway.core.claims import key_of_route
from matrixinfer.gateway.core.figures import Counts, Window, by_target, differs, figures, summed, target_names
from matrixinfer.gateway.metrics import Traffic
from matrixinfer.kube.resource import Key
from matrixinfer.kube.store import Store

__all__ = ["TrafficFigures"]

_WINDOW_SECONDS = 60.0
_LOOK_SECONDS = 5.0
_PAUSE_SECONDS = 15.0


class TrafficFigures:
    """What may be said of each route's traffic now."""

    def __init__(
        self,
        traffic: Traffic,
        routes: Store[ModelRoute],
        clock: Callable[[], float],
        *,
        others: Callable[[], Iterable[Counts]] = tuple,
        window_seconds: float = _WINDOW_SECONDS,
        look_seconds: float = _LOOK_SECONDS,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        """`others` are the counts of the other gateways; figures of one route change at most once a pause."""
        self._traffic = traffic
        self._routes = routes
        self._clock = clock
        self._others = others
        self._window = Window(window_seconds)
        self._look_seconds = look_seconds
        self._pause_seconds = pause_seconds
        self._said: dict[Key, tuple[float, tuple[TargetTraffic, ...]]] = {}

    @property
    def own(self) -> Counts:
        """What this gateway's workers counted within the window."""
        return self._window.grown()

    async def run(self, changed: Callable[[Sequence[Key]], None]) -> None:
        """Look again and again; `changed` hears which routes have new figures."""
        while True:
            await asyncio.sleep(self._look_seconds)
            if keys := self.look():
                changed(keys)

    def look(self) -> list[Key]:
        """Take a sample; return the routes of which there is something new to say."""
        now = self._clock()
        self._window.add(now, by_target(self._traffic.total.series))
        if not self._window.is_full:
            return []
        counts = summed((self._window.grown(), *self._others()))
        routes = {key_of_route(route): route for route in self._routes.values()}
        self._said = {key: said for key, said in self._said.items() if key in routes}
        return [key for key, route in routes.items() if self._is_news(key, route, figures(route, counts), now)]

    def of(self, route: ModelRoute) -> tuple[TargetTraffic, ...]:
        """Return the figures for the status of `route`: one item per target, whatever is known of it."""
        said = self._said.get(key_of_route(route))
        known = {target.model_server_name: target for target in (said[1] if said else route.status.targets)}
        return tuple(known.get(name) or TargetTraffic(model_server_name=name) for name in target_names(route))

    def _is_news(self, key: Key, route: ModelRoute, new: tuple[TargetTraffic, ...], now: float) -> bool:
        said_at, old = self._said.get(key, (-self._pause_seconds, route.status.targets))
        if now - said_at < self._pause_seconds or not differs(new, old):
            return False
        self._said[key] = (now, new)
        return True
