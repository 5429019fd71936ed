"""The metrics we read from engines, and every name each of them has ever had.

Owns: one canonical `Metric` per idea, its aliases over engines and versions (newest first), how the series of one
pod are combined, and how a name written in a policy resolves (`matrixinfer:*`, or any engine's own name).
Refuses: parsing (`exposition`) and arithmetic over time (the autoscaler's).
Trap: several aliases can be present at once during an engine's deprecation period. They are the same number, so
the first alias found wins; they are never added up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

__all__ = [
    "ADAPTER_INFO",
    "CACHE_INFO",
    "METRICS",
    "Aliases",
    "Combine",
    "Metric",
    "MetricKind",
    "MetricSpec",
    "names_of",
    "part_of",
    "resolve",
]

Aliases: TypeAlias = tuple[str, ...]
"""Names of one number that no policy asks for, newest first."""

CACHE_INFO: Final = "vllm:cache_config_info"
"""A gauge of 1 per rank; its labels `block_size` and `num_gpu_blocks` tell how many tokens the KV memory holds."""

ADAPTER_INFO: Final = "vllm:lora_requests_info"
"""A gauge whose labels name the adapters in use; its value is the time of the change, and past label sets stay."""


class MetricKind(StrEnum):
    """The Prometheus type that decides how a metric may be used."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Combine(StrEnum):
    """How the label sets of one family in one pod become one number."""

    SUM = "sum"
    MAX = "max"
    MEAN = "mean"


class Metric(StrEnum):
    """Canonical metrics; the value is the name in logs, status and decision sentences."""

    RUNNING = "running"
    WAITING = "waiting"
    KV_USAGE = "kv_usage"
    PROMPT_TOKENS = "prompt_tokens_total"
    GENERATION_TOKENS = "generation_tokens_total"
    REQUESTS = "requests_total"
    PREEMPTIONS = "preemptions_total"
    PREFIX_QUERIES = "prefix_cache_queries_total"
    PREFIX_HITS = "prefix_cache_hits_total"
    PREFIX_HIT_RATIO = "prefix_cache_hit_ratio"
    KV_TOKENS = "kv_cache_tokens"
    TTFT = "time_to_first_token_seconds"
    ITL = "inter_token_latency_seconds"
    E2E = "e2e_request_latency_seconds"
    QUEUE_TIME = "queue_time_seconds"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a canonical metric is: its type, its combination in one pod, and its names, newest first."""

    kind: MetricKind
    names: tuple[str, ...]
    combine: Combine = Combine.SUM


METRICS: Final[Mapping[Metric, MetricSpec]] = MappingProxyType(
    {
        Metric.RUNNING: MetricSpec(
            MetricKind.GAUGE,
            (
                "vllm:num_requests_running",
                "sglang:num_running_reqs",
                "sglang:num_requests_running",
                "llamacpp:requests_processing",
                "matrixinfer:num_requests_running",
            ),
        ),
        Metric.WAITING: MetricSpec(
            MetricKind.GAUGE,
            (
                "vllm:num_requests_waiting",
                "sglang:num_queue_reqs",
                "sglang:num_requests_waiting",
                "sglang:queue_req",
                "llamacpp:requests_deferred",
                "matrixinfer:num_requests_waiting",
            ),
        ),
        # The fullest data-parallel rank is the one that will refuse work, hence the maximum.
        Metric.KV_USAGE: MetricSpec(
            MetricKind.GAUGE,
            (
                "vllm:kv_cache_usage_perc",
                "vllm:gpu_cache_usage_perc",
                "sglang:token_usage",
                "llamacpp:kv_cache_usage_ratio",
                "matrixinfer:kv_cache_usage_perc",
                "matrixinfer:gpu_cache_usage_perc",
            ),
            Combine.MAX,
        ),
        Metric.PROMPT_TOKENS: MetricSpec(
            MetricKind.COUNTER,
            (
                "vllm:prompt_tokens_total",
                "sglang:prompt_tokens_total",
                "llamacpp:prompt_tokens_total",
                "matrixinfer:prompt_tokens_total",
            ),
        ),
        Metric.GENERATION_TOKENS: MetricSpec(
            MetricKind.COUNTER,
            (
                "vllm:generation_tokens_total",
                "sglang:generation_tokens_total",
                "llamacpp:tokens_predicted_total",
                "matrixinfer:generation_tokens_total",
            ),
        ),
        Metric.REQUESTS: MetricSpec(
            MetricKind.COUNTER,
            ("vllm:request_success_total", "sglang:num_requests_total", "matrixinfer:request_success_total"),
        ),
        Metric.PREEMPTIONS: MetricSpec(
            MetricKind.COUNTER, ("vllm:num_preemptions_total", "sglang:num_retracted_reqs_total")
        ),
        Metric.PREFIX_QUERIES: MetricSpec(
            MetricKind.COUNTER, ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
        ),
        Metric.PREFIX_HITS: MetricSpec(
            MetricKind.COUNTER,
            (
                "vllm:prefix_cache_hits_total",
                "vllm:gpu_prefix_cache_hits_total",
                "sglang:cached_tokens_total",
                "llamacpp:prompt_tokens_cached_total",
            ),
        ),
        # Engines that say the ratio themselves; the others count queries and hits.
        Metric.PREFIX_HIT_RATIO: MetricSpec(
            MetricKind.GAUGE, ("sglang:cache_hit_rate", "vllm:gpu_prefix_cache_hit_rate"), Combine.MEAN
        ),
        # How many tokens the memory for keys and values holds; vLLM says it in the labels of CACHE_INFO.
        Metric.KV_TOKENS: MetricSpec(MetricKind.GAUGE, ("sglang:max_total_num_tokens",)),
        Metric.TTFT: MetricSpec(
            MetricKind.HISTOGRAM,
            (
                "vllm:time_to_first_token_seconds",
                "sglang:time_to_first_token_seconds",
                "matrixinfer:time_to_first_token_seconds",
            ),
        ),
        Metric.ITL: MetricSpec(
            MetricKind.HISTOGRAM,
            (
                "vllm:inter_token_latency_seconds",
                "vllm:time_per_output_token_seconds",
                "sglang:inter_token_latency_seconds",
                "sglang:time_per_output_token_seconds",
                "matrixinfer:inter_token_latency_seconds",
                "matrixinfer:time_per_output_token_seconds",
            ),
        ),
        Metric.E2E: MetricSpec(
            MetricKind.HISTOGRAM,
            (
                "vllm:e2e_request_latency_seconds",
                "sglang:e2e_request_latency_seconds",
                "matrixinfer:e2e_request_latency_seconds",
            ),
        ),
        Metric.QUEUE_TIME: MetricSpec(
            MetricKind.HISTOGRAM,
            ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds", "matrixinfer:request_queue_time_seconds"),
        ),
    }
)
"""Everything known of each canonical metric."""

_BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType(
    {name: metric for metric, spec in METRICS.items() for name in (*spec.names, str(metric))}
)


def names_of(metric: Metric | Aliases | str) -> tuple[str, ...]:
    """Return the names that a metric may be found under, newest first."""
    if isinstance(metric, Metric):
        return METRICS[metric].names
    return metric if isinstance(metric, tuple) else (metric,)


def part_of(histogram: Metric, part: Literal["sum", "count"]) -> Aliases:
    """Return what the sum or the count of a histogram is called: two counters that can be read without its buckets."""
    return tuple(f"{name}_{part}" for name in METRICS[histogram].names)


def resolve(name: str) -> Metric | None:
    """Return the canonical metric that a name in a policy means, whichever engine or version the name is from.

    `None` means a name of the user's own: read it verbatim from the exposition.
    """
    return _BY_NAME.get(name)
