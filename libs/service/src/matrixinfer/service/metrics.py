"""Prometheus: the build info metric, zeroing of closed label sets, and the page that is scraped.

Services declare their metrics in their own `metrics.py`, on the default registry, named
`matrixinfer_<service>_<noun>_<unit>`. Refuses open label sets: a label that a client can choose is a memory leak.
The trap: a series that appears with its first error cannot be alerted on with `rate`, so `zero` makes all at start.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from matrixinfer.service.build import build_version

__all__ = ["BYTES_BUCKETS", "LATENCY_BUCKETS", "publish_build_info", "render", "zero"]

LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds, from a webhook's answer to a long prefill; the same everywhere so that dashboards can add up."""

BYTES_BUCKETS: Final = (2**10, 2**12, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28, 2**30)
"""Bytes, 1 KiB to 1 GiB."""


class Labelled(Protocol):
    """A metric with labels, of any type."""

    # The client library types label values as Any; all it does with them is str().
    def labels(self, *labelvalues: str) -> object:
        """Return the child of these label values, making it when it is new."""


def zero(metric: Labelled, *values: Iterable[str]) -> None:
    """Make every series of a closed label set, one iterable of values per label, so that all exist from the start."""
    for combination in product(*values):
        metric.labels(*combination)


def publish_build_info(service: str, registry: CollectorRegistry) -> None:
    """Add `matrixinfer_build_info{service, version} 1` to `registry`; once per registry and process."""
    info = Gauge("matrixinfer_build_info", "The build that runs here.", ("service", "version"), registry=registry)
    info.labels(service, build_version()).set(1)


def render(registry: CollectorRegistry, headers: Mapping[str, str]) -> tuple[bytes, str]:
    """Return the scrape page and its content type, in the format that the `Accept` header asks for."""
    encoder, content_type = choose_encoder(headers.get("Accept", ""))
    return encoder(registry), content_type
