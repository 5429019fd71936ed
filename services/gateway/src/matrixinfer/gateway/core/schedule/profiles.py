"""The scheduling plugins by name, the profiles that ship with the gateway, and how a ModelServer's list becomes one.

Strict: a name that is not known makes no profile at all, so a typo is a condition on the ModelServer and the default
profile, never a scheduler that silently got weaker. What keeps requests off endpoints that cannot serve is part of
every profile and cannot be listed away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matrixinfer.gateway.core.schedule import baseline, filters, pickers, scorers
from matrixinfer.gateway.core.schedule.framework import Filter, Picker, Profile, Scorer
from matrixinfer.gateway.core.types import PluginWeight

__all__ = ["DEFAULT", "PLUGINS", "TWO_RANDOM", "Plugin", "UnknownPlugin", "profile_of", "unknown_plugins"]


class UnknownPlugin(ValueError):
    """A list of plugins names some that do not exist; `names` are those."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"no scheduling plugin {', '.join(map(repr, names))}; known are {', '.join(sorted(PLUGINS))}")
        self.names = tuple(names)


@dataclass(frozen=True, slots=True)
class Plugin:
    """What one name stands for: a filter, a scorer, both, or a picker."""

    filter: Filter | None = None
    scorer: Scorer | None = None
    picker: Picker | None = None


PLUGINS: Final[dict[str, Plugin]] = {
    # Ours.
    "token-load": Plugin(scorer=scorers.token_load),
    "prefix-affinity": Plugin(scorer=scorers.prefix_affinity),
    "adapter-affinity": Plugin(scorer=scorers.adapter_affinity),
    "kv-usage": Plugin(scorer=scorers.kv_usage),
    "least-load": Plugin(scorer=scorers.least_load),
    "power-of-two": Plugin(picker=pickers.power_of_two),
    "best": Plugin(picker=pickers.best),
    "random": Plugin(picker=pickers.random),
    # Those of the gateway that this one replaces.
    "least-request": Plugin(filter=baseline.few_waiting, scorer=baseline.least_request),
    "least-latency": Plugin(scorer=baseline.least_latency),
    "kv-cache": Plugin(scorer=baseline.gpu_cache_usage),
    "gpu-usage": Plugin(scorer=baseline.gpu_cache_usage),
    "gpu-cache-usage": Plugin(scorer=baseline.gpu_cache_usage),
    "prefix-cache": Plugin(scorer=baseline.prefix_cache),
    "lora-affinity": Plugin(filter=baseline.lora_affinity),
}
"""Every name that `ModelServer.spec.scheduler.plugins` may use."""

_ALWAYS: Final = (
    ("untried", filters.untried),
    ("healthy", filters.healthy),
    ("below-limit", filters.below_limit),
)

# A wish: it looks at those that every other filter left.
_AT_LAST: Final = (("session", filters.session),)

_DEFAULT_PLUGINS: Final = (
    PluginWeight("token-load", 4),
    PluginWeight("prefix-affinity", 1),
    PluginWeight("adapter-affinity", 2),
    PluginWeight("kv-usage", 1),
    PluginWeight("power-of-two", 1),
)


def unknown_plugins(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of `names` that are no plugin, in their order."""
    return tuple(name for name in names if name not in PLUGINS)


def profile_of(plugins: Sequence[PluginWeight], name: str = "") -> Profile:
    """Return the profile that a list of plugins describes; the default one for an empty list. Raises UnknownPlugin.

    Scorers of weight 0 are left out. Without a picker it is `power-of-two`. `random` picks alone: beside scorers it
    would make them pointless, so it is left out there.
    """
    if not plugins:
        return DEFAULT
    if unknown := unknown_plugins([plugin.name for plugin in plugins]):
        raise UnknownPlugin(unknown)
    listed = [(plugin.name, float(plugin.weight), PLUGINS[plugin.name]) for plugin in plugins]
    scoring = tuple((key, weight, plugin.scorer) for key, weight, plugin in listed if plugin.scorer and weight > 0)
    picking = [(key, plugin.picker) for key, _, plugin in listed if plugin.picker and not (key == "random" and scoring)]
    return Profile(
        filters=_ALWAYS + tuple((key, plugin.filter) for key, _, plugin in listed if plugin.filter) + _AT_LAST,
        scorers=scoring,
        picker=picking[0] if picking else ("power-of-two", pickers.power_of_two),
        plugins=tuple(plugins),
        name=name,
    )


DEFAULT: Final = profile_of(_DEFAULT_PLUGINS, "default")
"""Affinity where it saves work and the load allows it, else the fewest tokens to be worked off."""

TWO_RANDOM: Final = Profile(
    filters=_ALWAYS + _AT_LAST, scorers=(), picker=("power-of-two", pickers.power_of_two), name="two-random"
)
"""The cheapest that is still fair: two drawn, the one with fewer requests. For a gateway that has no time left."""
