"""Rules of ModelInfer."""

import re
from collections.abc import Iterator
from typing import Final

from matrixinfer.api import intstr
from matrixinfer.api.errors import FieldError
from matrixinfer.api.names import pod_name
from matrixinfer.api.v1alpha1.modelinfer import ModelInfer, ModelInferSpec, Role, RollingUpdateConfiguration
from matrixinfer.api.v1alpha1.rules.values import (
    LONGEST_LABEL,
    check_containers,
    check_count_or_percent,
    check_labels,
)

__all__ = ["infer_errors", "infer_notices"]

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def infer_errors(new: ModelInfer, old: ModelInfer | None) -> Iterator[FieldError]:
    """Yield what is wrong with a ModelInfer."""
    del old
    seen: set[str] = set()
    for index, role in enumerate(new.spec.template.roles):
        path = f"spec.template.roles[{index}]"
        if role.name in seen:
            yield FieldError(f"{path}.name", f"{role.name!r} is used twice", "give every role a different name")
        seen.add(role.name)
        yield from _role_errors(role, path)
        yield from _length_errors(new, role)
    strategy = new.spec.rollout_strategy
    if strategy is not None and strategy.rolling_update_configuration is not None:
        yield from _update_errors(strategy.rolling_update_configuration, new.spec.replicas)


def infer_notices(new: ModelInfer, old: ModelInfer | None) -> Iterator[FieldError]:
    """Yield what is legal in a ModelInfer but hardly meant."""
    del old
    yield from _gang_notices(new.spec)
    for index, constraint in enumerate(new.spec.topology_spread_constraints):
        if not constraint.topology_key:
            yield FieldError(
                f"spec.topologySpreadConstraints[{index}].topologyKey",
                "is missing, so the constraint is not used",
                "set it",
            )


def _gang_notices(spec: ModelInferSpec) -> Iterator[FieldError]:
    gang = spec.template.gang_schedule
    if gang is not None and gang.enable and not spec.scheduler_name:
        yield FieldError(
            "spec.schedulerName",
            "is absent, and the default scheduler knows no gangs",
            "write volcano, if it is installed",
        )


def _role_errors(role: Role, path: str) -> Iterator[FieldError]:
    if not _DNS_LABEL.fullmatch(role.name):
        yield FieldError(
            f"{path}.name", f"{role.name!r} cannot be part of a pod's name", "use lower-case letters, digits and '-'"
        )
    yield from check_containers(role.entry_template.spec, f"{path}.entryTemplate.spec")
    yield from check_labels(role.entry_template.metadata.labels, f"{path}.entryTemplate.metadata.labels")
    if role.worker_template is not None:
        yield from check_containers(role.worker_template.spec, f"{path}.workerTemplate.spec")
        yield from check_labels(role.worker_template.metadata.labels, f"{path}.workerTemplate.metadata.labels")
    elif role.worker_replicas > 0:
        yield FieldError(
            f"{path}.workerTemplate",
            f"is missing, but workerReplicas is {role.worker_replicas}",
            "set it, or make workerReplicas 0",
        )
    if role.min_replicas is not None and role.min_replicas > role.replicas:
        yield FieldError(
            f"{path}.minReplicas",
            f"cannot be greater than replicas ({role.min_replicas} > {role.replicas})",
            "lower it, or raise replicas",
        )


def _length_errors(infer: ModelInfer, role: Role) -> Iterator[FieldError]:
    name = pod_name(
        infer.metadata.name,
        max(infer.spec.replicas - 1, 0),
        role.name,
        max(role.replicas - 1, 0),
        role.worker_replicas,
    )
    if len(name) > LONGEST_LABEL:
        yield FieldError(
            "metadata.name",
            f"makes the pod name {name!r} of {len(name)} characters; {LONGEST_LABEL} are allowed",
            "shorten metadata.name or the name of the role",
        )


def _update_errors(configuration: RollingUpdateConfiguration, replicas: int) -> Iterator[FieldError]:
    path = "spec.rolloutStrategy.rollingUpdateConfiguration"
    faults = [
        *check_count_or_percent(configuration.max_unavailable, f"{path}.maxUnavailable"),
        *check_count_or_percent(configuration.max_surge, f"{path}.maxSurge"),
    ]
    yield from faults
    if faults:
        return
    unavailable = intstr.resolve(configuration.max_unavailable, replicas, round_up=False)
    surge = intstr.resolve(configuration.max_surge, replicas, round_up=True)
    if replicas > 0 and unavailable == 0 and surge == 0:
        yield FieldError(
            f"{path}.maxUnavailable",
            f"and maxSurge cannot both be 0 (of {replicas} groups, {configuration.max_unavailable} is 0)",
            "raise one of them, or no update could ever begin",
        )
