"""What a plan is made from: a binding or a policy with everything it refers to, and the verdict of the last round."""

from dataclasses import dataclass
from datetime import datetime

from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicy, AutoscalingPolicyBinding, Target
from matrixinfer.autoscaler.core.decide import Decision
from matrixinfer.autoscaler.views import InferView
from matrixinfer.kube.resource import Key

__all__ = ["BindingSeen", "PolicySeen", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one round for one target, tied to what it was made from."""

    at: datetime
    infer_uid: str
    replicas_then: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class BindingSeen:
    """A binding with what it refers to; `None` for what does not exist."""

    binding: AutoscalingPolicyBinding
    policy: AutoscalingPolicy | None
    infer: InferView | None
    verdict: Verdict | None = None

    @property
    def key(self) -> Key:
        """Where the binding lives."""
        return Key(self.binding.metadata.namespace, self.binding.metadata.name)

    @property
    def target(self) -> Target | None:
        """What is scaled, when it is one target."""
        scaling = self.binding.spec.scaling_configuration
        return None if scaling is None else scaling.target


@dataclass(frozen=True, slots=True)
class PolicySeen:
    """A policy and how many bindings use it."""

    policy: AutoscalingPolicy
    bindings: int
