"""What our objects name without containing it, and whether it is there.

A missing one is a warning, never an error: manifests arrive in any order, and the object may come a second later.
Owns the list of such fields and the watches behind the question; refuses to ask the API server while a client waits
for an answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import msgspec

from matrixinfer.api.v1alpha1.kinds import AUTOSCALING_POLICY, MODEL_INFER, MODEL_SERVER, MODEL_VERSION
from matrixinfer.kube.codec import Meta, Projection, struct
from matrixinfer.kube.resource import Key, Resource
from matrixinfer.kube.store import Store

__all__ = ["Named", "Reference", "References", "WatchesNames", "references_of"]

_WATCHED: Final = tuple(Resource.of(kind) for kind in (AUTOSCALING_POLICY, MODEL_INFER, MODEL_SERVER, MODEL_VERSION))
_POLICIES, _INFERS, _SERVERS, _VERSIONS = _WATCHED


class Named(msgspec.Struct):
    """All that is kept of an object that others may name."""

    metadata: Meta


_NAMED: Final = struct(Named)


@dataclass(frozen=True, slots=True)
class Reference:
    """One field that names another object of the same namespace."""

    path: str
    resource: Resource
    key: Key

    def __str__(self) -> str:
        """The warning when there is no such object."""
        what = f"{self.resource.kind} {self.key.name!r}"
        return f"{self.path}: there is no {what} in namespace {self.key.namespace!r} yet; it takes effect once there is"


def references_of(manifest: Mapping[str, Any], namespace: str) -> Iterator[Reference]:
    """Yield what a valid manifest names."""
    spec = manifest["spec"]
    match manifest["kind"]:
        case "ModelRoute":
            named = _of_route(spec)
        case "AutoscalingPolicyBinding":
            named = _of_binding(spec)
        case "Model":
            named = _of_model(spec)
        case _:
            return
    for path, resource, name in named:
        yield Reference(path, resource, Key(namespace, name))


_Field = tuple[str, Resource, str]


def _of_route(spec: Mapping[str, Any]) -> Iterator[_Field]:
    for index, rule in enumerate(spec.get("rules") or ()):
        for member in ("targetModels", "fallbacks"):
            for place, target in enumerate(rule.get(member) or ()):
                path = f"spec.rules[{index}].{member}[{place}].modelServerName"
                yield path, _SERVERS, target["modelServerName"]


def _of_binding(spec: Mapping[str, Any]) -> Iterator[_Field]:
    yield "spec.policyRef.name", _POLICIES, spec["policyRef"]["name"]
    scaling = spec.get("scalingConfiguration") or {}
    yield from _of_target(scaling.get("target"), "spec.scalingConfiguration.target")
    optimizer = spec.get("optimizerConfiguration") or {}
    for index, param in enumerate(optimizer.get("params") or ()):
        yield from _of_target(param.get("target"), f"spec.optimizerConfiguration.params[{index}].target")


def _of_target(target: Mapping[str, Any] | None, path: str) -> Iterator[_Field]:
    reference = (target or {}).get("targetRef") or {}
    if reference.get("name") and reference.get("kind") in (None, "", _INFERS.kind):
        yield f"{path}.targetRef.name", _INFERS, reference["name"]


def _of_model(spec: Mapping[str, Any]) -> Iterator[_Field]:
    for index, backend in enumerate(spec.get("backends") or ()):
        if backend.get("versionName"):
            yield f"spec.backends[{index}].versionName", _VERSIONS, backend["versionName"]


class WatchesNames(Protocol):
    """The part of a cache that is needed here."""

    def watch(self, resource: Resource, *, project: Projection[Named], optional: bool) -> Store[Named]:
        """Declare a watch."""
        ...


class References:
    """Answers whether a named object exists, from memory; what is not known counts as existing."""

    def __init__(self, stores: Mapping[Resource, Store[Named]]) -> None:
        self._stores = stores

    @classmethod
    def declared(cls, cache: WatchesNames) -> Self:
        """Declare the watches. A kind that is not served yet is looked for again later."""
        return cls({resource: cache.watch(resource, project=_NAMED, optional=True) for resource in _WATCHED})

    def exist(self, reference: Reference) -> bool:
        """False only when the watch is up to date and shows no such object."""
        store = self._stores.get(reference.resource)
        return store is None or not store.synced or reference.key in store
