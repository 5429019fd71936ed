"""Which route owns which model name: the oldest that claims it, for the whole cluster.

Names are global, because a client sends nothing but a name. Ties of age are settled by namespace and name, so that
every replica of the gateway agrees.
"""

from collections.abc import Iterable, Mapping

from matrixinfer.api.v1alpha1.modelroute import ModelRoute
from matrixinfer.kube.resource import Key

__all__ = ["claimed_names", "key_of_route", "owners"]


def claimed_names(route: ModelRoute) -> tuple[str, ...]:
    """Return the names that the route asks for, its model first, without empty ones and repetitions."""
    names = (route.spec.model_name, *route.spec.lora_adapters)
    return tuple(dict.fromkeys(name for name in names if name))


def key_of_route(route: ModelRoute) -> Key:
    """Return namespace and name."""
    return Key(route.metadata.namespace, route.metadata.name)


def owners(routes: Iterable[ModelRoute]) -> Mapping[str, Key]:
    """Return the owner of every name that is claimed."""
    owned: dict[str, Key] = {}
    for route in sorted(routes, key=_seniority):
        for name in claimed_names(route):
            owned.setdefault(name, key_of_route(route))
    return owned


def _seniority(route: ModelRoute) -> tuple[float, Key]:
    created = route.metadata.creation_timestamp
    return (created.timestamp() if created else float("inf"), key_of_route(route))
