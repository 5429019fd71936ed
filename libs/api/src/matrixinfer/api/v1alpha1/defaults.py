"""Fills in what a manifest leaves out: first the defaults of the schema, then those that depend on other fields.

Pure and idempotent. The same order as in a cluster, where the API server fills the schema's defaults before the
webhook sees the object. A manifest of a kind that is not ours, or that is not an object at all, comes back as it is.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Final

from matrixinfer.api.meta import Json, JsonObject, Manifest
from matrixinfer.api.v1alpha1 import structural
from matrixinfer.api.v1alpha1.schema import TYPES, structural_schema

__all__ = ["with_defaults"]

_SCALE_DOWN: Final[JsonObject] = {
    "instances": 0,
    "percent": 100,
    "period": "1m",
    "selectPolicy": "Or",
    "stabilizationWindow": "5m",
}
_SCALE_UP_STABLE: Final[JsonObject] = {
    "instances": 4,
    "percent": 100,
    "period": "1m",
    "selectPolicy": "Or",
    "stabilizationWindow": "0s",
}
_SCALE_UP_PANIC: Final[JsonObject] = {
    "percent": 0,
    "period": "0s",
    "panicThresholdPercent": 200,
    "panicModeHold": "0s",
}
_COST_EXPANSION_RATE_PERCENT: Final = 200
_GRACE_PERIOD: Final = "30s"


def with_defaults(manifest: Manifest) -> JsonObject:
    """Return a new manifest with every default filled in; the one given is not changed."""
    kind = manifest.get("kind") if isinstance(manifest, Mapping) else None
    if not isinstance(kind, str) or kind not in TYPES:
        return deepcopy(manifest) if not isinstance(manifest, Mapping) else deepcopy(dict(manifest))
    filled = structural.fill(deepcopy(dict(manifest)), structural_schema(kind))
    if not isinstance(filled, dict):
        raise AssertionError("an object stays an object")
    spec = filled.get("spec")
    if isinstance(spec, dict):
        match kind:
            case "Model":
                _fill_model(spec)
            case "AutoscalingPolicy":
                _fill_policy(spec)
            case _:
                pass
    return filled


def _fill_model(spec: dict[str, Json]) -> None:
    if not isinstance(spec.get("autoscalingPolicy"), dict):
        return
    if spec.get("costExpansionRatePercent") is None:
        spec["costExpansionRatePercent"] = _COST_EXPANSION_RATE_PERCENT
    backends = spec.get("backends")
    for backend in backends if isinstance(backends, list) else ():
        if isinstance(backend, dict) and backend.get("scaleToZeroGracePeriod") is None:
            backend["scaleToZeroGracePeriod"] = _GRACE_PERIOD


def _fill_policy(spec: dict[str, Json]) -> None:
    behavior = spec.get("behavior")
    if behavior is None or behavior == {}:
        behavior = spec["behavior"] = {}
    if not isinstance(behavior, dict):
        return
    scale_down = _object_in(behavior, "scaleDown", _SCALE_DOWN)
    if isinstance(scale_down, dict) and scale_down.get("stabilizationWindow") is None:
        scale_down["stabilizationWindow"] = _SCALE_DOWN["stabilizationWindow"]
    scale_up = _object_in(behavior, "scaleUp", {})
    if not isinstance(scale_up, dict):
        return
    stable = _object_in(scale_up, "stablePolicy", _SCALE_UP_STABLE)
    if isinstance(stable, dict) and stable.get("stabilizationWindow") is None:
        stable["stabilizationWindow"] = _SCALE_UP_STABLE["stabilizationWindow"]
    _object_in(scale_up, "panicPolicy", _SCALE_UP_PANIC)


def _object_in(parent: dict[str, Json], name: str, default: JsonObject) -> Json:
    """Return a member, after putting a copy of `default` there when it is absent."""
    if parent.get(name) is None:
        parent[name] = dict(default)
    return parent[name]
