"""/metrics with vLLM's names, labels and buckets (0.32).

Owns: one registry per engine, so that several engines live in one process. Gauges are read from the engine when
they are scraped, histograms are fed while it runs with children that are bound once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

__all__ = ["EngineMetrics", "Gauges"]

# The library ships this function without annotations.
disable_created_metrics()  # type: ignore[no-untyped-call]

_LABELS: Final = ("engine", "model_name")
_TTFT: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY: Final = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_REASONS: Final = ("stop", "length", "abort")


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine's state at the moment of a scrape; the last three are totals since start."""

    running: int
    waiting: int
    kv_usage: float
    prefix_queries: int
    prefix_hits: int
    preemptions: int


class EngineMetrics:
    """Everything one engine exports."""

    def __init__(self, model_name: str, *, block_size: int, num_blocks: int) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._state = Gauges(0, 0, 0.0, 0, 0, 0)
        self._read: Callable[[], Gauges] = lambda: self._state
        self._running = self._gauge("vllm:num_requests_running", "Requests in the running batch.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait for a place.")
        self._usage = self._gauge("vllm:kv_cache_usage_perc", "Used share of the KV memory, 0 to 1.")
        self._queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = self._counter("vllm:num_preemptions", "Sequences that gave their memory up.")
        self._prompt = self._counter("vllm:prompt_tokens", "Prompt tokens computed.")
        self._generated = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "Time to the first token.", _TTFT)
        self._itl = self._histogram("vllm:inter_token_latency_seconds", "Time between two tokens.", _ITL)
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "Time of a whole request.", _LATENCY)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Time in the waiting queue.", _LATENCY)
        success = Counter(
            "vllm:request_success", "Requests that ended.", (*_LABELS, "finished_reason"), registry=self._registry
        )
        self._success = {reason: success.labels("0", model_name, reason) for reason in _REASONS}
        self._lora = Gauge(
            "vllm:lora_requests_info",
            "Adapters in memory; the value is the time of the last change.",
            ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
            registry=self._registry,
        )
        cache = Gauge(
            "vllm:cache_config_info",
            "Size of the KV memory.",
            ("engine", "block_size", "num_gpu_blocks"),
            registry=self._registry,
        )
        cache.labels("0", str(block_size), str(num_blocks)).set(1)

    def observe_with(self, read: Callable[[], Gauges]) -> None:
        """Say where the state comes from at each scrape."""
        self._read = read

    def render(self) -> bytes:
        """The text exposition of this moment."""
        now = self._read()
        self._running.set(now.running)
        self._waiting.set(now.waiting)
        self._usage.set(now.kv_usage)
        self._queries.inc(now.prefix_queries - self._state.prefix_queries)
        self._hits.inc(now.prefix_hits - self._state.prefix_hits)
        self._preemptions.inc(now.preemptions - self._state.preemptions)
        self._state = now
        return generate_latest(self._registry)

    def queued(self, seconds: float) -> None:
        """A sequence left the waiting queue."""
        self._queue.observe(seconds)

    def computed(self, prompt_tokens: int) -> None:
        """Prompt tokens were computed."""
        self._prompt.inc(prompt_tokens)

    def first_token(self, seconds: float) -> None:
        """A sequence got its first token so long after it arrived."""
        self._ttft.observe(seconds)
        self._generated.inc()

    def next_token(self, seconds: float) -> None:
        """A sequence got another token so long after the one before."""
        self._itl.observe(seconds)
        self._generated.inc()

    def finished(self, reason: str, seconds: float | None = None) -> None:
        """A sequence ended: `stop`, `length` or `abort`."""
        self._success[reason].inc()
        if seconds is not None:
            self._e2e.observe(seconds)

    def adapters_changed(self, names: str, max_loras: int) -> None:
        """The set of loaded adapters changed; old label sets stay, as they do in vLLM."""
        self._lora.labels(str(max_loras), names, "").set(time.time())

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self._registry).labels("0", self._model_name)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels("0", self._model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _LABELS, registry=self._registry, buckets=buckets).labels("0", self._model_name)
