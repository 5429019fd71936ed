"""Which ModelVersion a backend serves, and which ones may go.

Pure. A version is named after its content: `<model>-<backend>-<revision>`, so the same content is the same version,
also after a rollback. Replica counts, resources, placement and traffic weights are not content.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrixinfer.api import hashing
from matrixinfer.api.conditions import is_true
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import Model, ModelBackend, ModelWorker, WorkerType
from matrixinfer.api.v1alpha1.modelversion import ModelVersion, ModelVersionSpec
from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.errors import EngineError
from matrixinfer.model_controller.render.children import owned
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.resources import VERSIONS

__all__ = ["Served", "expendable", "served_version", "version_manifest"]


@dataclass(frozen=True, slots=True)
class Served:
    """The version that a backend is to serve. `is_recorded` is False while its object has still to be made."""

    name: str
    backend: str
    spec: ModelVersionSpec
    is_recorded: bool


def served_version(
    model: Model, backend: ModelBackend, recorded: Mapping[str, ModelVersion], environment: RenderEnvironment
) -> Served:
    """Return what a backend serves: the version that it pins, else the one that its fields describe.

    Raises:
        RenderError: the pinned version is not there, or belongs to another backend; or no image is known.
    """
    if backend.version_name is not None:
        return _pinned(model, backend, backend.version_name, recorded)
    content = _content(model, backend, environment)
    name = f"{backend_object_name(model.metadata.name, backend.name)}-{hashing.revision(content)}"
    found = recorded.get(name)
    spec = found.spec if found is not None else ModelVersionSpec.model_validate(content)
    return Served(name, backend.name, spec, is_recorded=found is not None)


def version_manifest(model: Model, served: Served) -> dict[str, Any]:
    """Return the object that records a version."""
    return owned(model, VERSIONS, served.name, served.backend, {"spec": served.spec.to_manifest()})


def expendable(
    versions: Iterable[ModelVersion], in_use: Collection[str], keep: int, backends: Collection[str]
) -> Sequence[ModelVersion]:
    """Return the versions to delete: beyond the newest `keep` of each backend, never one that is in use or serves.

    Versions of a backend that is gone are all expendable once they serve no more.
    """
    spare: dict[str, list[ModelVersion]] = {}
    for version in versions:
        if version.metadata.name not in in_use and not is_true(version.status.conditions, "Active"):
            spare.setdefault(version.spec.backend_name, []).append(version)
    return [
        version
        for backend, found in sorted(spare.items())
        for version in sorted(found, key=_newest_first, reverse=True)[keep if backend in backends else 0 :]
    ]


def _newest_first(version: ModelVersion) -> tuple[str, str]:
    made = version.metadata.creation_timestamp
    return (made.isoformat() if made is not None else "", version.metadata.name)


def _pinned(model: Model, backend: ModelBackend, name: str, recorded: Mapping[str, ModelVersion]) -> Served:
    found = recorded.get(name)
    if found is None:
        known = sorted(v.metadata.name for v in recorded.values() if v.spec.backend_name == backend.name)
        raise RenderError(
            "VersionNotFound",
            f"backend {backend.name!r} pins the ModelVersion {name!r}, which is not a version of this Model; "
            f"remove versionName or pin one of {', '.join(known) or 'none yet'}",
        )
    if found.spec.backend_name != backend.name or found.spec.model_name != model.metadata.name:
        raise RenderError(
            "VersionMismatch",
            f"backend {backend.name!r} pins the ModelVersion {name!r} of backend {found.spec.backend_name!r}; "
            "pin one of its own",
        )
    return Served(name, backend.name, found.spec, is_recorded=True)


def _content(model: Model, backend: ModelBackend, environment: RenderEnvironment) -> dict[str, Any]:
    content: dict[str, Any] = {
        "modelName": model.metadata.name,
        "backendName": backend.name,
        "servedName": _served_name(model, backend),
        "type": backend.type.value,
        "modelURI": backend.model_uri,
        "workers": [_worker(backend, worker, environment) for worker in backend.workers],
        "include": list(backend.include),
        "exclude": list(backend.exclude),
        "envFrom": list(backend.env_from),
        "env": list(backend.env),
        "loraAdapters": [adapter.to_manifest() for adapter in _distinct(backend)],
    }
    return {name: value for name, value in content.items() if value != []}


def _worker(backend: ModelBackend, worker: ModelWorker, environment: RenderEnvironment) -> dict[str, Any]:
    image = worker.image or environment.image_for(backend.type)
    if not image:
        raise RenderError(
            "ImageMissing",
            f"the {worker.type} worker of backend {backend.name!r} names no image, and none is set for {backend.type}; "
            "set its image",
        )
    made: dict[str, Any] = {"type": worker.type.value, "image": image, "pods": max(worker.pods, 1)}
    return made if worker.config is None else {**made, "config": worker.config}


def _served_name(model: Model, backend: ModelBackend) -> str:
    entry = next((w for w in backend.workers if w.type is not WorkerType.PREFILL), backend.workers[0])
    try:
        return engine_for(backend.type).served_name_of(entry.config) or model.served_name
    except EngineError as fault:
        raise RenderError("EngineUnsupported", f"backend {backend.name!r}: {fault}") from fault


def _distinct(backend: ModelBackend) -> list[Any]:
    return list({adapter.name: adapter for adapter in backend.lora_adapters}.values())
