"""AutoscalingPolicy and AutoscalingPolicyBinding of a Model, or of one of its backends."""

from typing import Any, Final

from matrixinfer.api import durations
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicySpec
from matrixinfer.api.v1alpha1.model import Model, ModelBackend, WorkerType
from matrixinfer.engines.catalog import engine_for
from matrixinfer.model_controller.render.children import owned
from matrixinfer.model_controller.render.modelinfer import SINGLE_ROLE
from matrixinfer.model_controller.resources import BINDINGS, INFERS, POLICIES
from matrixinfer.model_controller.versions import Served

__all__ = ["backend_scaling", "model_scaling"]

_EXPANSION_PERCENT: Final = 200


def backend_scaling(model: Model, backend: ModelBackend, served: Served) -> list[dict[str, Any]]:
    """Return the policy and binding of one backend; none without a policy of its own."""
    if backend.autoscaling_policy is None:
        return []
    name = backend_object_name(model.metadata.name, backend.name)
    policy = _policy(backend.autoscaling_policy, [backend])
    binding = {
        "policyRef": {"name": name},
        "scalingConfiguration": {
            "target": _target(model, backend, served),
            "minReplicas": backend.min_replicas,
            "maxReplicas": backend.max_replicas,
        },
    }
    return [
        owned(model, POLICIES, name, backend.name, {"spec": policy}),
        owned(model, BINDINGS, name, backend.name, {"spec": binding}),
    ]


def model_scaling(model: Model, served: list[Served]) -> list[dict[str, Any]]:
    """Return the policy and binding over all backends, by cost; none without a policy of the Model."""
    if model.spec.autoscaling_policy is None:
        return []
    name = model.metadata.name
    expansion = model.spec.cost_expansion_rate_percent
    binding = {
        "policyRef": {"name": name},
        "optimizerConfiguration": {
            "costExpansionRatePercent": _EXPANSION_PERCENT if expansion is None else expansion,
            "params": [
                {
                    "target": _target(model, backend, version),
                    "cost": backend.scaling_cost,
                    "minReplicas": backend.min_replicas,
                    "maxReplicas": backend.max_replicas,
                }
                for backend, version in zip(model.spec.backends, served, strict=True)
            ],
        },
    }
    policy = _policy(model.spec.autoscaling_policy, list(model.spec.backends))
    return [
        owned(model, POLICIES, name, "", {"spec": policy}),
        owned(model, BINDINGS, name, "", {"spec": binding}),
    ]


def _policy(policy: AutoscalingPolicySpec, backends: list[ModelBackend]) -> dict[str, Any]:
    """The inline policy; backends that may go down to zero bring how long nobody must have asked."""
    made: dict[str, Any] = policy.to_manifest()
    grace = [b.scale_to_zero_grace_period for b in backends if b.min_replicas == 0 and b.scale_to_zero_grace_period]
    if grace and policy.scale_to_zero is None:
        made["scaleToZero"] = {"idleWindow": durations.format(max(grace))}
    return made


def _target(model: Model, backend: ModelBackend, served: Served) -> dict[str, Any]:
    engine = engine_for(served.spec.type)
    role = WorkerType.DECODE.value if served.spec.type.is_disaggregated else SINGLE_ROLE
    return {
        "targetRef": {
            "apiVersion": INFERS.api_version,
            "kind": INFERS.kind,
            "name": backend_object_name(model.metadata.name, backend.name),
        },
        "role": role,
        "metricEndpoint": {
            "uri": engine.metrics_path,
            "port": engine.port_of(served.spec.workers[0].config),
        },
    }
