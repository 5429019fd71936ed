"""Everything that should exist for one Model: versions and children, as manifests.

Pure. Owns which objects there are; what is in them is the business of `render`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.kube.resource import Resource
from matrixinfer.model_controller.drift import with_revision
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.modelinfer import modelinfer
from matrixinfer.model_controller.render.modelroute import modelroute
from matrixinfer.model_controller.render.modelserver import modelserver
from matrixinfer.model_controller.render.scaling import backend_scaling, model_scaling
from matrixinfer.model_controller.resources import BINDINGS, CHILDREN, INFERS, POLICIES, ROUTES, SERVERS
from matrixinfer.model_controller.versions import Served, served_version

__all__ = ["Child", "Desired", "desired"]


@dataclass(frozen=True, slots=True)
class Child:
    """One object that should exist."""

    resource: Resource
    name: str
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Desired:
    """All that should exist; `served` and `ignored` go with the Model's backends, one each."""

    served: tuple[Served, ...]
    ignored: tuple[tuple[str, ...], ...]
    children: tuple[Child, ...]

    def of(self, resource: Resource) -> tuple[Child, ...]:
        """The children of one kind."""
        return tuple(child for child in self.children if child.resource == resource)


def desired(model: Model, recorded: Mapping[str, ModelVersion], environment: RenderEnvironment) -> Desired:
    """Return what should exist.

    Raises:
        RenderError: nothing can be made of the Model as it is.
    """
    served = [served_version(model, backend, recorded, environment) for backend in model.spec.backends]
    manifests: list[Mapping[str, Any]] = []
    ignored: list[tuple[str, ...]] = []
    for backend, version in zip(model.spec.backends, served, strict=True):
        pods = modelinfer(model, backend, version, environment)
        manifests += [pods.manifest, modelserver(model, backend, version), *backend_scaling(model, backend, version)]
        ignored.append(pods.ignored)
    manifests += [*model_scaling(model, served), modelroute(model)]
    by_kind = {resource.kind: resource for resource in CHILDREN}
    children = [
        Child(by_kind[manifest["kind"]], manifest["metadata"]["name"], with_revision(manifest))
        for manifest in manifests
    ]
    order = (INFERS, SERVERS, POLICIES, BINDINGS, ROUTES)
    return Desired(
        tuple(served), tuple(ignored), tuple(sorted(children, key=lambda child: order.index(child.resource)))
    )
