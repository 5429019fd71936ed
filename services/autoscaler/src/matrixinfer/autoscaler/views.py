"""What is kept of each object: projections from JSON to the little that decisions need.

Trap: an exception while decoding hides an object for ever, so everything that another writer could put there has a
default, and policies are completed with the same defaults that admission applies.
"""

from typing import Any, Final

import msgspec

from matrixinfer.api.names import WAKE_UP_ANNOTATION
from matrixinfer.api.v1alpha1 import kinds
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicy, AutoscalingPolicyBinding
from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.kube.codec import Meta, Projection, struct, typed
from matrixinfer.kube.resource import Key, Resource

__all__ = [
    "BINDING",
    "BINDINGS",
    "INFER",
    "INFERS",
    "POLICIES",
    "POLICY",
    "InferView",
]

BINDING: Final = Resource.of(kinds.AUTOSCALING_POLICY_BINDING)
POLICY: Final = Resource.of(kinds.AUTOSCALING_POLICY)
INFER: Final = Resource.of(kinds.MODEL_INFER)

_ENGINE: Final = "engine"
_HTTP: Final = "http"


class _Port(msgspec.Struct, rename="camel", gc=False):
    container_port: int = 0
    name: str = ""


class _Container(msgspec.Struct, gc=False):
    name: str = ""
    ports: list[_Port] = msgspec.field(default_factory=list)


class _PodSpec(msgspec.Struct, gc=False):
    containers: list[_Container] = msgspec.field(default_factory=list)


class _PodTemplate(msgspec.Struct, gc=False):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _Role(msgspec.Struct, rename="camel", gc=False):
    name: str
    replicas: int = 1
    entry_template: _PodTemplate = msgspec.field(default_factory=_PodTemplate)


class _Group(msgspec.Struct, gc=False):
    roles: list[_Role] = msgspec.field(default_factory=list)


class _Spec(msgspec.Struct, gc=False):
    template: _Group = msgspec.field(default_factory=_Group)
    replicas: int = 1


class _Status(msgspec.Struct, gc=False):
    replicas: int | None = None


class InferView(msgspec.Struct, frozen=True):
    """A ModelInfer: how many replicas, and where their entry pods listen."""

    metadata: Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)

    @property
    def key(self) -> Key:
        """Where it lives."""
        return Key(self.metadata.namespace, self.metadata.name)

    @property
    def replicas(self) -> int:
        """Groups wanted."""
        return self.spec.replicas

    @property
    def existing(self) -> int:
        """Groups that exist, as far as the infer-controller has said."""
        return self.spec.replicas if self.status.replicas is None else self.status.replicas

    @property
    def wake_up(self) -> str:
        """When the gateway last had a request and no endpoint; empty when never."""
        return self.metadata.annotations.get(WAKE_UP_ANNOTATION, "")

    def entry_pods(self, role: str | None) -> int:
        """Entry pods of one group: of all roles, or of one."""
        return sum(r.replicas for r in self.spec.template.roles if role in (None, r.name))

    def engine_port(self, role: str | None) -> int | None:
        """The port of the engine in the entry pods: the one named http, else the first; `None` when none is named."""
        for each in self.spec.template.roles:
            if role in (None, each.name):
                containers = each.entry_template.spec.containers
                engines = [c for c in containers if c.name == _ENGINE] or containers[:1]
                ports = [port for container in engines for port in container.ports]
                named = [port for port in ports if port.name == _HTTP] or ports
                if named:
                    return named[0].container_port
        return None


def _policy(raw: bytes) -> AutoscalingPolicy:
    manifest: dict[str, Any] = msgspec.json.decode(raw)
    return AutoscalingPolicy.model_validate(with_defaults(manifest))


POLICIES: Final[Projection[AutoscalingPolicy]] = typed(_policy)
BINDINGS: Final[Projection[AutoscalingPolicyBinding]] = typed(AutoscalingPolicyBinding.model_validate_json)
INFERS: Final[Projection[InferView]] = struct(InferView)
