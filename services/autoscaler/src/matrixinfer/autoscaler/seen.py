"""What a plan is made from: a binding or a policy with everything it refers to, and the verdict of the last round."""

from dataclasses import dataclass
from datetime import datetime

from matrixinfer.api.v1alpha1.autoscaling import (
    AutoscalingPolicy,
    AutoscalingPolicyBinding,
    OptimizerParam,
    ScalingConfiguration,
    Target,
)
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
    def scaling(self) -> ScalingConfiguration | OptimizerParam | None:
        """The one target with its bounds: sharing by cost between a single target is just scaling it."""
        optimizer = self.binding.spec.optimizer_configuration
        if optimizer is not None:
            return optimizer.params[0] if len(optimizer.params) == 1 else None
        return self.binding.spec.scaling_configuration

    @property
    def target(self) -> Target | None:
        """What is scaled, when it is one target."""
        return None if self.scaling is None else self.scaling.target


@dataclass(frozen=True, slots=True)
class PolicySeen:
    """A policy and how many bindings use it."""

    policy: AutoscalingPolicy
    bindings: int
