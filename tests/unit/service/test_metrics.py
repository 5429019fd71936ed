"""The scrape page: build info, zeroed series, the format that was asked for."""

from prometheus_client import CollectorRegistry, Counter

from matrixinfer.service.metrics import publish_build_info, render, zero


def test_the_build_is_on_the_page() -> None:
    registry = CollectorRegistry()
    publish_build_info("relay", registry)
    page, content_type = render(registry, {})
    assert b'matrixinfer_build_info{service="relay",version="0.1.0"} 1.0' in page
    assert content_type.startswith("text/plain")


def test_openmetrics_is_spoken_when_asked_for() -> None:
    page, content_type = render(CollectorRegistry(), {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


def test_zero_makes_every_combination() -> None:
    registry = CollectorRegistry()
    counter = Counter("requests", "x", ("route", "outcome"), registry=registry)
    zero(counter, ("a", "b"), ("ok", "error"))
    page, _ = render(registry, {})
    assert page.count(b"requests_total{") == 4
