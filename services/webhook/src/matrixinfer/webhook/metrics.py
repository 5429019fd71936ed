"""Metrics of the webhook. Label sets are closed: an unknown kind counts as `other`."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from matrixinfer.api.v1alpha1.kinds import ALL_KINDS
from matrixinfer.service.metrics import LATENCY_BUCKETS, zero

__all__ = ["CERTIFICATE_EXPIRY", "OUTCOMES", "REVIEWS", "REVIEW_SECONDS", "TRUSTED", "kind_label"]

OUTCOMES: Final = ("allowed", "denied", "malformed", "failed")
_HOOKS: Final = ("mutate", "validate")
_KINDS: Final = frozenset(kind.kind for kind in ALL_KINDS)

REVIEWS: Final = Counter(
    "matrixinfer_webhook_reviews_total", "Admission reviews answered.", ("hook", "kind", "outcome")
)
REVIEW_SECONDS: Final = Histogram(
    "matrixinfer_webhook_review_seconds",
    "From the last byte in to the answer.",
    ("hook",),
    buckets=LATENCY_BUCKETS,
)
CERTIFICATE_EXPIRY: Final = Gauge(
    "matrixinfer_webhook_certificate_expiry_timestamp_seconds", "When the certificate in use expires (Unix time)."
)
TRUSTED: Final = Gauge(
    "matrixinfer_webhook_trust_published", "1 when both webhook configurations carry our authority, else 0."
)

zero(REVIEWS, _HOOKS, (*sorted(_KINDS), "other"), OUTCOMES)
zero(REVIEW_SECONDS, _HOOKS)


def kind_label(kind: str) -> str:
    """The label value for a kind."""
    return kind if kind in _KINDS else "other"
