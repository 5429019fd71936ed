"""Rules of ModelServer and ModelRoute."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from matrixinfer.api.errors import FieldError
from matrixinfer.api.v1alpha1.modelroute import ModelRoute, Rule
from matrixinfer.api.v1alpha1.modelserver import ModelServer, TrafficPolicy
from matrixinfer.api.v1alpha1.rules.values import check_duration, check_labels, check_match, notice_match

__all__ = ["route_errors", "route_notices", "server_errors", "server_notices"]

_LAST_PORT: Final = 65535


def server_errors(new: ModelServer, old: ModelServer | None) -> Iterator[FieldError]:
    """Yield what is wrong with a ModelServer."""
    del old
    selector = new.spec.workload_selector
    yield from check_labels(selector.match_labels, "spec.workloadSelector.matchLabels")
    if selector.pd_group is not None:
        path = "spec.workloadSelector.pdGroup"
        if not selector.pd_group.group_key:
            yield FieldError(
                f"{path}.groupKey", "must not be empty", "name the label that pairs prefill and decode pods"
            )
        yield from check_labels(selector.pd_group.prefill_labels, f"{path}.prefillLabels")
        yield from check_labels(selector.pd_group.decode_labels, f"{path}.decodeLabels")
    if new.spec.traffic_policy is not None:
        yield from _traffic_errors(new.spec.traffic_policy, "spec.trafficPolicy")


def server_notices(new: ModelServer, old: ModelServer | None) -> Iterator[FieldError]:
    """Yield what is legal in a ModelServer but hardly meant."""
    del old
    selector = new.spec.workload_selector
    if not selector.match_labels:
        yield FieldError(
            "spec.workloadSelector.matchLabels",
            "is empty, so every pod of the namespace is taken",
            "name labels of the pods",
        )
    if selector.pd_group is not None and selector.pd_group.prefill_labels == selector.pd_group.decode_labels:
        yield FieldError(
            "spec.workloadSelector.pdGroup.decodeLabels",
            "are the same as prefillLabels",
            "tell the two apart by a label",
        )


def _traffic_errors(policy: TrafficPolicy, path: str) -> Iterator[FieldError]:
    yield from _deadline_errors(policy.timeout, f"{path}.timeout")
    yield from _deadline_errors(policy.first_byte_timeout, f"{path}.firstByteTimeout")
    yield from _deadline_errors(policy.idle_timeout, f"{path}.idleTimeout")
    if policy.retry is not None:
        yield from _deadline_errors(policy.retry.retry_interval, f"{path}.retry.retryInterval")
    if policy.circuit_breaker is not None:
        yield from _deadline_errors(policy.circuit_breaker.base_ejection, f"{path}.circuitBreaker.baseEjection")
    if policy.session_affinity is not None:
        yield from _deadline_errors(policy.session_affinity.ttl, f"{path}.sessionAffinity.ttl")


def _deadline_errors(value: timedelta | None, path: str) -> Iterator[FieldError]:
    yield from check_duration(value, path, None)


def route_errors(new: ModelRoute, old: ModelRoute | None) -> Iterator[FieldError]:
    """Yield what is wrong with a ModelRoute."""
    spec = new.spec
    if not spec.model_name and not spec.lora_adapters:
        yield FieldError("spec.modelName", "is missing, and there are no loraAdapters", "set modelName or loraAdapters")
    if old is not None and old.spec.model_name and spec.model_name and spec.model_name != old.spec.model_name:
        yield FieldError(
            "spec.modelName",
            f"cannot be changed from {old.spec.model_name!r} to {spec.model_name!r}",
            "make another ModelRoute, and delete this one",
        )
    for index, name in enumerate(spec.lora_adapters):
        if not name:
            yield FieldError(f"spec.loraAdapters[{index}]", "must not be empty", "name an adapter, or remove it")
    for index, rule in enumerate(spec.rules):
        yield from _rule_errors(rule, f"spec.rules[{index}]")
    if spec.timeouts is not None:
        yield from _deadline_errors(spec.timeouts.request, "spec.timeouts.request")
        yield from _deadline_errors(spec.timeouts.first_byte, "spec.timeouts.firstByte")
        yield from _deadline_errors(spec.timeouts.idle, "spec.timeouts.idle")
    shared = spec.rate_limit.global_ if spec.rate_limit is not None else None
    if shared is not None and not 1 <= int(shared.redis.address.rsplit(":", 1)[-1]) <= _LAST_PORT:
        yield FieldError(
            "spec.rateLimit.global.redis.address", f"{shared.redis.address!r} has no valid port", "write host:port"
        )


def _rule_errors(rule: Rule, path: str) -> Iterator[FieldError]:
    yield from check_match(rule.model_match, f"{path}.modelMatch")
    if not sum(target.weight for target in rule.target_models):
        yield FieldError(f"{path}.targetModels", "all have weight 0, so none gets a request", "raise one weight")


def route_notices(new: ModelRoute, old: ModelRoute | None) -> Iterator[FieldError]:
    """Yield what is legal in a ModelRoute but hardly meant."""
    del old
    if not new.spec.rules:
        yield FieldError(
            "spec.rules", "is empty, so every request is answered with 404", "add a rule with targetModels"
        )
    for index, rule in enumerate(new.spec.rules):
        yield from notice_match(rule.model_match, f"spec.rules[{index}].modelMatch")
    limit = new.spec.rate_limit
    if limit is not None and limit.input_tokens_per_unit is None and limit.output_tokens_per_unit is None:
        yield FieldError("spec.rateLimit", "limits nothing", "set inputTokensPerUnit or outputTokensPerUnit")
