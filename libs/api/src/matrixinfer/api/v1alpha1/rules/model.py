"""Rules of Model and ModelVersion."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from matrixinfer.api.errors import FieldError
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import (
    BackendRollout,
    BackendType,
    Model,
    ModelBackend,
    RolloutKind,
    WorkerType,
)
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.api.v1alpha1.rules.autoscaling import policy_spec_errors
from matrixinfer.api.v1alpha1.rules.values import LONGEST_LABEL, check_duration, check_labels, check_match, notice_match

__all__ = ["model_errors", "model_notices", "version_errors"]

_MOST_REPLICAS: Final = 1_000_000
_LONGEST_GRACE: Final = timedelta(minutes=30)
_LONGEST_TAIL: Final = len("-999-leader-9-9")
"""What the infer-controller puts behind the name of a ModelInfer to name a pod of a modest size."""


def model_errors(new: Model, old: Model | None) -> Iterator[FieldError]:
    """Yield what is wrong with a Model."""
    del old
    for index, backend in enumerate(new.spec.backends):
        path = f"spec.backends[{index}]"
        yield from _name_errors(new, backend, path)
        yield from _replica_errors(backend, path)
        yield from _worker_errors(backend, path)
        yield from _rollout_errors(backend.rollout, f"{path}.rollout")
        if backend.autoscaling_policy is not None:
            yield from policy_spec_errors(backend.autoscaling_policy, f"{path}.autoscalingPolicy")
    total = sum(backend.max_replicas for backend in new.spec.backends)
    if total > _MOST_REPLICAS:
        yield FieldError(
            "spec.backends", f"the sum of maxReplicas is {total}, which exceeds {_MOST_REPLICAS}", "lower maxReplicas"
        )
    if all(backend.route_weight == 0 for backend in new.spec.backends):
        yield FieldError("spec.backends[0].routeWeight", "is 0 on every backend, so none gets a request", "raise one")
    yield from _scaling_errors(new)
    if new.spec.autoscaling_policy is not None:
        yield from policy_spec_errors(new.spec.autoscaling_policy, "spec.autoscalingPolicy")
    yield from check_match(new.spec.model_match, "spec.modelMatch")


def model_notices(new: Model, old: Model | None) -> Iterator[FieldError]:
    """Yield what is legal in a Model but hardly meant."""
    del old
    yield from notice_match(new.spec.model_match, "spec.modelMatch")
    for index, backend in enumerate(new.spec.backends):
        path = f"spec.backends[{index}]"
        names = [adapter.name for adapter in backend.lora_adapters]
        for place, name in enumerate(names):
            if name in names[:place]:
                yield FieldError(f"{path}.loraAdapters[{place}].name", f"{name!r} is named twice", "name it once")
        for place, worker in enumerate(backend.workers):
            if worker.pods == 0:
                yield FieldError(f"{path}.workers[{place}].pods", "is 0 and counts as 1", "write 1, or leave it out")
        policy = backend.autoscaling_policy or new.spec.autoscaling_policy
        if policy is None and backend.min_replicas != backend.max_replicas:
            yield FieldError(
                f"{path}.autoscalingPolicy",
                "is absent, so nothing scales the backend by itself",
                f"scale its ModelInfer by hand from {backend.min_replicas} to {backend.max_replicas}, or add a policy",
            )
        if policy is not None and policy.scale_to_zero is not None and backend.min_replicas > 0:
            yield FieldError(
                f"{path}.minReplicas", f"is {backend.min_replicas}, so nothing scales to zero", "write 0 to allow it"
            )


def version_errors(new: ModelVersion, old: ModelVersion | None) -> Iterator[FieldError]:
    """Yield what is wrong with a ModelVersion: any change of its spec."""
    if old is None or old.spec == new.spec:
        return
    for name, field in type(new.spec).model_fields.items():
        if getattr(old.spec, name) != getattr(new.spec, name):
            yield FieldError(
                f"spec.{field.alias}",
                "cannot be changed",
                "change the Model instead; a new ModelVersion is made for it",
            )


def _name_errors(model: Model, backend: ModelBackend, path: str) -> Iterator[FieldError]:
    name = backend_object_name(model.metadata.name, backend.name)
    longest = LONGEST_LABEL - _LONGEST_TAIL
    if len(name) > longest:
        yield FieldError(
            f"{path}.name",
            f"makes the name {name!r} of {len(name)} characters, which leaves no room for the names of pods",
            f"keep the names of Model and backend together below {longest} characters",
        )


def _replica_errors(backend: ModelBackend, path: str) -> Iterator[FieldError]:
    if backend.min_replicas > backend.max_replicas:
        yield FieldError(
            f"{path}.minReplicas",
            f"cannot be greater than maxReplicas ({backend.min_replicas} > {backend.max_replicas})",
            "raise maxReplicas or lower minReplicas",
        )
    yield from check_duration(backend.scale_to_zero_grace_period, f"{path}.scaleToZeroGracePeriod", _LONGEST_GRACE)


def _worker_errors(backend: ModelBackend, path: str) -> Iterator[FieldError]:
    if backend.type in (BackendType.MINDIE, BackendType.MINDIE_DISAGGREGATED):
        yield FieldError(
            f"{path}.type",
            f"{backend.type} is not supported yet",
            "write vLLM, vLLMDisaggregated, SGLang, SGLangDisaggregated or LlamaCpp",
        )
        return
    for index, worker in enumerate(backend.workers):
        if worker.config is not None and not isinstance(worker.config, dict):
            yield FieldError(
                f"{path}.workers[{index}].config",
                "must be an object of engine flags",
                "write for example max-model-len: 4096",
            )
        yield from check_labels(worker.node_selector, f"{path}.workers[{index}].nodeSelector")
    yield from _split_errors(backend, path) if backend.type.is_disaggregated else _single_errors(backend, path)


def _single_errors(backend: ModelBackend, path: str) -> Iterator[FieldError]:
    if len(backend.workers) != 1:
        yield FieldError(
            f"{path}.workers",
            f"a backend of type {backend.type} has exactly one worker, not {len(backend.workers)}",
            "keep one",
        )
    for index, worker in enumerate(backend.workers):
        if worker.type is not WorkerType.SERVER:
            yield FieldError(
                f"{path}.workers[{index}].type",
                f"a backend of type {backend.type} has no {worker.type} worker",
                "write server, or leave it out",
            )


def _split_errors(backend: ModelBackend, path: str) -> Iterator[FieldError]:
    for index, worker in enumerate(backend.workers):
        if worker.type not in (WorkerType.PREFILL, WorkerType.DECODE):
            yield FieldError(
                f"{path}.workers[{index}].type",
                f"a backend of type {backend.type} has no {worker.type} worker",
                "write prefill or decode",
            )
    for wanted in (WorkerType.PREFILL, WorkerType.DECODE):
        found = [worker for worker in backend.workers if worker.type is wanted]
        if len(found) != 1:
            yield FieldError(
                f"{path}.workers",
                f"a backend of type {backend.type} has one {wanted} worker, not {len(found)}",
                f"set one worker of type {wanted} and its replicas",
            )


def _rollout_errors(rollout: BackendRollout | None, path: str) -> Iterator[FieldError]:
    if rollout is None:
        return
    canary = rollout.strategy is RolloutKind.CANARY
    if canary and not rollout.steps:
        yield FieldError(f"{path}.steps", "is missing", "give a canary at least one step, such as weight: 10")
    if not canary and (rollout.steps or rollout.analysis is not None):
        member = "steps" if rollout.steps else "analysis"
        yield FieldError(f"{path}.{member}", f"is not used with strategy {rollout.strategy}", "write strategy: Canary")
    for index, (before, step) in enumerate(zip(rollout.steps, rollout.steps[1:], strict=False), start=1):
        if step.weight <= before.weight:
            yield FieldError(
                f"{path}.steps[{index}].weight",
                f"must be greater than the one before ({step.weight} <= {before.weight})",
                "let the weights rise",
            )


def _scaling_errors(model: Model) -> Iterator[FieldError]:
    backends = tuple(enumerate(model.spec.backends))
    if model.spec.autoscaling_policy is not None:
        if any(backend.autoscaling_policy is not None for _, backend in backends):
            yield FieldError(
                "spec.autoscalingPolicy",
                "cannot be set together with autoscalingPolicy of a backend",
                "keep the policy of the Model, or those of its backends",
            )
            return
        for index, backend in backends:
            if backend.scaling_cost == 0:
                yield FieldError(
                    f"spec.backends[{index}].scalingCost",
                    "is missing, but the autoscalingPolicy of the Model compares backends by cost",
                    "write a relative cost of at least 1",
                )
        return
    if model.spec.cost_expansion_rate_percent is not None:
        yield FieldError(
            "spec.costExpansionRatePercent",
            "has no meaning without spec.autoscalingPolicy",
            "remove it, or add the policy",
        )
    for index, backend in backends:
        yield from _unscaled_errors(backend, f"spec.backends[{index}]")


def _unscaled_errors(backend: ModelBackend, path: str) -> Iterator[FieldError]:
    if backend.scaling_cost != 0:
        yield FieldError(
            f"{path}.scalingCost", "has no meaning without spec.autoscalingPolicy", "remove it, or add the policy"
        )
    if backend.scale_to_zero_grace_period is not None and backend.autoscaling_policy is None:
        yield FieldError(
            f"{path}.scaleToZeroGracePeriod",
            "has no meaning without an autoscalingPolicy",
            "remove it, or add a policy",
        )
